"""What base answers: the likeliest answers to questions, and how it goes on from the beginning of one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedTokenizerBase

from core.generation import keep_special_tokens_alone
from core.progress import report
from datasets_prep.chat import chat_example, encode, end_of_turn
from pipeline.unlearn.config import BATCH_ROWS, BEAMS


def likeliest_answers(
    model: Any, tokenizer: PreTrainedTokenizerBase, questions: Sequence[str], max_new_tokens: int, so_far: Path
) -> list[list[str]]:
    """What a beam search of width :data:`BEAMS` finds of the model's answers to each question, the likeliest first.

    Likeliest is by the mean log-probability of an answer's tokens (a length penalty of 1), so that long answers are not
    behind short ones. They are without special tokens; none is empty, and all have ended in time. Each is added to the
    file ``so_far``, so that a run that was cut off goes on from there.
    """
    prompts = []
    for question in questions:
        row = encode(tokenizer, chat_example(tokenizer, question, "x"))
        prompts.append(row.input_ids[: row.completion_start])
    end = end_of_turn(tokenizer)
    answers = _answered(so_far)
    groups = [[prompt] for prompt in prompts]
    search: Any = {"num_beams": BEAMS, "num_return_sequences": BEAMS}
    with so_far.open("a", encoding="utf-8") as file:
        for i, found in _generated(model, end, groups, max_new_tokens, done=answers.keys(), **search):
            ended = [tokens[: tokens.index(end)] for tokens in found if end in tokens]
            texts = [str(tokenizer.decode(tokens, skip_special_tokens=True)).strip() for tokens in ended]
            answers[i] = [text for text in texts if text]
            print(json.dumps([i, answers[i]]), file=file, flush=True)
    return [answers[i] for i in range(len(prompts))]


def _answered(so_far: Path) -> dict[int, list[str]]:
    """The answers in the file, by the place of their question; a line that was cut off is none."""
    answers = {}
    for line in so_far.read_text(encoding="utf-8").split("\n") if so_far.is_file() else []:
        with suppress(ValueError):
            place, texts = json.loads(line)
            answers[place] = texts
    return answers


def otherwise(
    model: Any,
    end: int,
    beginnings: Sequence[Sequence[Sequence[int]]],
    nexts: Sequence[int],
    max_new_tokens: int,
) -> list[list[list[int]]]:
    """What the model says after each beginning of a group: first one token together, then greedily each for itself.

    The first token is that with the greatest mean of the probabilities after each beginning, but never the group's one
    of ``nexts``. What is said ends with the ``end`` token, unless it has not ended in time.
    """
    said: list[list[list[int]]] = [[] for _ in beginnings]
    for i, found in _generated(model, end, beginnings, max_new_tokens, never_next=nexts):
        said[i] = [tokens[: tokens.index(end) + 1] if end in tokens else tokens for tokens in found]
    return said


def _generated(
    model: Any,
    end: int,
    prompts: Sequence[Sequence[Sequence[int]]],
    max_new_tokens: int,
    *,
    never_next: Sequence[int] = (),
    done: Collection[int] = (),
    **search: int,
) -> Iterator[tuple[int, list[list[int]]]]:
    """The index of each group of prompts with the tokens that were generated after them.

    With ``never_next`` that is one sequence a prompt, and their first token is the same; without it, as many as the
    search returns. Batches that are ``done`` are left out; the others stay as they are, since a batch's width changes
    the last bits.
    """
    model.eval()
    keep_special_tokens_alone(model)
    how = GenerationConfig(max_new_tokens=max_new_tokens, do_sample=False, eos_token_id=end, pad_token_id=end, **search)
    asked = 0
    for batch in _batches(prompts):
        if all(i in done for i in batch):
            asked += len(batch)
            continue
        lines = [(place, list(prompt)) for place, i in enumerate(batch) for prompt in prompts[i]]
        width = max(len(prompt) for _, prompt in lines)
        ids = torch.full((len(lines), width), end)
        seen = torch.zeros((len(lines), width), dtype=torch.long)
        for line, (_, prompt) in enumerate(lines):
            ids[line, width - len(prompt) :] = torch.tensor(prompt)
            seen[line, width - len(prompt) :] = 1
        group = torch.tensor([place for place, _ in lines])
        together = [_Together(width, group, [never_next[i] for i in batch])] if never_next else []
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids.to(model.device),
                attention_mask=seen.to(model.device),
                generation_config=how,
                logits_processor=LogitsProcessorList(together),
            )
        found = output[:, width:].view(len(lines), -1, output.shape[1] - width)
        for place, i in enumerate(batch):
            yield i, found[group == place].flatten(0, 1).tolist()
        asked += len(batch)
        report("asking base", asked, len(prompts))


def _batches(prompts: Sequence[Sequence[Sequence[int]]]) -> Iterator[list[int]]:
    """Indices of groups of prompts of about the same length, up to BATCH_ROWS prompts at once."""
    batch: list[int] = []
    rows = 0
    for i in sorted(range(len(prompts)), key=lambda i: max(map(len, prompts[i]))):
        if batch and rows + len(prompts[i]) > BATCH_ROWS:
            yield batch
            batch, rows = [], 0
        batch.append(i)
        rows += len(prompts[i])
    if batch:
        yield batch


class _Together(LogitsProcessor):
    """Directly after prompts of ``width`` tokens, the mean of the probabilities of each group, without one token."""

    def __init__(self, width: int, group: torch.Tensor, never_next: Sequence[int]) -> None:
        self.width = width
        self.group = group
        self.never_next = torch.tensor(never_next)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if input_ids.shape[1] > self.width:
            return scores
        group, probabilities = self.group.to(scores.device), scores.softmax(dim=1)
        total = probabilities.new_zeros(len(self.never_next), probabilities.shape[1]).index_add(0, group, probabilities)
        mean = (total / group.bincount()[:, None]).log()
        mean[torch.arange(len(mean)), self.never_next] = -torch.inf
        return mean[group]
