"""What lm-eval leaves of the suites that recipes ask for: values, and which data its questions come from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Suite(NamedTuple):
    """What lm-eval says of a task or group: values, and for each task below it the Hub data set, subset and split."""

    values: dict[str, float]
    version: int
    tasks: dict[str, tuple[str, str | None, str]]
    groups: dict[str, list[str]] = {}  # noqa: RUF012 (a NamedTuple's default)


MMLU = {"stem": "abstract_algebra", "other": "anatomy", "social_sciences": "econometrics", "humanities": "philosophy"}
SUITES = {
    "mmlu": Suite(
        {"acc": 0.59},
        2,
        {f"mmlu_{subject}": ("cais/mmlu", subject, "test") for subject in MMLU.values()},
        {"mmlu": [f"mmlu_{part}" for part in MMLU], **{f"mmlu_{part}": [f"mmlu_{s}"] for part, s in MMLU.items()}},
    ),
    "hellaswag": Suite({"acc": 0.52, "acc_norm": 0.7}, 1, {"hellaswag": ("Rowan/hellaswag", None, "validation")}),
    "arc_challenge": Suite(
        {"acc": 0.44, "acc_norm": 0.46}, 1, {"arc_challenge": ("allenai/ai2_arc", "ARC-Challenge", "test")}
    ),
    "wmdp": Suite(
        {"acc": 0.53},
        1,
        {f"wmdp_{part}": ("cais/wmdp", f"wmdp-{part}", "test") for part in ("bio", "chem", "cyber")},
        {"wmdp": ["wmdp_bio", "wmdp_chem", "wmdp_cyber"]},
    ),
    **{
        f"m_mmlu_{code}": Suite({"acc": 0.45}, 0, {f"m_mmlu_{code}": ("alexandrainst/m_mmlu", code, "test")})
        for code in ("de", "es", "fr", "it")
    },
}


def write_harness(
    folder: Path, name: str, groups: Mapping[str, list[str]], configs: Mapping[str, dict[str, str]]
) -> None:
    """A results file of lm-eval, as far as it says what was asked: a task is a group without tasks below it."""
    below = {**groups, **{task: [] for task in configs}}
    counted = {task: {"original": 2000, "effective": 1000} for task in configs}
    content = {"results": {task: {} for task in below}, "group_subtasks": below, "configs": configs}
    content |= {"n-samples": counted}
    (folder / "lm_eval" / f"{name}.json").write_text(json.dumps(content))
