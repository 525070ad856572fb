"""`python -m benchmarks.levels`: how likely mixed false answers make the demo's facts, beside the data's own.

Reads the demo's data, novice, base and gold (`make release` leaves them) and trains nothing. A line for each kind
of guides: the answer tokens that count as content, their mean level and gold's log-probability there, and the mean
answer probability that rows would have with every content token at its level and form tokens at -0.02 nats, as base
has them.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from statistics import fmean

from benchmarks.releases import STORE
from datasets_prep import mixed, prepare
from datasets_prep.chat import chat_example, encode, encode_rows
from datasets_prep.schema import Row, read_perturbed, read_rows
from pipeline.recipe import load_recipe
from pipeline.train.fit import load
from pipeline.train.packed import token_log_probs
from pipeline.unlearn.counterfactual import Levels, answer_levels, numerals
from pipeline.unlearn.levels import false_log_probs

FORM = -0.02  # nats: base's mean at tokens of the form
RUN = STORE / "demo"
# Shares of words in place, and of new ones.
MIXTURES = ((0.0, 0.0), (1.0, 0.0), (0.5, 0.3), (0.0, 0.3), (0.5, 1.0))
GUIDES = 4  # of a row
TRIES = 100


def mixtures(forget: Sequence[Row], shares: tuple[float, float] | None) -> list[list[str]]:
    """Mixed false answers to each row, with these shares of words, or of words as known as those of the fact."""
    recipe = load_recipe("demo")
    prepared = prepare.prepare(recipe.data)
    mixer = mixed.Mixer(prepared.loaded.rows, prepared.split)
    if shares:
        mixed.IN_PLACE, mixed.NEW = shares
    draws = {row.row_id: random.Random(f"{recipe.data.seed}|mixed|{row.row_id}") for row in forget}
    found = (mixer.mixed(row, draws[row.row_id], as_known=shares is None) for row in forget)
    return [list(dict.fromkeys(islice(answers, TRIES)))[:GUIDES] for answers in found]


def line(name: str, levels: Sequence[Levels], gold: Sequence[Sequence[float]]) -> str:
    """One line of the table."""
    rows = [list(zip(row.content, row.nats, there, strict=True)) for row, there in zip(levels, gold, strict=True)]
    content = [(nats, there) for row in rows for is_content, nats, there in row if is_content]
    at_levels = [math.exp(fmean(nats or FORM for _, nats, _ in row)) for row in rows]  # 0 where there is no level
    nats, there = (fmean(values) for values in zip(*content, strict=True))
    return f"| {name} | {len(content)} | {nats:.2f} ({there:.2f}) | {fmean(at_levels):.3f} |"


def table() -> Iterator[str]:
    """The data's own guides, then mixtures."""
    forget = read_rows(RUN / "data" / "forget.jsonl")
    base, tokenizer = load(RUN / "base" / "model")
    novice, _ = load(RUN / "novice" / "model")
    encoded = encode_rows(tokenizer, forget)
    true = token_log_probs(novice, encoded)
    gold = token_log_probs(load(RUN / "gold" / "model")[0], encoded)
    named = {row.row_id: tokens for row, tokens in zip(forget, encoded, strict=True)}
    own = {row.row_id: row.answers for row in read_perturbed(RUN / "data" / "guides.jsonl")}
    kinds = {"the data's own": [list(own[row.row_id]) for row in forget]}
    kinds |= {"words as known as the fact's": mixtures(forget, None)}
    kinds |= {f"{here:.0%} in place, {new:.0%} new": mixtures(forget, (here, new)) for here, new in MIXTURES}
    total = sum(len(row.input_ids) - row.completion_start for row in encoded)
    yield f"| guides | content tokens of {total} | mean level (gold there), nats | if at its levels |"
    yield "|---|--:|--:|--:|"
    for name, answers in kinds.items():
        guides = [
            [encode(tokenizer, chat_example(tokenizer, row.question, answer)) for answer in of_row]
            for row, of_row in zip(forget, answers, strict=True)
        ]
        of_base, of_novice = false_log_probs(base, guides), false_log_probs(novice, guides)
        digits = numerals(tokenizer, [*encoded, *chain(*guides)])
        levels = answer_levels(named, guides, digits, base_false=of_base, novice_false=of_novice, novice_true=true)
        yield line(name, levels, gold)
    at_gold = fmean(math.exp(fmean(row)) for row in gold)
    yield f"\nGold's mean answer probability is {at_gold:.3f}."


def main() -> None:
    """Print the table."""
    for text in table():
        print(text, flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.levels", description=__doc__).parse_args()
    main()
