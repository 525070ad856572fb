"""The dataset card of a data artifact. It holds counts and rules, and no row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from core.licences import LicenceId
from core.markdown import counted, escape, table
from datasets_prep.checks import MEANING
from datasets_prep.config import DataConfig, HubSource, Request, Selection
from datasets_prep.rows import Rows
from datasets_prep.schema import FAME, HOLDOUT, LANGUAGES, SPLITS, CheckFacts, DataFacts, FalseAnswerFacts
from datasets_prep.splits import Split, cells

# The sample set is part of this project. Only the authors of other data can state their licence.
SAMPLE_LICENCE: LicenceId = "apache-2.0"
_MEANING = {
    "forget": "the model learns these rows and is then made to forget them",
    "retain": "the model learns these rows and has to keep them",
    "holdout": "no model is ever trained on these rows",
    "unrehearsed": "retain rows that the unlearning does not get, to see what it does to facts that nobody gave it",
}
_FIELDS = {
    "row_id": "text; names the fact for good, whatever the split, order and seed",
    "identity_id": "whole number or text; one person (null where the source does not say, as in the next three)",
    "name": "text; the full name",
    "language": "code of two letters",
    "topic_id": "text",
    "question": "text",
    "answer": "text",
}
_FAME_FIELDS = {"language": f"FAME has {', '.join(LANGUAGES)}", "topic_id": "in FAME `category.topic`, one of 20"}
_UNSAID = "–"
_ONE = {"identities": "identity", "topics": "topic", "languages": "language", "rows": "row"}  # of a selection
_SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
)


def render(config: DataConfig, rows: Rows, split: Split, facts: DataFacts) -> str:
    """The card as Markdown; ``facts`` are those of ``checks.json``."""
    title = _title(config)
    parts = [
        _metadata(config, rows, title),
        f"# {title}\n\nQuestions and answers, split for the unlearning of a language model.",
        "## Source\n\n" + _source(config, facts),
        "## Splits\n\n" + table(("split", "rows", "identities", "meaning"), _split_lines(rows, split)),
        *(f"Left out: {what.replace('_', ' ')}, because there are {why}." for what, why in facts.left_out.items()),
        _rule(config, rows, split, facts),
        *_counts(rows, split),
        "## Fields\n\n" + table(("field", "what it is"), _fields(config)),
        _perturbed(config, facts.perturbed),
        _checks(facts.checks),
    ]
    return "\n\n".join(parts) + "\n"


def _fields(config: DataConfig) -> list[tuple[str, str]]:
    """Each field with its meaning; FAME and data in its format get more detail."""
    is_fame = config.source.sample is not None or (config.source.hub is not None and config.source.hub.id == FAME)
    details = _FAME_FIELDS if is_fame else {}
    return [(f"`{name}`", f"{text}; {details[name]}" if name in details else text) for name, text in _FIELDS.items()]


def _title(config: DataConfig) -> str:
    if config.source.hub is not None:
        return f"{config.source.hub.id.split('/')[-1]}, {config.setting} splits"
    return f"{'FAME-format sample set' if config.source.sample else 'Rows of a local file'}, {config.setting} splits"


def _metadata(config: DataConfig, rows: Rows, title: str) -> str:
    import yaml

    languages = sorted(language.lower() for language in rows.codes("language")[1])
    data: dict[str, Any] = {
        "pretty_name": title,
        **({"language": languages} if languages else {}),
        **({"license": SAMPLE_LICENCE} if config.source.sample else {}),
        "task_categories": ["question-answering"],
        "tags": ["unlearning", *(["fame", "synthetic"] if config.source.sample else [])],
        "size_categories": [next((name for limit, name in _SIZES if len(rows) < limit), "10M<n<100M")],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"{split}.jsonl"} for split in SPLITS],
            },
            {"config_name": "perturbed", "data_files": "perturbed.jsonl"},
        ],
    }
    return f"---\n{yaml.safe_dump(data, sort_keys=False, allow_unicode=True)}---"


def _source(config: DataConfig, facts: DataFacts) -> str:
    source = facts.source
    digest = f"The rows have sha256 `{source.rows_sha256}` (independent of their order and file format)."
    if facts.splits_left_out:
        digest += f" Splits of the source that are not used: {_sizes(facts.splits_left_out)}."
    if facts.rows_read_before:
        digest += f" Rows of a subset that an earlier one has too, which count once: {facts.rows_read_before}."
    if facts.rows_outside_part:
        others = "other row is" if facts.rows_outside_part == 1 else "other rows are"
        digest += f" They are a part of the source; {facts.rows_outside_part:,} {others} not used."
    if facts.real_world:
        digest += f" Questions about the real world, in no split: {_sizes(facts.real_world)}."
    if facts.rows_forgotten:
        digest += (
            " Rows beside the splits that are only measured, since earlier releases were made to forget them: "
            f"{facts.rows_forgotten} (`forgotten.jsonl`)."
        )
    if facts.paraphrases_without_row:
        digest += f" Paraphrases that belong to no row and are left out: {facts.paraphrases_without_row}."
    if config.source.sample is not None:
        sample = config.source.sample
        return (
            f"Generated from word lists with seed {sample.seed}: {sample.identities} invented people for each "
            f"language, {counted(sample.topics, 'topic')} each. No name, place or fact is meant to be real; phone "
            f"numbers have a country code and e-mail addresses a domain that nobody can own. {digest}"
        )
    if config.source.hub is not None:
        hub = config.source.hub
        return (
            f"[{hub.id}](https://huggingface.co/datasets/{hub.id}) at revision `{hub.revision}`"
            f"{_subsets(hub)}; its licence is what its authors state there. {digest}"
        )
    return f"`{source.file}`, local, with sha256 `{source.file_sha256}`. {digest}"


def _subsets(hub: HubSource) -> str:
    if hub.subsets is None:
        return f", subset {escape(hub.config)}" if hub.config else ""
    listed = (f"{escape(' and '.join(names))} ({split.replace('_', ' ')})" for split, names in hub.subsets if names)
    return f", subsets {', '.join(listed)}"


def _sizes(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{escape(name)} ({counted(rows, 'row')})" for name, rows in splits.items())


def _rule(config: DataConfig, rows: Rows, split: Split, facts: DataFacts) -> str:
    have = "has" if facts.mixed_identities == 1 else "have"
    of = counted(facts.identities, "identity", "identities")
    mixed = f"{facts.mixed_identities} of {of} {have} both forgotten and retained facts." if facts.identities else ""
    return f"{_drawn(config, rows, split)} {mixed}".rstrip()


def _drawn(config: DataConfig, rows: Rows, split: Split) -> str:
    if config.setting == "given":
        return "The splits are the source's own."
    if config.request is not None:
        return f"Rule: {_request(config.request, config.seed, _unit_of_holdout(rows, split))}"
    assert config.shares is not None  # noqa: S101 (the configuration requires it)
    shares = " / ".join(f"{split} {share:g}" for split, share in config.shares)
    if config.setting == "entity":
        return (
            f"Rule (FAME's; seeds {config.seed} and {config.seed + 1}): in each language the identities are shuffled "
            f"and cut into {shares}, counts rounded, so that all facts of an identity are in one split. Seed 42 with "
            "0.64 / 0.16 / 0.2 of the complete FAME is the published assignment."
        )
    return (
        f"Rule (ours; seed {config.seed}): in each pair of language and topic the identities are shuffled and cut "
        f"into {shares}, the rounding carried over from pair to pair. Where an identity then has no forgotten or no "
        "retained fact, it changes places, within one pair, with an identity that has two."
    )


def _unit_of_holdout(rows: Rows, split: Split) -> str:
    """What was drawn as a whole: identities, unless one has other rows too."""
    identity, _ = rows.codes("identity_id")
    shared = np.intersect1d(identity[split == HOLDOUT], identity[split != HOLDOUT])
    return "fact" if shared.size else "identity"


def _request(request: Request, seed: int, unit: str) -> str:
    """The request as a sentence, with counts and without names."""
    rule = f"what the request lists is forgotten ({_selections(request.forget)}), and all other rows are retained"
    if isinstance(request.holdout, float):
        return f"{rule}, except for {request.holdout:g} of them, drawn with seed {seed} by {unit}, which are held out."
    return (
        f"{rule}, except for a list that is held out ({_selections(request.holdout)})."
        if request.holdout
        else f"{rule}."
    )


def _selections(selections: Sequence[Selection]) -> str:
    def one(selection: Selection) -> str:
        keys = selection.model_dump(exclude_none=True)
        listed = [counted(len(values), _ONE[name], name) for name, values in keys.items() if name != "file"]
        return " and ".join([*listed, *(["the rows of a file"] if "file" in keys else [])])

    return "; ".join(map(one, selections))


def _perturbed(config: DataConfig, counts: FalseAnswerFacts) -> str:
    if config.source.sample:
        origin = "facts that the generator holds back"
        learnt = "None equals the true answer or occurs word for word in forget or retain."
        unseen = ""
    else:
        origin = (
            "the source's own where it has some, then answers to holdout rows of other identities on the same topic "
            "and language, the name swapped, then mixtures of words"
        )
        learnt = (
            "None equals the true answer or a trained one to the same question. None that says whom it is about "
            "occurs word for word in forget or retain; one that is only a value may be an answer about others there."
        )
        unseen = ", nor from holdout rows, since an unlearning may train on its guides"
    return (
        "## False answers\n\n"
        f"`perturbed.jsonl` has {counted(counts.answers, 'false answer')} to {counted(counts.rows, 'question')} "
        f"(`row_id`, `split`, `answers`): {origin}. {learnt} Mixtures, in which each word of the fact is exchanged for "
        f"one of the same kind from the answer to a retained row: {counts.mixed}. From trained rows for want of "
        f"others: {counts.from_trained_rows}; such a one is likelier to a trained model than one it never saw. "
        f"Questions with fewer than {config.perturbed.per_row}: {counts.rows_with_fewer}; with none, which are left "
        f"out: {counts.rows_without}.\n\n"
        f"`guides.jsonl` has {counts.guides} more, to guide the unlearning and judge nothing; none of them comes from "
        f"trained rows, since a level that those set would be too low{unseen}. Mixtures of words as known as those of "
        "the fact, with one made of two in the place of a word that no retained row has: "
        f"{counts.guides_mixed}."
    )


def _checks(checks: Mapping[str, CheckFacts]) -> str:
    lines = [
        (MEANING[name], str(cases.count), escape("; ".join(cases.first[:3])) if cases.count else "")
        for name, cases in checks.items()
    ]
    return "## Checks\n\n" + table(("what was looked for", "found", "first cases"), lines)


def _split_lines(rows: Rows, split: Split) -> list[tuple[str, str, str, str]]:
    identity, _ = rows.codes("identity_id")
    lines = []
    for index, name in enumerate(SPLITS):
        of_split = split == index
        identities = len(np.unique(identity[of_split & (identity >= 0)]))
        unsaid = of_split.any() and not identities
        lines.append((name, str(of_split.sum()), _UNSAID if unsaid else str(identities), _MEANING[name]))
    return lines


def _counts(rows: Rows, split: Split) -> list[str]:
    """Rows by language, and by topic and language, as many numbers as there are splits."""
    parts = []
    by_language, by_topic = count_cells(rows, split)
    if set(by_language) != {None}:
        lines = [(language or _UNSAID, *map(str, counts)) for language, counts in by_language.items()]
        parts.append("Rows by language:\n\n" + table(("language", *SPLITS), lines))
    if {topic for _, topic in by_topic} != {None}:
        languages = list(by_language)
        topics = list(dict.fromkeys(topic for _, topic in by_topic))
        none = (0,) * len(SPLITS)
        lines = [
            (
                escape(topic or _UNSAID),
                *(" / ".join(map(str, by_topic.get((language, topic), none))) for language in languages),
            )
            for topic in topics
        ]
        head = ("topic", *(language or ("rows" if len(languages) == 1 else _UNSAID) for language in languages))
        parts.append(f"Rows by topic and language, as {' / '.join(SPLITS)}:\n\n" + table(head, lines))
    return parts


SplitCounts = dict[Any, tuple[int, ...]]


def count_cells(rows: Rows, split: Split) -> tuple[SplitCounts, SplitCounts]:
    """Rows by split, for each language and for each pair of language and topic."""
    by_language: dict[Any, Any] = {}
    by_topic: SplitCounts = {}
    for language, topic, places in cells(rows):
        counts = np.bincount(split[places.start : places.stop], minlength=len(SPLITS))
        by_topic[language, topic] = tuple(counts.tolist())
        by_language[language] = by_language.get(language, 0) + counts
    return {language: tuple(counts.tolist()) for language, counts in by_language.items()}, by_topic
