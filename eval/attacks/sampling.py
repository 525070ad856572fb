"""What sampled answers say that the greedy one hides: leak@k (arXiv 2511.04934).

A sample is a hit when it holds all words of the answer that none of its false answers has: the fact, without the form.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from core.words import plain_words
from eval.audit_config import Sampling
from eval.statistics.formulas import Floats
from eval.statistics.intervals import Interval

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel


def distinctive_words(answer: str, false_answers: Iterable[str]) -> set[str]:
    """The words of ``answer`` that are in none of its false answers; empty where no word tells them apart."""
    return set(plain_words(answer)).difference(*map(plain_words, false_answers))


def states_fact(text: str, distinctive: set[str]) -> bool:
    """Whether ``text`` holds every distinctive word, in any order and place."""
    return distinctive.issubset(plain_words(text))


def leak_at_k(samples: ArrayLike, hits: ArrayLike, k: int) -> Floats:
    """1 - C(n - c, k) / C(n, k): the probability that k of a row's n samples hold one of its c hits.

    As a product of n - c < i <= n over (1 - k / i), summed in logarithms: no binomial is ever formed.
    """
    n, c = np.asarray(samples), np.asarray(hits)
    return np.array([_leak(int(a), int(b), k) for a, b in np.broadcast(n, c)])


def _leak(n: int, c: int, k: int) -> float:
    if not 0 <= c <= n or not 1 <= k <= n:
        raise ValueError(f"{c} hits in {n} samples, and k = {k}: hits lie in 0..n, k in 1..n")
    if n - c < k:
        return 1.0
    return float(-np.expm1(np.log1p(-k / np.arange(n - c + 1, n + 1)).sum()))


def leak_interval(samples: ArrayLike, hits: ArrayLike, k: int) -> Interval:
    """95 % Clopper-Pearson interval of the mean leak@k over these rows, from the noise of sampling alone.

    A row's n samples are n // k independent groups of k, each a hit or not, and all rows together that many trials.
    Rows differ in their probabilities, which makes a sum of trials vary less than equal ones (Hoeffding 1956), and the
    mean over all ways to group varies less than one way. So the interval is too wide rather than too narrow.
    """
    leaks = leak_at_k(samples, hits, k)
    trials = float((np.broadcast_to(np.asarray(samples), leaks.shape) // k).sum())
    return clopper_pearson(float(leaks.mean()) * trials, trials)


def clopper_pearson(successes: float, trials: float, confidence: float = 0.95) -> Interval:
    """The exact interval of a probability; ``successes`` may lie between whole numbers."""
    from scipy.stats import beta

    tail = (1 - confidence) / 2
    low = 0.0 if successes <= 0 else float(beta.ppf(tail, successes, trials - successes + 1))
    high = 1.0 if successes >= trials else float(beta.ppf(1 - tail, successes + 1, trials - successes))
    return low, high


def sample_answers(
    model: PreTrainedModel,
    tokenizer: Any,
    prompt: Sequence[int],
    config: Sampling,
    *,
    max_new_tokens: int,
    batch_rows: int,
    seed: int,
) -> list[str]:
    """``config.samples`` answers to one prompt, which is computed once; at most ``batch_rows`` go through at a time."""
    import torch
    from transformers import DynamicCache

    options = _options(model, tokenizer, config, max_new_tokens)
    ids = torch.tensor([list(prompt)], device=model.device)
    texts: list[str] = []
    with torch.inference_mode(), torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        shared = DynamicCache(config=model.config)
        model(input_ids=ids[:, :-1], past_key_values=shared, logits_to_keep=1)
        while len(texts) < config.samples:
            size = min(batch_rows, config.samples - len(texts))
            cache = copy.deepcopy(shared)
            cache.batch_repeat_interleave(size)
            repeated = ids.expand(size, -1).contiguous()
            output = model.generate(  # type: ignore[operator]
                input_ids=repeated,
                attention_mask=torch.ones_like(repeated),
                past_key_values=cache,
                generation_config=options,
            )
            texts += tokenizer.batch_decode(output[:, ids.shape[1] :], skip_special_tokens=True)
    return texts


def _options(model: PreTrainedModel, tokenizer: Any, config: Sampling, max_new_tokens: int) -> GenerationConfig:
    """Nothing of the checkpoint's own settings but the tokens that end a turn."""
    from transformers import GenerationConfig

    ends = model.generation_config.eos_token_id  # type: ignore[union-attr]
    ends = list(ends) if isinstance(ends, list | tuple) else [ends]
    return GenerationConfig(
        do_sample=True,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=0,
        max_new_tokens=max_new_tokens,
        eos_token_id=sorted({*ends, tokenizer.eos_token_id} - {None}),
        pad_token_id=tokenizer.eos_token_id,
    )


def row_seed(seed: int, row_id: str) -> int:
    """A seed of the row's own, so that its samples do not depend on which other rows are there."""
    return zlib.crc32(f"{seed}|{row_id}".encode())
