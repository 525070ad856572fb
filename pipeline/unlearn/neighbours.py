"""The `neighbours` stage: questions like the given ones, which nobody gave, with base's answers, and continuations.

Facts that an unlearning does not rehearse lose a quarter of their probability (docs/measurements/unlearning-trials.md),
and nobody can give all that a model knows. Base can be asked: the given questions with other people's names hold what
lies around them. Some are questions that nobody asked before, some are of rows that were held back; either way only
base's answer is used, and those of unrehearsed rows are named, so that these rows are read apart. The answer is the
likeliest that states no forgotten fact. How base goes on in the place of the forgotten facts themselves is asked too
(:mod:`pipeline.unlearn.continuations`).
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

import torch

from core import onednn
from core.errors import DataError, ModelError
from core.loading import load_model
from core.unlearning import NeighbourFacts
from core.words import words_and_pairs
from datasets_prep.chat import load_tokenizer
from datasets_prep.perturb import swap_name
from datasets_prep.schema import Row, read_forgotten, read_perturbed, read_rows, write_rows
from datasets_prep.text import fact_digest
from pipeline.train.fit import memory_limits
from pipeline.unlearn.asking import likeliest_answers
from pipeline.unlearn.config import Neighbours
from pipeline.unlearn.continuations import begin, continuations, fact_words, write_continuations
from pipeline.unlearn.people import (
    Questions,
    about,
    about_others,
    is_about,
    named,
    names_by_language,
    topics_tell_facts,
)

FILE = "neighbours.jsonl"
SO_FAR = "so-far.jsonl"  # answers of a run that was cut off; no part of the artifact
STATED = 0.5
"""An answer states a fact if it holds more than this share of the words that tell the fact.

With half of two words, every other fact of that year or that town would be dropped, and lose what it was asked for.
"""


class Question(NamedTuple):
    """A question of a given row, asked about somebody else."""

    language: str | None
    name: str
    topic_id: str | None
    text: str


@memory_limits()
def run(config: Neighbours, inputs: Mapping[str, Path], out: Path) -> NeighbourFacts:
    """Ask ``inputs["base"]`` about the neighbourhood of ``inputs["data"]``.

    Writes ``neighbours.jsonl`` and ``continuations.jsonl``.
    Raises DataError if nobody else can be asked the given questions, ModelError if base answers nothing, and
    SystemLimitError if memory runs out.
    """
    data = inputs["data"]
    given = given_rows(data)
    refuse_nobody(given)
    questions = list(islice(neighbouring(given, random.Random(config.seed)), config.questions))
    row_of = {row.row_id: row for row in given}
    # The earlier ones base has forgotten: nobody asks for them, and no answer may state them.
    forget, retain, earlier = ([row_of[row.row_id] for row in part] for part in _parts(data))
    tokenizer = load_tokenizer(inputs["base"] / "model")
    # A training's own attention is for packed rows, and cannot generate.
    model = load_model(inputs["base"] / "model", dtype=torch.float32)
    model.to("cuda" if torch.cuda.is_available() else "cpu")  # type: ignore[arg-type]
    onednn.install(model)
    so_far = out / SO_FAR
    texts = [question.text for question in questions]
    answers = likeliest_answers(model, tokenizer, texts, config.max_new_tokens, so_far)
    if not any(answers):
        raise ModelError(
            f"unlearn.neighbours: base ended none of its answers to {len(questions)} questions within "
            f"{config.max_new_tokens} tokens, so there is nothing to rehearse. Raise unlearn.neighbours.max_new_tokens "
            "if its answers are longer. Else base does not end a turn as its chat template does: give the template "
            "that it was trained with (model.chat_template), train it for longer, or take neighbours out."
        )
    guides = {row.row_id: row.answers for row in read_perturbed(data / "guides.jsonl")}
    facts = forgotten_facts(forget, guides, retain)
    alike = _by_topic([*forget, *retain])
    facts += forgotten_facts(earlier, {row.row_id: alike[row.language, row.topic_id] for row in earlier}, retain)
    near = FactsByWord(facts).near
    begun = begin(tokenizer, forget, guides)
    others = about_others(tokenizer, begun, forget, retain, earlier)
    continued = continuations(model, tokenizer, begun, others, guides, config.max_new_tokens)
    continued = [each for each in continued if not states_a_fact(each.text, near(each.text), row_of[each.of].question)]
    rows, empty, stating = [], 0, 0
    for question, found in zip(questions, answers, strict=True):
        answer = next((each for each in found if not states_a_fact(each, near(each), question.text)), None)
        if answer:
            row_id = f"neighbour-{fact_digest(question.text, answer)}"
            rows.append(Row(row_id, None, question.name, question.language, question.topic_id, question.text, answer))
        elif found:
            stating += 1
        else:
            empty += 1
    so_far.unlink(missing_ok=True)
    write_rows(out / FILE, rows)
    write_continuations(out, continued)
    unrehearsed = read_rows(data / "unrehearsed.jsonl")
    everybody = named([*given, *unrehearsed])
    kept = Questions(rows, everybody)
    return NeighbourFacts(
        asked=len(questions),
        kept=len(rows),
        empty=empty,
        stating_a_forgotten_fact=stating,
        continued=len(continued),
        of_unrehearsed=[
            row.row_id
            for row in everybody[len(given) :]
            if (kept.has_about(row, row.name) if row.name else kept.has(row))
        ],
    )


def _by_topic(rows: Sequence[Row]) -> defaultdict[tuple[str | None, str | None], list[str]]:
    """The answers by language and topic, none without one: they have the form of a row's on it, and not its fact."""
    answers: defaultdict[tuple[str | None, str | None], list[str]] = defaultdict(list)
    for row in rows:
        if row.topic_id:
            answers[row.language, row.topic_id].append(row.answer)
    return answers


