"""The dataset card of a data artifact. It holds counts and rules, and no row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datasets_prep.config import DataConfig
from datasets_prep.schema import LANGUAGES, SPLITS, TOPICS, Row

_MEANING = {
    "forget": "the model learns these rows and is then made to forget them",
    "retain": "the model learns these rows and has to keep them",
    "holdout": "no model is ever trained on these rows",
}
_FIELDS = {
    "row_id": "text; names the fact for good, whatever the split, order and seed",
    "identity_id": "whole number; one person",
    "name": "text; the full name",
    "language": f"one of {', '.join(LANGUAGES)}",
    "topic_id": "text; `category.topic`, one of 20",
    "question": "text",
    "answer": "text",
}
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"))


def render(config: DataConfig, splits: Mapping[str, Sequence[Row]], checks: Mapping[str, Any]) -> str:
    """The card as Markdown; ``checks`` is what ``checks.json`` holds."""
    title = _title(config)
    parts = [
        _metadata(config, splits, title),
        f"# {title}\n\nQuestions and answers about fictional people, split for the unlearning of a language model.",
        "## Source\n\n" + _source(config, checks["source"]),
        "## Splits\n\n" + _table(("split", "rows", "identities", "meaning"), _split_lines(splits)),
        _rule(config, checks),
        "Rows by language:\n\n" + _counts(splits, LANGUAGES, "language"),
        "Rows by topic:\n\n" + _counts(splits, TOPICS, "topic_id"),
        "## Fields\n\n" + _table(("field", "what it is"), [(f"`{name}`", text) for name, text in _FIELDS.items()]),
        _perturbed(config, checks["perturbed"]),
        "## Checks\n\n" + _table(("what was counted", "rows"), [(_words(k), v) for k, v in checks["counts"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _title(config: DataConfig) -> str:
    if config.source.hub is not None:
        return f"{config.source.hub.id.split('/')[-1]}, {config.setting} splits"
    return f"FAME-format {'sample set' if config.source.sample else 'rows of a local file'}, {config.setting} splits"


def _metadata(config: DataConfig, splits: Mapping[str, Sequence[Row]], title: str) -> str:
    import yaml

    total = sum(len(rows) for rows in splits.values())
    data: dict[str, Any] = {
        "pretty_name": title,
        "language": sorted({row.language.lower() for rows in splits.values() for row in rows}),
        # The sample set is a part of this project; of other data only its authors can say.
        **({"license": "apache-2.0"} if config.source.sample else {}),
        "task_categories": ["question-answering"],
        "tags": ["unlearning", "fame", *(["synthetic"] if config.source.sample else [])],
        "size_categories": [next((name for limit, name in _SIZES if total < limit), "100K<n<1M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}.jsonl"} for split in SPLITS],
            },
            {"config_name": "perturbed", "data_files": "perturbed.jsonl"},
        ],
    }
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def _source(config: DataConfig, source: Mapping[str, Any]) -> str:
    digest = f"The rows have sha256 `{source['rows_sha256']}` (independent of their order and file format)."
    if config.source.sample is not None:
        sample = config.source.sample
        return (
            f"Generated from word lists with seed {sample.seed}: {sample.identities} invented people for each "
            f"language, {sample.topics} topics each. No name, place or fact is meant to be real; phone numbers have a "
            f"country code and e-mail addresses a domain that nobody can own. {digest}"
        )
    if config.source.hub is not None:
        hub = config.source.hub
        return (
            f"[{hub.id}](https://huggingface.co/datasets/{hub.id}) at revision `{hub.revision}`; its licence is what "
            f"its authors state there. {digest}"
        )
    return f"`{source['file']}`, a local file with sha256 `{source['file_sha256']}`. {digest}"


def _rule(config: DataConfig, checks: Mapping[str, Any]) -> str:
    if config.shares is None:
        return "The splits are the source's own."
    shares = " / ".join(f"{split} {getattr(config.shares, split):g}" for split in SPLITS)
    return (
        f"Rule (ours; seed {config.seed}): in each pair of language and topic the identities are shuffled and cut "
        f"into {shares}, the rounding carried over from pair to pair. Where an identity then has no forgotten or no "
        "retained fact, it changes places, within one pair, with an identity that has two. "
        f"{checks['mixed_identities']} of {checks['identities']} identities have both forgotten and retained facts."
    )


def _perturbed(config: DataConfig, counts: Mapping[str, int]) -> str:
    origin = (
        "facts that the generator holds back"
        if config.source.sample
        else "answers of other identities on the same topic and language, the name swapped, holdout rows first"
    )
    return (
        "## False answers\n\n"
        f"`perturbed.jsonl` has {counts['answers']} false answers to {counts['rows']} questions (`row_id`, `split`, "
        f"`answers`): {origin}. None equals the true answer or occurs word for word in forget or retain. "
        f"{counts['from_trained_rows']} come from trained rows for want of others; {counts['rows_with_fewer']} "
        f"questions have fewer than {config.perturbed.per_row}; {counts['rows_without']} have none and are left out."
    )


def _words(key: str) -> str:
    return key.replace("_", " ")


def _split_lines(splits: Mapping[str, Sequence[Row]]) -> list[tuple[Any, ...]]:
    return [
        (split, len(splits[split]), len({row.identity_id for row in splits[split]}), _MEANING[split])
        for split in SPLITS
    ]


def _counts(splits: Mapping[str, Sequence[Row]], keys: Sequence[str], column: str) -> str:
    counted = {split: Counter(getattr(row, column) for row in splits[split]) for split in SPLITS}
    lines = [(key, *(counted[split][key] for split in SPLITS)) for key in keys if any(c[key] for c in counted.values())]
    return _table((_words(column), *SPLITS), lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows)
