"""Suites that travel with lm-evaluation-harness, by their names: mmlu, hellaswag, arc_challenge, wmdp, m_mmlu_de, …

They run on lm-eval's own model class, so the numbers are those of its command on the same checkpoint. Their questions
come from the Hub and are loaded before the model, so that a missing one is reported at once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval import evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager
from transformers import PreTrainedTokenizerBase

from core.errors import InputError
from core.hub_ids import is_hub_id
from core.progress import report
from eval.config import EvalConfig, Suite
from eval.schema import Z_95, Record
from eval.scoring.harness import TASKS, BoundedLM, language_model, metadata, published, quiet, with_its_share
from eval.scoring.packed_linear import packed
from eval.scoring.probes import Scorer
from eval.statistics.intervals import with_a_width

ACCURACIES = ("acc", "acc_norm", "exact_match")
FEWSHOT_SEED = 1234  # lm-eval's own default: the same examples as its command draws


@dataclass(frozen=True)
class LoadedSuite:
    """A suite of the recipe with its questions."""

    suite: Suite
    tasks: Any


def load_suites(suites: Sequence[Suite], data: Path) -> list[LoadedSuite]:
    """The suites with their questions. Raises InputError if lm-eval lacks the name, or the Hub cannot be reached."""
    if not suites:
        return []
    report("loading suites")
    with quiet():
        manager = manager_of(suites, data)
        return [LoadedSuite(suite, _load(manager, suite, place)) for place, suite in enumerate(suites)]


def manager_of(suites: Sequence[Suite], data: Path) -> TaskManager:
    """What knows the suites, of lm-eval's tasks and ours. Raises InputError if lm-eval lacks one's name."""
    manager = TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata(data))
    if not {suite.task for suite in suites} <= set(manager.all_tasks):  # indexing lm-eval's own tasks takes seconds
        manager = every_task(data)
    for place, suite in enumerate(suites):
        if suite.task not in manager.all_tasks:
            near = difflib.get_close_matches(suite.task, manager.all_tasks, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise InputError(
                f"eval.suites[{place}].task: lm-eval {lm_eval.__version__} has no task {suite.task!r}.{hint} "
                "`lm_eval ls tasks` lists them."
            )
    return manager


def data_sets(manager: TaskManager, task: str | dict[str, Any]) -> set[str]:
    """The data sets of the Hub that the questions of a task come from, or of all tasks of a group or tag."""
    entry = manager.task_index.get(task) if isinstance(task, str) else None
    config = (entry.cfg or {}) if entry else task if isinstance(task, dict) else {}
    below = config.get("task")
    parts = [below] if isinstance(below, str) and isinstance(task, dict) else below if isinstance(below, list) else []
    if entry and entry.yaml_path is None:  # a tag
        parts = sorted(entry.tags)
    path = config.get("dataset_path")
    own = {path} if isinstance(path, str) and is_hub_id(path) else set()  # else a loader of files, such as json
    return own.union(*(data_sets(manager, part) for part in parts))


@cache
def every_task(data: Path) -> TaskManager:
    """lm-eval's own tasks and ours, which read ``data``."""
    return TaskManager(include_path=str(TASKS), metadata=metadata(data))


def _load(manager: TaskManager, suite: Suite, place: int) -> Any:
    try:
        tasks = manager.load([suite.task])
    except Exception as error:  # datasets and the Hub's client raise a dozen kinds
        reason = " ".join(str(error).split())
        raise InputError(
            f"eval.suites[{place}].task: the questions of {suite.task} cannot be loaded ({reason:.200}). They come "
            "from the Hub: check the network and, if they are gated, log in with `hf auth login`, since evaluations do "
            "not see HF_TOKEN; or remove the suite."
        ) from error
    for task in tasks["tasks"].values():
        if suite.num_fewshot is not None or task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", suite.num_fewshot or 0)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
    return tasks


def run_suites(
    loaded: Sequence[LoadedSuite], scorer: Scorer, tokenizer: PreTrainedTokenizerBase, config: EvalConfig, lm: LM | None
) -> tuple[list[Record], dict[str, dict[str, Any]]]:
    """Records of every suite, and lm-eval's own results by the suite's name."""
    if not loaded:
        return [], {}
    model = lm or _plain(scorer, tokenizer, config)
    records: list[Record] = []
    results = {}
    for item in loaded:
        report(f"lm-eval {item.suite.task}")
        with quiet(), packed(scorer.model):
            result: Any = evaluate(
                lm=model,
                task_dict=item.tasks,
                limit=item.suite.limit,
                apply_chat_template=item.suite.chat_template,
                fewshot_as_multiturn=item.suite.chat_template,
                log_samples=False,
            )
        if result:  # only the first of several processes has one
            results[item.suite.task] = published(result)
            records += suite_records(item.suite.task, result)
    return records, results


def _plain(scorer: Scorer, tokenizer: PreTrainedTokenizerBase, config: EvalConfig) -> LM:
    if config.backend != "hf":
        return language_model(scorer, tokenizer, config)
    return with_its_share(BoundedLM(scorer.model, tokenizer, config.batch_rows))


def suite_records(name: str, result: dict[str, Any]) -> list[Record]:
    """A record for each metric of the suite, or of its tasks if lm-eval does not aggregate them.

    The interval is the value +- 1.96 of lm-eval's standard errors; that of an accuracy stays between 0 and 1, and has a
    width where all questions are right or all wrong. A metric without a standard error has no record.
    """
    own = list(_records(name, result))
    return own or [record for task in result["results"] if task != name for record in _records(task, result)]


def _records(task: str, result: dict[str, Any]) -> Iterator[Record]:
    scores = result["results"].get(task, {})
    version = result["versions"].get(task, 1)
    for key, value in scores.items():
        metric, _, filtered = key.partition(",")
        error = scores.get(f"{metric}_stderr,{filtered}")
        if not filtered or not isinstance(error, float) or not math.isfinite(error):
            continue
        n = int(scores["sample_len"])
        low, high = value - Z_95 * error, value + Z_95 * error
        if metric in ACCURACIES:
            low, high = (max(0.0, low), min(1.0, high)) if error else with_a_width(float(value), n)
        yield Record(
            metric=metric if filtered == "none" else f"{metric}_{filtered}",
            split=task,
            value=float(value),
            ci_low=float(low),
            ci_high=float(high),
            n=n,
            higher_is_better=result["higher_is_better"].get(task, {}).get(metric),
            version=int(version) if isinstance(version, int | float) else 1,
        )
