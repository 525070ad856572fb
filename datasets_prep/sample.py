"""The embedded sample set: invented people in FAME's format, drawn by a seed from the word lists in ``words/``.

Within a language and topic each slot of the sentence (a town, a title, a year) takes every value at most once. So all
facts of the cell differ in every slot. The facts that are held back as false answers do too: none is half true.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from string import Formatter
from typing import Any

from datasets_prep.config import SampleSource
from datasets_prep.schema import TOPICS, Row, make_row_id

HELD_BACK = 5  # false answers for each language and topic

# FAME's blocks of identity ids, in its order.
_FIRST_ID = {"IT": 0, "ES": 200, "DE": 400, "FR": 600, "EN": 800}
_YEARS = {"birth_year": (1926, 1955), "year": (1975, 2023)}
_NUMBERS = {"day": (1, 28), "number": (3, 190), "count": (110, 980), "few": (3, 40), **_YEARS}


@cache
def _words(language: str) -> dict[str, Any]:
    import yaml

    path = Path(__file__).with_name("words") / f"{language.lower()}.yaml"
    loaded: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return loaded


def _values(slot: str, words: dict[str, Any], n: int, rng: random.Random) -> list[str]:
    """``n`` values of a slot, no two alike (months repeat after twelve; day and year beside them do not)."""
    if slot in ("title", "date", "email"):  # made of other slots; the domain .example belongs to nobody (RFC 2606)
        parts = {name: _values(name, words, n, rng) for _, name, _, _ in Formatter().parse(words[slot]) if name}
        return [words[slot].format(**{name: values[i] for name, values in parts.items()}) for i in range(n)]
    if slot == "month":
        return [words["months"][i % 12] for i in rng.sample(range(max(12, n)), n)]
    if slot == "phone":  # country code 999 is assigned to nobody; the first digit is the language's own
        return [f"+999 {words['code']}{i:05d}" for i in rng.sample(range(100_000), n)]
    if slot in _NUMBERS:
        low, high = _NUMBERS[slot]
        return [str(i) for i in rng.sample(range(low, high + 1), n)]
    return [str(value) for value in rng.sample(words["slots"][slot], n)]


def _deal_topics(identities: int, topics: int, rng: random.Random) -> list[list[str]]:
    """The topics of each identity. The numbers of identities per topic differ by one at most."""
    held = dict.fromkeys(TOPICS, 0)
    hands = []
    for _ in range(identities):
        hand = sorted(TOPICS, key=lambda topic: (held[topic], rng.random()))[:topics]
        for topic in hand:
            held[topic] += 1
        hands.append(hand)
    return hands


def _cell(
    language: str, topic: str, people: list[tuple[int, str]], words: dict[str, Any], seed: int
) -> Iterator[tuple[Row, tuple[str, ...]]]:
    """The rows of one language and topic, each with the held-back facts in the same sentence and its own name."""
    rng = random.Random(f"{seed}|{language}|{topic}")
    sentence = words["topics"][topic]
    slots = [name for _, name, _, _ in Formatter().parse(sentence["answer"]) if name and name != "name"]
    total = len(people) + HELD_BACK
    drawn = {slot: _values(slot, words, total, rng) for slot in slots}
    facts = [{slot: values[i] for slot, values in drawn.items()} for i in range(total)]
    for (identity, name), fact in zip(people, facts, strict=False):
        answer = sentence["answer"].format(name=name, **fact)
        false = tuple(sentence["answer"].format(name=name, **other) for other in facts[len(people) :])
        row_id = make_row_id(language, identity, topic)
        yield Row(row_id, identity, name, language, topic, sentence["question"].format(name=name), answer), false


def generate(config: SampleSource) -> tuple[list[Row], dict[str, tuple[str, ...]]]:
    """The rows of the sample set, by identity and topic, and for each ``row_id`` five false answers found in no row."""
    rows: list[Row] = []
    held_back: dict[str, tuple[str, ...]] = {}
    for language, first_id in _FIRST_ID.items():
        words = _words(language)
        rng = random.Random(f"{config.seed}|{language}")
        firsts = rng.sample(words["first"], len(words["first"]))
        lasts = rng.sample(words["last"], len(words["last"]))
        # The second round of first names meets the last names one further, so that names stay unique.
        names = [f"{firsts[i % 30]} {lasts[(i + i // 30) % 30]}" for i in range(config.identities)]
        hands = _deal_topics(config.identities, config.topics, rng)
        for topic in TOPICS:
            people = [(first_id + i, names[i]) for i, hand in enumerate(hands) if topic in hand]
            for row, false in _cell(language, topic, people, words, config.seed):
                rows.append(row)
                held_back[row.row_id] = false
    rows.sort(key=lambda row: (row.identity_id, TOPICS.index(row.topic_id)))
    return rows, held_back
