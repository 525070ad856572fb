"""Rows as a chat: what the model is trained on and scored on, rendered by the model's own chat template.

Some templates put a header in front of every conversation that has no system message: SmolLM2's introduces the
assistant, Llama 3's states dates. An empty system message only changes that header. ``system: none`` leaves it out: a
row is rendered after a system message, and the rendering of that message alone is cut off the front; what the template
writes for the turns themselves stays as it is, down to the token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets_prep.schema import Encoded, Row
from pipeline.errors import ArtifactError, DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULTS = {"system": "none", "date_string": "26 Jul 2024"}
_SYSTEM = {"role": "system", "content": "header"}


@dataclass(frozen=True)
class ChatExample:
    """``prompt`` ends where the answer begins; ``completion`` is the answer and the template's end of turn."""

    prompt: str
    completion: str


def write_chat(data: Path, kwargs: Mapping[str, str]) -> None:
    """Write ``chat.json`` into a data artifact: training and every evaluation render their rows alike."""
    (data / "chat.json").write_text(json.dumps(dict(kwargs), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_chat(data: Path) -> dict[str, str]:
    """The ``kwargs`` of the functions below, from a data artifact. Raises ArtifactError where they cannot be read."""
    path = data / "chat.json"
    try:
        kwargs = json.loads(path.read_text(encoding="utf-8"))
        return {"system": str(kwargs["system"]), "date_string": str(kwargs["date_string"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: cannot be read ({error!r}). Run the data stage again.") from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Raises ModelError where there is none, or none with a chat template."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the Rust tokenizers raise bare Exception
        reason = " ".join(str(error).split())
        raise ModelError(f"{folder}: has no usable tokenizer ({reason}). Give a complete model folder.") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{folder}: the tokenizer has no chat template. Give an instruction-tuned model that has one.")
    return tokenizer


def _render(tokenizer: Any, messages: Sequence[Mapping[str, str]], kwargs: Mapping[str, str], *, generate: bool) -> str:
    text: str = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=generate, **kwargs)
    return text


def _leading_messages(tokenizer: Any, kwargs: Mapping[str, str]) -> tuple[list[dict[str, str]], str]:
    """The messages before the question and the text to cut off; both empty where a template has no system messages."""
    from jinja2 import TemplateError

    try:
        return [_SYSTEM], _render(tokenizer, [_SYSTEM], kwargs, generate=False)
    except TemplateError:
        return [], ""


def chat_example(tokenizer: Any, question: str, answer: str, kwargs: Mapping[str, str] = DEFAULTS) -> ChatExample:
    """The chat row of a question and its answer.

    ``kwargs`` go to the template (``date_string``), except ``system``: ``none`` or ``template``. Raises ModelError
    where the template cannot be used in this way, DataError where the texts hold one of the tokenizer's special tokens.
    """
    from jinja2 import TemplateError

    added = tokenizer.get_added_vocab()
    special = next((token for token in added if token in question or token in answer), None)
    if special is not None:
        raise DataError(f"The row with the question {question!r} holds the special token {special}. Remove it.")
    variables = {name: value for name, value in kwargs.items() if name != "system"}
    user, assistant = {"role": "user", "content": question}, {"role": "assistant", "content": answer}
    try:
        plain = _render(tokenizer, [user], variables, generate=True)
        leading, cut = _leading_messages(tokenizer, variables) if kwargs["system"] == "none" else ([], "")
        asked = _render(tokenizer, [*leading, user], variables, generate=True)
        answered = _render(tokenizer, [*leading, user, assistant], variables, generate=False)
    except TemplateError as error:
        raise ModelError(
            f"The chat template refuses a question with an answer ({error}). Give another model."
        ) from error
    if not answered.startswith(asked + answer):
        raise ModelError(
            f"The chat template does not continue {asked[-40:]!r} with the answer, so prompt and answer cannot be told "
            "apart. Give a model with a plain chat template."
        )
    completion = answered[len(asked) :]
    if completion[len(answer) :].strip() not in added:
        raise ModelError(
            f"The chat template ends an answer with {completion[len(answer) :]!r}, which is not one end-of-turn token. "
            "Give a model with a plain chat template."
        )
    return ChatExample(_without_header(tokenizer, plain, asked, cut), completion)


def _without_header(tokenizer: Any, plain: str, asked: str, cut: str) -> str:
    """``asked`` without its first part ``cut``, but with the token that begins a text, if the template writes one."""
    turn = asked[len(cut) :]
    if not asked.startswith(cut) or not plain.endswith(turn):
        raise ModelError(
            "The chat template does not write the system message as a part of its own, so `data.system: none` cannot "
            "leave it out. Use `data.system: template`."
        )
    begin = tokenizer.bos_token or ""
    return begin + turn if begin and plain.startswith(begin) and not turn.startswith(begin) else turn


def encode(tokenizer: Any, example: ChatExample) -> Encoded:
    """Token ids of prompt and completion as one text, and where the completion begins.

    Raises ModelError where the prompt alone has other tokens than in front of the completion.
    """
    prompt: list[int] = tokenizer(example.prompt, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(example.prompt + example.completion, add_special_tokens=False)["input_ids"]
    if whole[: len(prompt)] != prompt or len(whole) == len(prompt):
        raise ModelError(
            f"The tokenizer merges the end of the prompt with the answer {example.completion!r:.80}, so answer tokens "
            "cannot be told apart. Give a model whose chat template ends the prompt with a line break or a token."
        )
    return Encoded(tuple(whole), len(prompt))


def encode_rows(tokenizer: Any, rows: Sequence[Row], kwargs: Mapping[str, str] = DEFAULTS) -> list[Encoded]:
    """The chat rows as tokens, in the order of ``rows``. Raises ModelError or DataError as the functions above."""
    return [encode(tokenizer, chat_example(tokenizer, row.question, row.answer, kwargs)) for row in rows]
