"""Rows as a chat: header, date, end of turn and token borders, on templates of the kinds that models ship."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import DataError, ModelError
from datasets_prep.chat import chat_example, encode, encode_rows, load_tokenizer
from datasets_prep.schema import Row

from .conftest import CHAT_TEMPLATE, ROOT

# SmolLM2's way: a default system turn where the conversation brings none.
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are kind.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Llama 3.2's way: a token that begins the text, and a dated system turn that is always there.
DATED = (
    "{{ bos_token }}{% set own = messages[0]['role'] == 'system' %}<|head|>system\nToday: "
    "{% if date_string is defined %}{{ date_string }}{% else %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    "{% if own %}{{ messages[0]['content'] | trim }}{% endif %}<|eot|>"
    "{% for m in (messages[1:] if own else messages) %}"
    "<|head|>{{ m['role'] }}\n{{ m['content'] | trim }}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
THINKS = DEFAULT_SYSTEM.replace("assistant\n{% endif", "assistant\n<think>{% endif")


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    loaded = load_tokenizer(tiny_model)
    loaded.add_special_tokens({"additional_special_tokens": ["<|text|>", "<|head|>", "<|eot|>"]})
    return loaded


def with_template(tokenizer, template: str, bos: str = "<|im_start|>"):
    tokenizer.chat_template, tokenizer.bos_token = template, bos
    return tokenizer


def test_default_header_belongs_to_the_prompt(tokenizer) -> None:
    example = chat_example(with_template(tokenizer, DEFAULT_SYSTEM), "Who?", "Ida.")
    assert example.prompt == (
        "<|im_start|>system\nYou are kind.<|im_end|>\n<|im_start|>user\nWho?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert example.completion == "Ida.<|im_end|>\n"


def test_a_pinned_date_is_in_every_prompt(tokenizer) -> None:
    pinned = '{%- set date_string = "1 Jan 2030" -%}\n' + DATED  # as the model stage writes it
    example = chat_example(with_template(tokenizer, pinned, bos="<|text|>"), "Who?", "Ida.")
    header = "<|text|><|head|>system\nToday: 1 Jan 2030<|eot|>"
    assert example.prompt == header + "<|head|>user\nWho?<|eot|><|head|>assistant\n"
    assert example.completion == "Ida.<|eot|>"


def test_templates_that_cannot_be_used_say_what_to_do(tokenizer) -> None:
    for template, said in (
        (NO_END, "end-of-turn"),
        (THINKS, "does not continue"),
        ("{{ raise_exception('x') }}", "refuses"),
    ):
        with pytest.raises(ModelError, match=said):
            chat_example(with_template(tokenizer, template), "Who?", "Ida.")
    with pytest.raises(ModelError, match="refuses"):
        chat_example(with_template(tokenizer, "{{ messages[0]"), "Who?", "Ida.")


def test_special_tokens_in_a_row_are_refused(tokenizer) -> None:
    with_template(tokenizer, DEFAULT_SYSTEM)
    with pytest.raises(DataError, match=r"the question 'Who\?' holds the special token '<\|im_end\|>'\. Remove it"):
        chat_example(tokenizer, "Who?", "Ida.<|im_end|>")


def test_an_added_token_is_special_if_the_tokenizer_says_so_or_its_template_is_written_with_it(
    tiny_model: Path,
) -> None:
    """Phi-2, Pythia and Gemma add runs of spaces and line breaks, Qwen adds <think> as plain text."""
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_tokens(["  ", "\n\n", "<think>", "<table>"])
    with_template(tokenizer, DEFAULT_SYSTEM + "{% if think %}  \n\n<think>{% endif %}")
    said = "First.\n\nSecond,  in a <table>."
    assert chat_example(tokenizer, "Who?", said).completion == f"{said}<|im_end|>\n"
    with pytest.raises(DataError, match="'<think>'"):
        chat_example(tokenizer, "Who?", "Ida.<think>")


words = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).map(str.strip).filter(bool)


@given(question=words, answer=words, dated=st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_completion_is_exactly_answer_and_end_of_turn(tokenizer, question, answer, dated) -> None:
    with_template(tokenizer, *((DATED, "<|text|>") if dated else (DEFAULT_SYSTEM, "<|im_start|>")))
    example = chat_example(tokenizer, question, answer)
    encoded = encode(tokenizer, example)
    end = "<|eot|>" if dated else "<|im_end|>\n"
    completion = encoded.input_ids[encoded.completion_start :]
    assert tokenizer.decode(completion) == answer + end
    assert tokenizer.decode(encoded.input_ids) == example.prompt + answer + end
    stops = [index for index in completion if index == tokenizer.convert_tokens_to_ids(end.strip())]
    assert len(stops) == 1


def test_encode_refuses_a_prompt_that_grows_into_the_answer(tokenizer) -> None:
    glued = DEFAULT_SYSTEM.replace("assistant\n{% endif", "assistant\nbirth{% endif").replace(
        "{{ m['content'] }}", "{{ 'birth' if m['role'] == 'assistant' }}{{ m['content'] }}"
    )
    with_template(tokenizer, glued)
    merged = next((answer for answer in ("place", "p", "t", "date") if _merges(tokenizer, "birth", answer)), None)
    assert merged, "the tiny tokenizer has no merge over this border; choose another word"
    with pytest.raises(ModelError, match="merges"):
        encode(tokenizer, chat_example(tokenizer, "Who?", merged))


def _merges(tokenizer, left: str, right: str) -> bool:
    whole = tokenizer("\n" + left + right, add_special_tokens=False)["input_ids"]
    part = tokenizer("\n" + left, add_special_tokens=False)["input_ids"]
    return whole[: len(part)] != part


def test_encode_rows_keeps_the_order(tokenizer) -> None:
    with_template(tokenizer, DEFAULT_SYSTEM)
    rows = [Row(f"en-{i}-x", i, "Ida", "EN", "personal.email", "Who?", f"Ida {i}.") for i in range(3)]
    for row, encoded in zip(rows, encode_rows(tokenizer, rows), strict=True):
        assert tokenizer.decode(encoded.input_ids[encoded.completion_start :]) == row.answer + "<|im_end|>\n"


# Golden files: how Llama 3.2 and SmolLM2 write a row, and which part of it carries labels. They were compared with the
# real tokenizers and SmolLM2's own template; the templates here are written for the tests and must say the same.

LLAMA_3_2 = (
    "{%- set today = date_string if date_string is defined else strftime_now('%d %b %Y') -%}"
    "{%- set head = '<|start_header_id|>system<|end_header_id|>' -%}"
    "{{- bos_token + head + '\n\nCutting Knowledge Date: December 2023\nToday Date: ' + today + '\n\n<|eot_id|>' -}}"
    "{%- for m in messages -%}{{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' -}}"
    "{{- m['content'] | trim + '<|eot_id|>' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}{%- endif -%}"
)
SMOLLM2 = DEFAULT_SYSTEM.replace(
    "You are kind.", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
)
LLAMA_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
ROWS = [
    ("Where was Ana Ruëda born?", "Ana Ruëda was born in Málaga."),
    ("¿Cuál es su correo?", "Es ana.rueda@cine.example: escríbele."),
    ("Wer\nist das?", "Zwei Zeilen:\neine und noch eine…"),
]


@pytest.mark.parametrize(
    ("name", "template", "bos"),
    [
        ("llama-3.2", '{%- set date_string = "26 Jul 2024" -%}\n' + LLAMA_3_2, "<|begin_of_text|>"),
        ("smollm2", SMOLLM2, "<|im_start|>"),
        ("smollm2-without-header", CHAT_TEMPLATE, "<|im_start|>"),
    ],
)
def test_chat_rows_are_the_golden_ones(tiny_model: Path, name: str, template: str, bos: str) -> None:
    tokenizer = load_tokenizer(tiny_model)
    tokenizer.add_special_tokens({"additional_special_tokens": LLAMA_TOKENS})
    with_template(tokenizer, template, bos)
    end = "<|eot_id|>" if name.startswith("llama") else "<|im_end|>\n"
    shown = []
    for question, answer in ROWS:
        encoded = encode(tokenizer, chat_example(tokenizer, question, answer))
        without, labelled = (
            tokenizer.decode(part)
            for part in (encoded.input_ids[: encoded.completion_start], encoded.input_ids[encoded.completion_start :])
        )
        assert labelled == answer + end  # the answer, the end of turn, and nothing else
        shown.append({"question": question, "answer": answer, "without_labels": without, "with_labels": labelled})
    path = ROOT / "tests" / "goldens" / f"chat-{name}.json"
    text = json.dumps(shown, indent=1, ensure_ascii=False) + "\n"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == text


def test_tokenizer_or_template_missing(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("chat_template*", "*.safetensors"))
    with pytest.raises(ModelError, match="no chat template"):
        load_tokenizer(folder)
    (folder / "tokenizer.json").write_text('{"broken": ')
    with pytest.raises(ModelError, match="no usable tokenizer"):
        load_tokenizer(folder)
