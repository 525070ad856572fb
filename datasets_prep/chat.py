"""Rows as chats, rendered by the checkpoint's own chat template, for training and scoring.

What the template puts in front of the question (a default system prompt, a date) is part of the model. The recipe's
`model` section can replace or pin it, and everyone who uses the checkpoint then renders the same prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import DataError, ModelError, panics_as_errors
from datasets_prep.schema import Encoded, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ChatExample:
    """``prompt`` is the text up to the answer; ``completion`` is the answer and the template's end of turn."""

    prompt: str
    completion: str


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ModelError if there is none, or none with a chat template."""
    from transformers import AutoTokenizer

    try:
        with panics_as_errors():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception as error:  # the Rust tokenizers raise bare Exception
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: has no usable tokenizer ({reason}). Give a complete model folder.") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{folder}: the tokenizer has no chat template. Give one as model.chat_template.")
    return tokenizer


def _render(tokenizer: Any, messages: Sequence[Mapping[str, str]], *, generate: bool) -> str:
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate)
    return text


@lru_cache(maxsize=1)  # asked for each row, and takes milliseconds where there are hundreds of added tokens
def _special_tokens(tokenizer: Any, template: str) -> list[str]:
    """The tokens that the tokenizer calls special, and those of its added ones with which the template is written.

    Tokenizers also add runs of spaces and line breaks, which are plain text and stand in templates too.
    """
    called = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    control = [token for token in tokenizer.get_added_vocab() if token.strip() and token in template]
    return list(dict.fromkeys((*tokenizer.all_special_tokens, *called, *control)))


def refuse_special_tokens(tokenizer: Any, question: str, *others: str) -> None:
    """Raise DataError, which names the row by its question, if that or another of its texts holds a special token."""
    texts = (question, *others)
    for token in _special_tokens(tokenizer, tokenizer.chat_template):
        if any(token in text for text in texts):
            raise DataError(f"The row with the question {question!r} holds the special token {token!r}. Remove it.")


def chat_example(tokenizer: Any, question: str, answer: str) -> ChatExample:
    """The chat row of a question and its answer.

    Raises ModelError if the template does not continue the prompt with the answer and one end-of-turn token, DataError
    if question or answer holds one of the tokenizer's special tokens.
    """
    from jinja2 import TemplateError

    refuse_special_tokens(tokenizer, question, answer)
    user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    try:
        prompt = _render(tokenizer, [user], generate=True)
        whole = _render(tokenizer, [user, assistant], generate=False)
    except TemplateError as error:
        raise ModelError(
            f"The chat template refuses a question with an answer ({error}). Give another one as model.chat_template."
        ) from error
    if not whole.startswith(prompt + answer):
        raise ModelError(
            f"The chat template does not continue {prompt[-40:]!r} with the answer, so prompt and answer cannot be "
            "told apart. Give a plain one as model.chat_template."
        )
    completion = whole[len(prompt) :]
    if completion[len(answer) :].strip() not in tokenizer.get_added_vocab():
        raise ModelError(
            f"The chat template ends an answer with {completion[len(answer) :]!r}, which is not one end-of-turn token. "
            "Give a plain one as model.chat_template."
        )
    return ChatExample(prompt, completion)


def end_of_turn(tokenizer: Any) -> int:
    """The token with which the chat template ends an answer. Raises the errors of :func:`chat_example`."""
    end = chat_example(tokenizer, "x", "x").completion.removeprefix("x").strip()
    return int(tokenizer.convert_tokens_to_ids(end))


def encode(tokenizer: Any, example: ChatExample) -> Encoded:
    """Token ids of prompt and completion as one text, and the index at which the completion begins.

    Raises ModelError if the prompt's tokens change when the completion follows.
    """
    prompt: list[int] = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(example.prompt + example.completion, add_special_tokens=False)["input_ids"]
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise ModelError(
            f"The tokenizer merges the end of the prompt with the answer {example.completion!r:.80}, so answer tokens "
            "cannot be told apart. Give a model whose chat template ends the prompt with a line break or a token."
        )
    return Encoded(tuple(whole), len(prompt))


def encode_rows(tokenizer: Any, rows: Sequence[Row]) -> list[Encoded]:
    """The chat rows as tokens, in the order of ``rows``. Raises the errors of ``chat_example`` and ``encode``."""
    return [encode(tokenizer, chat_example(tokenizer, row.question, row.answer)) for row in rows]