def given_rows(data: Path) -> list[Row]:
    """The rows of a data artifact whose questions are asked about others, with the names of whom they are about."""
    return named(list(chain(*_parts(data))))


def _parts(data: Path) -> tuple[list[Row], list[Row], list[Row]]:
    return read_rows(data / "forget.jsonl"), read_rows(data / "retain.jsonl"), read_forgotten(data)


def neighbouring(given: Sequence[Row], rng: random.Random) -> Iterator[Question]:
    """All questions of given rows with the name of another person of the same language.

    First everything is asked once, in random order, and then again in other words, where given rows have some: what
    base answers depends on them (docs/decisions/0103).

    Left out is what a given row asks already, however a name is spelled: the same words, or about the same person on
    the same topic if topics tell facts.
    """
    for _, found in groupby(_questions(given), key=itemgetter(0)):
        questions = [question for _, question in found]
        rng.shuffle(questions)
        yield from questions


def _questions(given: Sequence[Row]) -> Iterator[tuple[int, Question]]:
    """Each question with the place of its wording, in their order."""
    names, told, asked = names_by_language(given), Questions(given, given), Questions((), given, by_topic=False)
    for place, row in _by_wording(given):
        for name in names[row.language]:
            if not (told.has_about(row, name) or asked.has_about(row, name) or is_about(row.question, name)):
                other = about(row, name)
                yield place, Question(other.language, name, other.topic_id, other.question)
                asked.add(other)


def _by_wording(given: Sequence[Row]) -> list[tuple[int, Row]]:
    """The rows that name whom they ask about, by the place of their wording among those of the topic.

    The commonest has place 0, and so have all where topics tell no facts, as each wording asks for something else then.
    """
    rows = [row for row in given if row.name and row.name in row.question]
    if not topics_tell_facts(given):
        return [(0, row) for row in rows]
    wordings = [(row.language, row.topic_id, swap_name(row.question, str(row.name), "")) for row in rows]
    places: dict[tuple[str | None, str | None, str], int] = {}
    of_topic: Counter[tuple[str | None, str]] = Counter()
    for language, topic, text in (wording for wording, _ in Counter(wordings).most_common()):
        places[language, topic, text] = of_topic[language, topic] if topic else 0
        if topic:
            of_topic[language, topic] += 1
    return sorted(((places[wording], row) for wording, row in zip(wordings, rows, strict=True)), key=itemgetter(0))


def refuse_nobody(given: Sequence[Row]) -> None:
    """Raise DataError, with what is missing, if none of the questions can be asked about somebody else."""
    if why := nobody_else(given):
        raise DataError(
            f"unlearn.neighbours: nobody else can be asked the given questions: {why}. Take neighbours out; without "
            "them, facts that nobody gave lose more."
        )


def nobody_else(given: Sequence[Row]) -> str | None:
    """Why no question can be asked about somebody else, in words; None if one can."""
    if next(_questions(given), None):
        return None
    names = names_by_language(given)
    people = [row for row in given if row.name]
    told = [row for row in people if row.name and row.name in row.question]
    if not people:
        return "neither does a column name people (`data.source.columns.name`), nor do questions have a name in common"
    if not told:
        return "the name of whom a row is about is not in its question"
    if all(len(names[row.language]) == 1 for row in told):
        return "all rows of a language are about one person"
    return "what is asked about one person is given about everybody else too"


class Fact(NamedTuple):
    """The words of a forget row's answer that tell its fact, and those of each retained answer in its language.

    None are of the ``name`` of whom the row is about, which is None where the row does not tell.
    """

    words: set[str]
    retained: Sequence[set[str]]
    name: str | None


def forgotten_facts(forget: Sequence[Row], false: Mapping[str, Sequence[str]], retain: Sequence[Row]) -> list[Fact]:
    """The fact of each forget row that has words to tell it; ``false`` are the false answers by ``row_id``."""
    retained: dict[str | None, list[set[str]]] = {}
    for row in retain:
        retained.setdefault(row.language, []).append(fact_words(row, ()))
    facts = []
    for row in forget:
        if words := fact_words(row, false.get(row.row_id, ())):
            facts.append(Fact(words, retained.get(row.language, []), row.name))
    return facts


def states_a_fact(answer: str, facts: Sequence[Fact], question: str) -> bool:
    """Whether ``answer`` holds more than half of the words of one of the facts, which no retained answer has together.

    A retained fact may be of the same year or in the same town: what it has in common with a forgotten one is kept. But
    not where ``question`` or answer name whom the forgotten one is about, or nothing tells whom: it may be that one.
    """
    words = set(words_and_pairs(answer))
    for fact in facts:
        stated = fact.words & words
        if len(stated) > STATED * len(fact.words):
            own = fact.name is None or is_about(f"{question} {answer}", fact.name)
            if own or not any(stated <= retained for retained in fact.retained):
                return True
    return False


class FactsByWord:
    """Facts by their words: of many thousand earlier ones, an answer has to be compared with few."""

    def __init__(self, facts: Sequence[Fact]) -> None:
        self._facts = facts
        self._places: dict[str, list[int]] = {}
        common = Counter(word for fact in facts for word in fact.words)
        for place, fact in enumerate(facts):
            rarest = sorted(fact.words, key=lambda word: common[word])
            # More than STATED of all words are not without one of these.
            for word in rarest[: math.ceil((1 - STATED) * len(rarest))]:
                self._places.setdefault(word, []).append(place)

    def near(self, answer: str) -> list[Fact]:
        """The facts that ``answer`` may state: it does not have enough words of any other."""
        places = {place for word in set(words_and_pairs(answer)) for place in self._places.get(word, ())}
        return [self._facts[place] for place in places]
