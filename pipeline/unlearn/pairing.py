"""Pairs of forget and retain rows for every training step, drawn before the training begins.

The whole schedule is one list, so shards, restarts and other machines see the same pairs, and its record
(`pairing.jsonl`) is what was trained on.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from core.errors import DataError


@dataclass(frozen=True)
class Pair:
    """Indices of one forget row (None if the method trains on retain rows alone) and of its retain rows.

    ``alternate`` is the index of a false answer among those to the forget row's question; None if none is trained on.
    """

    epoch: int
    forget: int | None
    retain: tuple[int, ...]
    alternate: int | None = None


def pair_rows(forget_rows: int, retain_rows: int, *, epochs: int, retain_per_forget: int, seed: int) -> list[Pair]:
    """``epochs`` passes over the forget rows in random order, each row with ``retain_per_forget`` retain rows.

    Retain rows are dealt from a shuffled deck, which is shuffled again when it runs out. So all of them occur equally
    often (within one), and the rows of a pair differ. Raises DataError if there are too few rows.
    """
    if forget_rows < 1 or retain_rows < retain_per_forget:
        raise DataError(
            f"{forget_rows} forget and {retain_rows} retain rows cannot be paired. Give at least one forget row and "
            f"{retain_per_forget} retain rows (unlearn.retain_rows_per_forget_row)."
        )
    rng = random.Random(seed)
    deck: list[int] = []
    pairs = []
    for epoch in range(epochs):
        for forget in rng.sample(range(forget_rows), forget_rows):
            hand: list[int] = []
            while len(hand) < retain_per_forget:
                if not deck:
                    deck = rng.sample(range(retain_rows), retain_rows)
                    deck.sort(key=lambda i: i not in hand)  # stable; what is in the hand is dealt last
                hand.append(deck.pop())
            pairs.append(Pair(epoch, forget, tuple(hand)))
    return pairs


def draw_alternates(pairs: Sequence[Pair], false_answers: Sequence[int], seed: int) -> list[Pair]:
    """The pairs with one of the ``false_answers`` that each forget row has so many of, drawn anew in each epoch.

    The stream of random numbers is its own, so the pairs are the same with and without alternates.
    """
    rng = random.Random(f"{seed}|alternates")
    return [
        pair if pair.forget is None else replace(pair, alternate=rng.randrange(false_answers[pair.forget]))
        for pair in pairs
    ]
