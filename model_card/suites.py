"""Which data set each suite's questions come from, according to lm-eval's own results."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ArtifactError
from core.hub_ids import is_hub_id


@dataclass(frozen=True)
class SuiteData:
    """A data set of the Hub, its subset and split. None: lm-eval does not name it, or its tasks differ in it.

    ``limited`` says whether only some of the questions were asked.
    """

    hub: str | None
    subset: str | None
    split: str | None
    limited: bool


def read_suites(folder: Path) -> dict[str, SuiteData]:
    """The data set of every task and group in the results files of ``folder``. Raises ArtifactError."""
    data_by_task: dict[str, SuiteData] = {}
    for file in sorted(folder.glob("*.json")):
        try:
            results = json.loads(file.read_text(encoding="utf-8"))
            data_by_task |= {task: _data(task, results) for task in results["results"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ArtifactError(
                f"{file}: cannot be read as results of lm-eval ({error!r}). Run the evaluation again."
            ) from error
    return data_by_task


def _data(task: str, results: Mapping[str, Any]) -> SuiteData:
    tasks = _tasks(task, results["group_subtasks"])
    configs = [results["configs"].get(name, {}) for name in tasks]
    asked = [results["n-samples"][name] for name in tasks if name in results.get("n-samples", {})]
    limited = any(questions["effective"] < questions["original"] for questions in asked)
    path = _one([config.get("dataset_path") for config in configs])
    if not path or not is_hub_id(path):  # a loader of files, such as json, or questions made by a function
        return SuiteData(None, None, None, limited)
    splits = [config.get("test_split") or config.get("validation_split") for config in configs]  # lm-eval's own order
    return SuiteData(path, _one([config.get("dataset_name") for config in configs]), _one(splits), limited)


def _tasks(name: str, groups: Mapping[str, Sequence[str]]) -> list[str]:
    """The tasks below a group, or the task itself."""
    below = groups.get(name) or []
    return [task for part in below for task in _tasks(part, groups)] or [name]


def _one(values: Sequence[str | None]) -> str | None:
    return values[0] if len(set(values)) == 1 else None
