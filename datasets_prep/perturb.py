"""False answers of the right form, for truth ratio and multiple choice.

They must not occur in training: with answers of trained identities as distractors even a model that never saw the
true answer prefers the false ones. So they come from facts that the sample set holds back or, for other sources, from
another identity's holdout row on the same topic and language, the name swapped. Only where these do not suffice are
trained rows used, and counted.
"""

from __future__ import annotations

import random
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence

from datasets_prep.config import Perturbed
from datasets_prep.schema import SPLITS, PerturbedRow, Row

Splits = Mapping[str, Sequence[Row]]


def _dotted(name: str) -> str:
    """A name as it stands in e-mail addresses: ``élise du pont`` becomes ``elise.du.pont``."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", name.lower()) if not unicodedata.combining(c))
    return ".".join(plain.split())


def swap_name(answer: str, old: str, new: str) -> str:
    """The answer with the full name ``old`` replaced by ``new``, also in its form for e-mail addresses."""
    swapped = answer.replace(old, new)
    # A single word in lower case could stand inside any other word.
    return swapped.replace(_dotted(old), _dotted(new)) if "." in _dotted(old) else swapped


def _chosen_rows(splits: Splits, config: Perturbed, seed: int) -> list[tuple[str, Row]]:
    """Every forget and holdout row, and ``retain_rows`` retain rows drawn by the seed, in the order of the splits."""
    retain = list(splits["retain"])
    drawn = random.Random(f"{seed}|perturbed").sample(range(len(retain)), min(config.retain_rows, len(retain)))
    picked = {**splits, "retain": [retain[i] for i in sorted(drawn)]}
    return [(split, row) for split in SPLITS for row in picked[split]]


def _swapped(row: Row, donors: Sequence[Row], rng: random.Random) -> list[str]:
    """The donors' answers with the row's name, shuffled; a donor that does not name itself would stay its own."""
    usable = [d for d in donors if d.name != row.name and (d.name in d.answer or row.name not in row.answer)]
    return [swap_name(donor.answer, donor.name, row.name) for donor in rng.sample(usable, len(usable))]


def perturb(
    splits: Splits, held_back: Mapping[str, Sequence[str]], config: Perturbed, seed: int
) -> tuple[list[PerturbedRow], list[PerturbedRow], dict[str, int]]:
    """False answers for the chosen rows: those of the evaluation, those that guide the unlearning, and their counts.

    ``held_back`` maps a ``row_id`` to answers that occur in no row. No answer equals the true one, occurs twice (so the
    two lists share none for a row) or occurs word for word in the training rows. The evaluation is served first. Rows
    that get none are left out and counted as ``rows_without``.
    """
    trained = {row.answer for split in ("retain", "forget") for row in splits[split]}
    holdout: dict[tuple[str, str], list[Row]] = defaultdict(list)
    others: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for split in SPLITS:
        for row in splits[split]:
            (holdout if split == "holdout" else others)[row.language, row.topic_id].append(row)
    result, guides = [], []
    counts = dict.fromkeys(("rows", "answers", "from_trained_rows", "rows_with_fewer", "rows_without", "guides"), 0)
    for split, row in _chosen_rows(splits, config, seed):
        rng = random.Random(f"{seed}|{row.row_id}")
        cell = row.language, row.topic_id
        unseen = [*held_back.get(row.row_id, ()), *_swapped(row, holdout[cell], rng)]
        candidates = [(answer, 0) for answer in unseen] + [(answer, 1) for answer in _swapped(row, others[cell], rng)]
        origin: dict[str, int] = {}
        for answer, from_trained in candidates:
            if answer != row.answer and answer not in trained:
                origin.setdefault(answer, from_trained)
        spare = list(origin)[config.per_row : config.per_row + config.for_unlearning]
        origin = dict(list(origin.items())[: config.per_row])
        counts["rows_without"] += not origin
        counts["rows_with_fewer"] += 0 < len(origin) < config.per_row
        if origin:
            counts["rows"] += 1
            counts["answers"] += len(origin)
            counts["from_trained_rows"] += sum(origin.values())
            result.append(PerturbedRow(row.row_id, split, tuple(origin)))
        if split == "forget" and spare:
            counts["guides"] += len(spare)
            guides.append(PerturbedRow(row.row_id, split, tuple(spare)))
    return result, guides, counts
