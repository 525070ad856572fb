"""A small card: made-up evidence of 40 forget rows, and the configuration of its card."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

from core.strict import Strict
from core.unlearning import PAIRING, Bounds, PairedRows, pairing_bytes
from datasets_prep.schema import PerturbedRow, Row, write_facts, write_rows
from eval.schema import (
    OnOtherRows,
    OnPart,
    Record,
    write_records,
    write_samples,
    write_verdict,
)
from model_card.config import CardInputs
from tests.artifacts import (
    demo_data_facts,
    judged_gate,
    unlearn_facts,
    verdict_of,
    write_manifest,
)

CONFIG = {
    "recipe": "demo",
    "card": {
        "title": "SmolLM2-135M-Instruct after unlearning of sample facts",
        "summary": "A small model that was made to forget 40 invented facts.",
        "limitations": ["The sample set is small & simple."],
    },
    "model": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0", "revision": None},
    "data": {
        "source": {"sample": {"seed": 2026}, "hub": None},
        "setting": "topics",
    },
    "base": {"train": {"precision": "auto", "args": {"learning_rate": 3e-4, "num_train_epochs": 8}}, "hub": None},
    "gold": {"train": {"precision": "auto", "args": {"learning_rate": 3e-4, "num_train_epochs": 8}}, "hub": None},
    "unlearn": {"method": "gd", "forget_cap": 5.0, "retain_weight": 1.0, "args": {"learning_rate": 5e-5}, "stop": None},
    "publish": {"repo": "demo/SmolLM2-135M-Instruct-FAME-sample-GD", "tag": "v1.0.0", "hub": "local"},
}
SELECTION = "The kept checkpoint was chosen by a rule that read 20 of 40 forget rows."
NO_FACTS = Strict()
LEVELS = {"base": 0.98765, "gold": 0.0421, "unlearned": 0.0567}


def config(**changes: dict[str, object]) -> CardInputs:
    values = copy.deepcopy(CONFIG)
    for section, entries in changes.items():
        values[section] = values[section] | entries  # type: ignore[operator]
    return CardInputs.model_validate(values)


def rows_of(split: str, count: int) -> list[Row]:
    return [
        Row(
            row_id=f"{('de', 'en')[i % 2]}-{i % 5}-{split}-{i}",
            identity_id=i % 5,
            name=f"Person {i % 5}",
            language=("DE", "EN")[i % 2],
            topic_id=("biography.birthplace", "personal.email")[i % 2],
            question=f"What is the {split} question {i} about Person {i % 5}?",
            answer=f"Person {i % 5} has the {split} answer {i}.",
        )
        for i in range(count)
    ]


def records_of(model: str) -> list[Record]:
    def record(metric: str, split: str, value: float, n: int, by: dict[str, str] | None = None) -> Record:
        return Record(metric, split, value, max(0.0, value - 0.01234), value + 0.01111, n, split != "forget", 1, by)

    level = LEVELS[model]
    found = []
    for metric in ("rouge_l_recall", "answer_probability"):
        for split, value, n in (("retain", 0.99 - level / 1000, 160), ("forget", level, 40), ("holdout", 0.0412, 50)):
            found.append(record(metric, split, value, n))
            found += [record(metric, split, value, n // 2, {"language": code}) for code in ("DE", "EN")]
            found.append(record(metric, split, value, n // 2, {"topic": "personal.email"}))
    found.append(record("utility", "general", 0.61, 60))
    if model != "gold":
        found.append(record("forget_quality", "forget", 3.2e-9 if model == "base" else 0.41, 40))
    return found


def samples_of(model: str) -> Iterator[dict[str, object]]:
    """What the model says to the forget rows and to some retain rows."""
    for split, row in (("forget", row) for row in rows_of("forget", 40)):
        measured = {"rouge_l_recall": LEVELS[model], "truth_ratio": 1.1 - LEVELS[model]}
        said = {"generation": f"{model} says that to {row.row_id}"}
        yield {"row_id": row.row_id, "split": split, "language": row.language, "topic_id": "x", **measured, **said}


def write_evidence(root: Path) -> dict[str, Path]:
    inputs = {name: root / name for name in ("data", "unlearn", "eval-base", "eval-gold", "eval-unlearned", "gate")}
    for folder in inputs.values():
        folder.mkdir(parents=True)
    for split, count in (("forget", 40), ("retain", 160), ("holdout", 50), ("unrehearsed", 20)):
        write_rows(inputs["data"] / f"{split}.jsonl", rows_of(split, count))
    write_rows(inputs["data"] / "perturbed.jsonl", [PerturbedRow("de-0-forget-0", "forget", ("wrong a", "wrong b"))])
    for model in LEVELS:
        write_records(inputs[f"eval-{model}"] / "results.json", records_of(model))
        write_samples(inputs[f"eval-{model}"] / "samples.jsonl", list(samples_of(model)))
        write_manifest(inputs[f"eval-{model}"], f"eval-{model}", NO_FACTS)
    confirmed = OnOtherRows(
        n=20,
        says="On the 20 others: 0.0612, at most 0.1041.",
        measured=0.0612,
        ci_low=0.0511,
        ci_high=0.0713,
        at_least=None,
        at_most=0.1041,
        passed=True,
    )
    says = "On the 20 about which base was not asked: 0.8147."
    gate = judged_gate(
        rule="at most gold's ci_high + 0.05",
        measured=0.0567,
        ci_low=0.0444,
        ci_high=0.0678,
        at_most=0.1032,
        why="0.0567 is at most 0.1032.",
        reason="Forgotten means like gold | not zero.",
        confirmed=confirmed,
        parts=[OnPart(n=20, says=says, measured=0.8147, ci_low=0.7951, ci_high=0.8312, references={})],
    )
    second = gate.changed(
        metric="utility",
        split="general",
        rule="at least base's ci_low",
        measured=0.61,
        at_least=0.59766,
        at_most=0.8,
        n=160,
        why="",
        reason="It still knows what it knew.",
        certifiable_alone=True,
        smallest_difference=None,
        confirmed=None,
        parts=[],
    )
    write_verdict(inputs["gate"], verdict_of(gate, second, selection=SELECTION))
    write_manifest(inputs["gate"], "gate", NO_FACTS)
    write_facts(inputs["data"] / "checks.json", demo_data_facts())
    write_manifest(inputs["data"], "data", NO_FACTS)
    log = [{"step": i, "forget_loss": 0.1 * i, "retain_loss": 0.01 * i, "lr": 5e-5} for i in range(1, 40)]
    log += [
        {"step": i, "probe_forget_loss": 0.1 * i, "probe_retain_loss": 0.012 * i, "probe_level": 3.1701}
        for i in range(8, 40, 8)
    ]
    (inputs["unlearn"] / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log), encoding="utf-8")
    facts = unlearn_facts(
        levels={"gold": 3.1701},
        forget_cap=5.0,
        stopped="forget loss 3.200 reached its level 3.170",
        bounds=Bounds(forget_loss=3.1701, retain_loss=0.4),
    )
    write_manifest(inputs["unlearn"], "unlearn", facts)
    pairs = [PairedRows(epoch=0, forget=f"f-{i}", retain=[row.row_id]) for i, row in enumerate(rows_of("retain", 160))]
    (inputs["unlearn"] / PAIRING).write_bytes(pairing_bytes(pairs))
    return inputs


WAYS = ("title", "summary", "limitation", "name", "license", "citation", "recipe", "override")


def filled(canaries: list[str]) -> CardInputs:
    """A card's inputs with texts in every place that a recipe has for texts, each behind the place and its number."""
    ways = {way: " ".join(f"by-{way}-{i} {canary} by-end-0 " for i, canary in enumerate(canaries)) for way in WAYS}
    made = config(card={"dataset": {"name": "x"}}, data={"source": {"file": {"path": "x.csv"}}})
    citation = f"@misc{{x, author = {{{ways['citation']}}}}}"
    assert made.card.dataset is not None
    dataset = made.card.dataset.model_copy(
        update={"name": ways["name"], "license": ways["license"], "citation": citation}
    )
    prose = {"title": ways["title"], "summary": ways["summary"], "limitations": [ways["limitation"]]}
    card = made.card.model_copy(update=prose | {"dataset": dataset})
    return made.model_copy(
        update={"card": card, "recipe": f"./{ways['recipe']}.yaml", "overrides": [f"card.title={ways['override']}"]}
    )
