"""What base answers: the likeliest answers to questions, and how it goes on from the beginning of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from core.progress import report
from datasets_prep.chat import chat_example, encode
from pipeline.unlearn.config import BATCH_ROWS, BEAMS


def likeliest_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_new_tokens: int
) -> list[list[str]]:
    """What a beam search of width :data:`BEAMS` finds of the model's answers to each question, the likeliest first.

    Likeliest is by the mean log-probability of an answer's tokens (a length penalty of 1), so that long answers are not
    behind short ones. They are without special tokens; none is empty, and all have ended in time.
    """
    prompts = []
    for question in questions:
        row = encode(tokenizer, chat_example(tokenizer, question, "x"))
        prompts.append(row.input_ids[: row.completion_start])
    end = tokenizer.eos_token_id
    answers: list[list[str]] = [[] for _ in prompts]
    for i, found in _generated(model, end, prompts, max_new_tokens, num_beams=BEAMS, num_return_sequences=BEAMS):
        ended = [tokens[: tokens.index(end)] for tokens in found if end in tokens]
        texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in ended]
        answers[i] = [text for text in texts if text]
    return answers


def otherwise(
    model: Any, end: int, beginnings: Sequence[Sequence[int]], nexts: Sequence[int], max_new_tokens: int
) -> list[list[int]]:
    """After each beginning the likeliest token but its one of ``nexts``, and how the model goes on greedily.

    What it says ends with the ``end`` token, unless it has not ended in time.
    """
    said: list[list[int]] = [[] for _ in beginnings]
    for i, (tokens,) in _generated(model, end, beginnings, max_new_tokens, never_next=nexts):
        said[i] = tokens[: tokens.index(end) + 1] if end in tokens else tokens
    return said


def _generated(
    model: Any,
    end: int,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    *,
    never_next: Sequence[int] = (),
    **search: int,
) -> Iterator[tuple[int, list[list[int]]]]:
    """The index of each prompt with the tokens that were generated after it, once for each sequence of the search."""
    model.eval()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), BATCH_ROWS):
        batch = order[start : start + BATCH_ROWS]
        width = len(prompts[batch[-1]])
        ids = torch.full((len(batch), width), end)
        seen = torch.zeros((len(batch), width), dtype=torch.long)
        for line, i in enumerate(batch):
            ids[line, width - len(prompts[i]) :] = torch.tensor(prompts[i])
            seen[line, width - len(prompts[i]) :] = 1
        forbidden = [_NeverNext(width, [never_next[i] for i in batch])] if never_next else []
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=seen.to(model.device),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end,
                logits_processor=LogitsProcessorList(forbidden),
                **search,
            )
        yield from zip(batch, output[:, width:].view(len(batch), -1, output.shape[1] - width).tolist(), strict=True)
        report("asking base", start + len(batch), len(prompts))


class _NeverNext(LogitsProcessor):
    """Forbids one token in each row directly after prompts of ``width`` tokens."""

    def __init__(self, width: int, tokens: Sequence[int]) -> None:
        self.width = width
        self.tokens = tokens

    def __call__(self, input_ids: Any, scores: Any) -> torch.Tensor:
        changed: torch.Tensor = scores.clone()
        if input_ids.shape[1] == self.width:
            changed[torch.arange(len(changed)), torch.tensor(self.tokens)] = -torch.inf
        return changed
