"""The byte scan finds answers and secrets wherever and however they stand."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.errors import InputError
from pipeline.publish import scan
from pipeline.publish.scan import Finding, Scanner, refuse_findings

ANSWER = "Élodie Quarré was born in Saint-Ambre, on 4 May 1971."
FOUND = "an answer of the forget set"
SPELLINGS = {
    "utf-8": ANSWER.encode(),
    "utf-16-le": ANSWER.encode("utf-16-le"),
    "utf-16-be": ANSWER.encode("utf-16-be"),
    "upper": ANSWER.upper().encode(),
    "lower": ANSWER.lower().encode(),
    "latin-1 in utf-16, upper": ANSWER.upper().encode("utf-16-le"),
    "white space": ANSWER.replace(" ", " \n\t ").encode(),
    "json": json.dumps(ANSWER).encode(),
    "json, utf-8": json.dumps(ANSWER, ensure_ascii=False).encode(),
    "json in json": json.dumps(json.dumps(ANSWER)).encode(),
    "decomposed": b"E\xcc\x81lodie Quarre\xcc\x81 was born in Saint-Ambre, on 4 May 1971.",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_is_found_across_every_chunk_border(
    spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "CHUNK", 64)
    scanner, file = Scanner([ANSWER, "Some other answer that is not there."]), tmp_path / "f"
    for offset in range(70):
        file.write_bytes(b"\xff" * offset + SPELLINGS[spelling] + b"\xfe" * 90)
        assert scanner.scan(file, "f") == [Finding("f", FOUND)], offset
    file.write_bytes(SPELLINGS[spelling][:-4] + b"\xfe" * 90)
    assert scanner.scan(file, "f") == []


text = st.text(min_size=6, max_size=60).filter(lambda t: len(scan.fold(t.strip().encode())) >= scan.LONG)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    answers=st.lists(text, min_size=1, max_size=12),
    before=st.binary(max_size=200),
    after=st.binary(max_size=200),
    chunk=st.integers(1, 90),
    spell=st.sampled_from(
        [
            str.encode,
            lambda a: a.upper().encode(),
            lambda a: a.lower().encode(),
            lambda a: json.dumps(a)[1:-1].encode(),
            lambda a: json.dumps(a, ensure_ascii=False)[1:-1].encode(),
            lambda a: "\n\t".join(a).encode(),
        ]
    ),
)
def test_a_planted_answer_is_found(answers, before, after, chunk, spell, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", chunk)
    file = tmp_path / "model.safetensors"
    file.write_bytes(before + spell(answers[0].strip()) + after)
    assert Finding("m", FOUND) in Scanner(answers).scan(file, "m")


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(answers=st.lists(text, max_size=10), noise=st.binary(max_size=2000))
def test_noise_alone_finds_nothing(answers, noise, tmp_path) -> None:
    file = tmp_path / "f.bin"
    file.write_bytes(noise)
    contained = any(n in scan.fold(noise) for a in answers for n in scan._spellings(a.strip()))
    assert bool(Scanner(answers).scan(file, "f.bin")) == contained


def test_short_answers(tmp_path: Path) -> None:
    scanner = Scanner(["Rome", "In 1990", "+39 06 55", "+39 06 55"])
    assert scanner.too_short == 1
    cases = {
        "README.md": ("He came IN  1990.", True),
        "results.json": ('{"a": "in 1990"}', True),
        "gate.json": ('{"a": "+39 06 55"}', True),
        "plots/x.png": ("In 1990", False),
        "tokenizer.json": ("In 1990", False),
        "LICENSE": ("In 1990", False),
        "release.json": ("Begin 19901", False),
        "chat_template.jinja": ("Rome", False),
    }
    for name, (content, found) in cases.items():
        file = tmp_path / Path(name).name
        file.write_text(content)
        assert bool(scanner.scan(file, name)) == found, name
    assert Scanner(["Zürich"]).scan(_written(tmp_path / "a.json", json.dumps("Zürich")), "a.json")


def _written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


SECRETS = {
    "hf": "hf_" + "aB3d" * 9,
    "aws": "AKIA" + "ABCD1234EFGH5678",
    "pem": "-----BEGIN EC PRIVATE KEY-----",
    "pem8": "-----BEGIN PRIVATE KEY-----",
    "github": "ghp_" + "aB3d" * 9,
    "github2": "github_pat_" + "aB3d_" * 14,
    "gitlab": "glpat-" + "aB3d" * 5,
    "slack": "xoxb-" + "1234567890-" * 3,
    "google": "AIza" + "aB3d_" * 7,
    "openai": "sk-proj-" + "aB3d" * 12,
    "pypi": "pypi-AgEIcHlwaS5vcmc" + "aB3d" * 14,
}


@pytest.mark.parametrize("secret", SECRETS.values(), ids=SECRETS.keys())
def test_secrets_are_found_and_never_told(secret: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", 50)
    for data in (secret.encode(), secret.encode("utf-16-le")):
        for offset in (0, 20, 49, 333):
            _written(tmp_path / "weights.bin", os.urandom(offset).replace(b"\0", b"") + b"=" + data + b'"')
            with pytest.raises(InputError) as error:
                refuse_findings(tmp_path, Scanner([]))
            assert "weights.bin holds a" in str(error.value)
            assert secret not in str(error.value)


def test_prose_is_not_a_secret(tmp_path: Path) -> None:
    _written(tmp_path / "README.md", "hf_transfer, task-" + "-" * 60 + " sk-learn AKIA, BEGIN PRIVATE, ghp_x, pypi-x")
    refuse_findings(tmp_path, Scanner([]))


def test_an_answer_is_not_told_either(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    _written(tmp_path / "plots/a.png", b"\x89PNG tEXt" + ANSWER.encode())
    with pytest.raises(InputError, match=r"plots/a\.png holds an answer of the forget set") as error:
        refuse_findings(tmp_path, Scanner([ANSWER]))
    assert "Quarr" not in str(error.value)


def test_speed(tmp_path: Path) -> None:
    """60 MB and 2,000 answers: the scan of a release takes seconds, not minutes."""
    file = _written(tmp_path / "model.safetensors", os.urandom(20 << 20) * 3)
    scanner = Scanner([f"Person {i} was born in {i * 7919} and moved to town number {i}." for i in range(2000)])
    start = time.process_time()  # other processes may be busy
    assert scanner.scan(file, "model.safetensors") == []
    assert time.process_time() - start < 20
