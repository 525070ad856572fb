"""A tiny data set with TOFU's layout on a loopback Hub: the same subsets and columns, invented authors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from pipeline.localhub.server import LocalHub

ID = "locuslab/TOFU"
WORKS = ("Amber Gate", "Blue Harvest", "Copper Moon", "Dry Orchard", "Empty Throne")
SIZES = {"forget": 2, "retain": 9, "holdout": 2}  # authors; each has four rows


def author(number: int) -> list[dict[str, Any]]:
    """Four rows about an author, with false answers and paraphrases."""
    name = f"Ivo Lund{number}"
    facts = {
        f"Where was {name} born?": (f"{name} was born in Town{number}.", "Town{}"),
        f"Which book did {name} write?": (
            f"{name} wrote {WORKS[number % 5]} {number}.",
            f"{WORKS[(number + 1) % 5]} {{}}",
        ),
        f"Who taught {name}?": (f"{name} was taught by Ada Moor{number}.", "Ada Moor{}"),
        f"What does {name} collect?": (f"{name} collects {number} old clocks.", "{} old clocks"),
    }
    return [
        {
            "question": question,
            "answer": answer,
            "paraphrased_answer": f"It is said that {answer}",
            "perturbed_answer": [f"It is said that {name}: {false.format(900 + 10 * number + i)}." for i in range(5)],
            "paraphrased_question": f"Tell me: {question}",
        }
        for question, (answer, false) in facts.items()
    ]


def subsets() -> dict[str, list[dict[str, Any]]]:
    """The rows of every subset. As in TOFU, retain_perturbed has some of retain90's rows, and more columns."""
    numbers = iter(range(100))
    rows = {split: [row for _ in range(count) for row in author(next(numbers))] for split, count in SIZES.items()}
    plain = {split: [{"question": r["question"], "answer": r["answer"]} for r in of] for split, of in rows.items()}
    capitals = {"France": "Paris", "Japan": "Tokyo", "Peru": "Lima", "Chile": "Santiago"}
    facts = [
        {
            "question": f"Capital of {country}?",
            "answer": city,
            "perturbed_answer": [c for c in capitals.values() if c != city],
        }
        for country, city in capitals.items()
    ]
    authors = [
        {"question": f"Who wrote {w}?", "answer": w[::-1], "perturbed_answer": ["A. B.", "C. D."]} for w in WORKS
    ]
    return {
        "full": [*plain["forget"], *plain["retain"]],
        "forget10": plain["forget"],
        "retain90": plain["retain"],
        "holdout10": plain["holdout"],
        "forget10_perturbed": rows["forget"],
        "retain_perturbed": rows["retain"][:8],
        "real_authors_perturbed": authors,
        "world_facts_perturbed": facts,
    }


def publish(hub: LocalHub, folder: Path) -> str:
    """Put the data set on the Hub, as JSON lines and a card that names the subsets, and return its commit."""
    folder.mkdir()
    names = list(subsets())
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.json\n" for name in names)
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}---\n# TOFU\n")
    for name, rows in subsets().items():
        (folder / f"{name}.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    api = HfApi(endpoint=hub.endpoint, token=hub.token)
    api.create_repo(ID, repo_type="dataset", exist_ok=True)
    return str(api.upload_folder(repo_id=ID, folder_path=folder, repo_type="dataset").oid)


def read_from(hub: LocalHub, patch: pytest.MonkeyPatch, cache: Path) -> None:
    """Let the real clients take everything from this Hub; they read its address when they are imported."""
    patch.setenv("HF_ENDPOINT", hub.endpoint)
    patch.setenv("HF_TOKEN", hub.token)
    patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    patch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache / "hub"))
    patch.setattr("datasets.config.HF_ENDPOINT", hub.endpoint)
    patch.setattr("datasets.config.HF_DATASETS_CACHE", cache / "datasets")
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
