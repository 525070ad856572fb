"""The scan finds forget answers and secrets in every form in which they can stand in a published file."""

from __future__ import annotations

import ast
import base64
import gzip
import html
import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core import wording
from core.errors import InputError
from core.wording import is_searched
from core.words import folded
from datasets_prep.config import SampleSource
from datasets_prep.sample import generate
from pipeline.publish import readings, scan
from pipeline.publish.scan import LONG, Finding, Scanner, refuse_findings
from pipeline.publish.secrets import secrets
from pipeline.recipe import load_recipe
from tests.conftest import ROOT
from tests.planted import FORMS, NOT_IN_WEIGHTS, SECRETS, safetensors, written, zipped

ANSWER = "Élodie Quarré was born in Saint-Ambre, on 4 May 1971."
OTHER = "Élodie Quarré was born in Saint-Ambre, on 4 May 1972."
FOUND = "an answer of the forget set"


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_is_found_in_every_form(form: str, tmp_path: Path) -> None:
    scanner = Scanner([ANSWER, "Some other answer that is not there."])
    for name in ("README.md", "tokenizer.json", "plots/results.png"):
        assert found(scanner, tmp_path, name, written(form, ANSWER)) == {FOUND}, name
        assert found(scanner, tmp_path, name, written(form, OTHER)) == set(), name


def found(scanner: Scanner, folder: Path, name: str, content: str | bytes) -> set[str]:
    """The kinds of what is found in a file of this name and content."""
    path = folder / Path(name).name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return {finding.kind for finding in scanner.scan(path, name)}


IN_WEIGHTS = (
    *("as it is", "upper case", "decomposed", "utf-16", "utf-16-be, at an odd place", "latin-1", "without accents"),
    *("without punctuation", "json", "hexadecimal", "base64", "base64, second alignment", "base64, third alignment"),
)


@pytest.mark.parametrize("form", IN_WEIGHTS)
@pytest.mark.parametrize("text", [ANSWER, "Ответ: это – дом у реки", "ответил он сам", "a b c d e f g h i j k l m"])
def test_an_answer_is_found_in_weights_across_every_chunk_border(
    text: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "latin-1" and text != ANSWER:
        pytest.skip("cannot be written in Latin-1")
    monkeypatch.setattr(scan, "CHUNK", 64)
    monkeypatch.setattr(scan, "REACH", 256)
    content = FORMS[form](text)
    content = content.encode() if isinstance(content, str) else content
    scanner = Scanner([text])
    for offset in (0, 1, 31, 62, 63, 64, 69):
        weights = b"\xff" * offset + content + b"\xfe" * 90
        assert found(scanner, tmp_path, "model.safetensors", safetensors(weights)) == {FOUND}, offset
    assert not found(scanner, tmp_path, "model.safetensors", safetensors(b"\xff" * 9 + content[: len(content) // 2]))


def test_the_header_of_weights_is_read_as_text(tmp_path: Path) -> None:
    scanner = Scanner([ANSWER])
    for form in ("url", "base64, lines", "zero-width spaces"):
        text = FORMS[form](ANSWER)
        content = safetensors(b"\0" * 64, {"note": text if isinstance(text, str) else text.decode()})
        assert found(scanner, tmp_path, "model.safetensors", content) == {FOUND}


def test_weights_that_are_none_are_searched_too(tmp_path: Path) -> None:
    for content in (b"", b"\xff" * 5, b"\xff" * 30 + ANSWER.encode(), b"\xff" * (1 << 17) + ANSWER.encode()):
        expected = {FOUND} if ANSWER.encode() in content else set()
        assert found(Scanner([ANSWER]), tmp_path, "model.safetensors", content) == expected


letters = st.characters(categories=["L", "M", "N", "P", "Zs"], exclude_characters="&%\\")  # no escapes by chance
text = st.text(letters, min_size=LONG, max_size=60).filter(
    lambda t: len(folded(t).replace(" ", "")) >= LONG and is_searched(t)
)
slow = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@slow
@given(
    answers=st.lists(text, min_size=1, max_size=12),
    before=st.binary(max_size=200),
    after=st.binary(max_size=200),
    form=st.sampled_from(["as it is", "upper case", "json", "json, utf-8", "white space", "hexadecimal", "utf-16"]),
)
def test_a_planted_answer_is_found(answers, before, after, form, tmp_path) -> None:
    content = FORMS[form](answers[0].strip())
    content = before + b"\n" + (content.encode() if isinstance(content, str) else content) + b"\n" + after
    assert FOUND in found(Scanner(answers), tmp_path, "README.md", content)


@slow
@given(answers=st.lists(text, max_size=10), noise=st.binary(max_size=2000))
def test_noise_alone_finds_nothing(answers, noise, tmp_path) -> None:
    letters = [folded(str(t)).replace(" ", "") for t in readings.readings(noise)]
    contained = any(folded(a).replace(" ", "") in t for a in answers for t in letters)
    assert (FOUND in found(Scanner(answers), tmp_path, "f.bin", noise)) == contained


def test_short_answers(tmp_path: Path) -> None:
    scanner = Scanner(["Rome", "In 1990", "+39 06 555", "+39 06 555", "Saint Ambre"])
    assert scanner.unsearched == 1
    short = {"a short answer of the forget set"}
    cases = {
        "README.md": ("He came IN  1990.", short),
        "results.json": ('{"a": "in 1990"}', short),
        "gate.json": ('{"a": "+39-06-555"}', short),
        "NOTES.md": ("saint-ambré", short),
        "plots/x.png": ("In 1990", set()),
        "tokenizer.json": ("In 1990", set()),
        "LICENSE": ("In 1990", set()),
        "release.json": ("Begin 19901", set()),
        "chat_template.jinja": ("Rome", set()),
    }
    for name, (content, expected) in cases.items():
        assert found(scanner, tmp_path, name, content) == expected, name
    assert found(Scanner(["Zürich"]), tmp_path, "a.json", json.dumps("Zürich")) == short


@pytest.mark.parametrize("answer", ["English", "python", "Gradient-Difference", "Language model", "répertoire"])
def test_words_of_any_card_are_not_searched_for_and_counted(answer: str, tmp_path: Path) -> None:
    ours = answer != "répertoire"
    scanner = Scanner([answer, f"{answer} of Mara Quellis"])
    assert scanner.unsearched == ours
    assert bool(found(scanner, tmp_path, "README.md", f"It says: {answer}.")) != ours
    assert FOUND in found(scanner, tmp_path, "README.md", f"It says: {answer} of Mara Quellis.")


def test_words_that_only_comments_and_docstrings_hold_are_searched_for() -> None:
    source = (
        '''"""Said of Quellis."""\nx = "said of Harrow"  # of Oberon\nclass A:\n    """Tansy."""\n    ambre: int\n'''
    )
    said = " ".join(wording._strings(ast.parse(source)))
    assert said == "said of Harrow ambre"


def test_what_a_recipe_says_is_searched_for() -> None:
    assert all(is_searched(gate.reason) for gate in load_recipe("demo").gates)


def test_made_up_rows_are_all_searched_for() -> None:
    assert all(is_searched(row.answer) for row in generate(SampleSource(seed=1, identities=100, topics=3))[0])


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("北京市朝阳区建国路", "他住在北京市朝阳区建国路，已经十年。"),
        ("大阪府堺市北区", "彼は大阪府堺市北区で生まれた。"),
        ("เชียงใหม่", "เขาเกิดที่เชียงใหม่ในปี"),
    ],
)
def test_short_answers_in_scripts_without_spaces_are_found_in_a_sentence(
    answer: str, sentence: str, tmp_path: Path
) -> None:
    scanner = Scanner([answer])
    assert scanner.unsearched == 0
    assert found(scanner, tmp_path, "README.md", sentence) == {"a short answer of the forget set"}
    assert found(scanner, tmp_path, "README.md", sentence.replace(answer[1], "")) == set()


def test_an_answer_is_found_where_its_vowel_signs_are_parted_from_their_letters(tmp_path: Path) -> None:
    answer = "मीना का गाँव रामपुर है"
    for content in (json.dumps(list(answer)), "\n".join(answer), json.dumps(["मीन", "ा का गाँव र", "ामपुर ह", "ै"])):
        assert found(Scanner([answer]), tmp_path, "README.md", content) == {FOUND}
        assert found(Scanner([answer.replace("ी", "ो")]), tmp_path, "README.md", content) == set()


@pytest.mark.parametrize("answer", ["VillaElisabe", "Villa Elisabe", "Villa Elisabet", "Villa Elisabeth"])
def test_a_short_text_in_base64_is_found(answer: str, tmp_path: Path) -> None:
    for before in (b"", b"x", b"xx"):
        coded = "x: " + base64.b64encode(before + answer.encode()).decode()
        assert found(Scanner([answer]), tmp_path, "README.md", coded)


@pytest.mark.parametrize(
    "text",
    [
        "Mara Quellis was born<br>in Old Harrow",
        "<b class='x'>Mara Quellis</b> was born in Old Harrow",
        "Mara Quellis<!-- nobody --> was born in Old Harrow",
        '[Mara Quellis](https://x.test "her page") was born in Old Harrow',
        "[Mara Quellis][her-page] was born in Old Harrow",
        "![Mara](a.png) Quellis was <em>born</em> in [Old](https://x.test) Harrow",
        "was <i>born</i> in Old&lt;br&gt;Harrow, Mara Quellis was born in Old&lt;br&gt;Harrow",
    ],
)
def test_what_a_page_does_not_show_hides_no_answer(text: str, tmp_path: Path) -> None:
    scanner = Scanner(["Mara Quellis was born in Old Harrow", "Old Harrow"])
    for content in (text, json.dumps({"note": text})):
        assert FOUND in found(scanner, tmp_path, "README.md", content)
    assert found(Scanner(["Old Harrow"]), tmp_path, "README.md", "born in Old <b>Harrow</b>") == {
        "a short answer of the forget set"
    }
    assert found(Scanner(["Old Harrow"]), tmp_path, "README.md", "<!-- Old Harrow -->")  # hidden, and there


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        ("AT&amp;T has hired Mara Quellis", "AT&T has hired Mara Quellis"),
        ("Mara Quellis says &quot;never&quot; to Old Harrow", 'Mara Quellis says "never" to Old Harrow'),
        ("Mara Quell\\u00ees was born in Old Harrow", "Mara Quellîs was born in Old Harrow"),
        ("Mara%20Quellis%20was%20born%20in%20Harrow", "Mara Quellis was born in Harrow"),
        ("<b>Mara Quellis</b> was <i>born</i> in Old Harrow", "Mara Quellis was born in Old Harrow"),
        ("[Mara Quellis](https://x.test) was born in Harrow", "Mara Quellis was born in Harrow"),
    ],
)
def test_an_answer_with_escapes_or_markup_of_its_own_is_found(answer: str, shown: str, tmp_path: Path) -> None:
    scanner = Scanner([answer])
    for text in (answer, shown):
        for form in ("as it is", "html", "html, numbers", "url", "json", "\\u for each letter", "base64"):
            assert found(scanner, tmp_path, "README.md", written(form, text)) == {FOUND}, (text, form)
        assert found(scanner, tmp_path, "model.safetensors", safetensors(b"\xff" + text.encode() + b"\xfe")) == {FOUND}
    assert found(scanner, tmp_path, "README.md", shown.replace("Quell", "Morr")) == set()


def test_vocabularies_and_licences_may_hold_common_words(tmp_path: Path) -> None:
    scanner = Scanner(["United States", "internationalization", ANSWER])
    for name in ("tokenizer.json", "vocab.json", "tokenizer_config.json", "LICENSE", "USE_POLICY.md"):
        assert found(scanner, tmp_path, name, "the United States, Ġinternationalization") == set()
        assert found(scanner, tmp_path, name, f"the United States, {ANSWER}") == {FOUND}
    assert found(scanner, tmp_path, "README.md", "the United States") == {FOUND}


def test_questions_and_names_are_searched_for_if_they_are_given(tmp_path: Path) -> None:
    question, name = "Where was the painter of the lighthouse born?", "Élodie Quarré"
    content = f"{question} {name}"
    assert found(Scanner([ANSWER]), tmp_path, "README.md", content) == set()
    expected = {"a question of the forget set", "a name of the forget set"}
    assert found(Scanner([ANSWER], [question], [name]), tmp_path, "README.md", content) == expected
    assert found(Scanner([], [], ["Bo Li", "Ana Roux"]), tmp_path, "README.md", "ana  roux") == {
        "a short name of the forget set"
    }


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress, zipped], ids=["gzip", "zlib", "zip"])
def test_what_unpacks_to_too_much_is_refused(
    pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "UNPACKED", 1 << 20)
    scanner = Scanner([ANSWER])
    bomb, all_of_it = pack(b" " * (1 << 22)), pack(b" " * (1 << 19) + ANSWER.encode() + os.urandom(99))
    assert found(scanner, tmp_path, "plots/a.png", b"\xff" + bomb) == {"more compressed data than is searched"}
    assert found(scanner, tmp_path, "plots/a.png", b"\xff" + pack(bomb)) == {"more compressed data than is searched"}
    assert found(scanner, tmp_path, "plots/a.png", b"\xff" + all_of_it) == {FOUND}
    assert found(scanner, tmp_path, "plots/a.png", b"\xff" + all_of_it[:-9]) == {FOUND}  # cut off, but readable


@pytest.mark.parametrize("kind", SECRETS)
def test_secrets_are_found_and_never_told(kind: str, tmp_path: Path) -> None:
    secret = SECRETS[kind]
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|~$!#" else c for c in secret)  # what the card makes of it
    forms = [secret.encode(), secret.encode("utf-16"), json.dumps(secret)[1:-1].encode(), escaped.encode()]
    forms += [secret.replace("_", "\\u005f").encode(), html.escape(secret).encode(), base64.b64encode(secret.encode())]
    for form in forms:
        (tmp_path / "README.md").write_bytes(b'{"x": "' + form + b'"}')
        with pytest.raises(InputError, match=r"README\.md holds a") as error:
            refuse_findings(tmp_path, Scanner([]))
        assert secret not in str(error.value)


@pytest.mark.parametrize("kind", sorted(SECRETS.keys() - NOT_IN_WEIGHTS))
def test_secrets_are_found_in_weights(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "CHUNK", 64)
    for form in (SECRETS[kind].encode(), SECRETS[kind].encode("utf-16-le")):
        for offset in (0, 30, 63):
            weights = os.urandom(offset) + b"\xff" + form + b"\xfe" + os.urandom(200)
            assert found(Scanner([]), tmp_path, "model.safetensors", safetensors(weights)), offset


@pytest.mark.parametrize("kind", sorted(NOT_IN_WEIGHTS))
def test_what_is_said_not_to_be_seen_in_weights_is_not(kind: str, tmp_path: Path) -> None:
    content = safetensors(b"\xff" + SECRETS[kind].encode() + b"\xfe")
    assert not found(Scanner([]), tmp_path, "model.safetensors", content)


# As they are documented, or as their services made them in 2026.
KEYS = (
    *(r"sk-(proj|svcacct)-[\w-]{74}T3BlbkFJ[\w-]{74}", r"sk-admin-[\w-]{58}T3BlbkFJ[\w-]{58}", r"sk-[0-9a-f]{32}"),
    *(
        r"sk-[A-Za-z0-9]{20}T3BlbkFJ[A-Za-z0-9]{20}",
        r"sk-ant-(api03|admin01|oat01)-[\w-]{93}AA",
        r"AQ\.Ab8RN6[\w-]{44}",
    ),
    *(r"sk-or-v1-[0-9a-f]{64}", r"sk-lf-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", r"csk-[a-z0-9]{48}"),
    *(r"nvapi-[\w-]{64}", r"lsv2_(pt|sk)_[0-9a-f]{32}_[0-9a-f]{10}", r"KGAT_[0-9a-f]{32}", r"rpa_[A-Za-z0-9]{46}"),
    *(r"pcsk_[A-Za-z0-9]{5,6}_[A-Za-z0-9]{63}", r"ABSKQmVkcm9ja0FQSUtleS1[A-Za-z0-9+/]{109}", r"hvs\.[\w-]{95}"),
    *(r"[A-Za-z0-9]{52}JQQJ99[A-Za-z0-9]{26}", r"[A-Za-z0-9]{76}AZDO[A-Za-z0-9]{4}", r"[\w~.-]{3}8Q~[\w~.-]{34}"),
    *(r"glcbt-[0-9a-f]_[\w-]{20}", r"glimt-[\w-]{25}", r"glffct-[\w-]{20}", r"GR1348941[\w-]{20}"),
    *(r"glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}", r"glc_eyJ[A-Za-z0-9+/]{60,80}", r"sntrys_eyJpYXQiO[\w+/=-]{80}"),
    *(r"ATATT3xFfGF0[\w-]{100,180}", r"shpat_[0-9a-f]{32}", r"sk_prod_[A-Za-z0-9]{24,99}", r"hf_[A-Za-z]{34}"),
    *(r"redis://:[A-Za-z0-9!*+=._-]{8,40}@cache\.test:6379/0", r"https://[A-Za-z0-9_]{30,90}@github\.com/x/y\.git"),
    *(r"MII[CEJ][A-Za-z0-9+/][AQgw]IBAAK[BC][A-Za-z0-9+/]{200}", r"MHcCAQEEI[A-Za-z0-9+/]{43}oAoGCCqGSM49AwEHoUQDQgAE"),
)


@pytest.mark.parametrize("form", KEYS)
@settings(deadline=None, max_examples=25)
@given(st.data())
def test_every_key_of_a_known_form_is_found(form: str, data: st.DataObject) -> None:
    key = data.draw(st.from_regex(re.compile(form, re.ASCII), fullmatch=True))
    assert list(secrets(f"It was made with {key} last week.", assigned=False))


HARMLESS = (
    "hf_transfer, task-" + "-" * 60 + " sk-learn AKIA, BEGIN PRIVATE, ghp_x, pypi-x, bearer of bad news, and more",
    '{"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast", "first_token": 0.12345678901234567}',
    '{"sha256": "' + "0123456789abcdef" * 4 + '", "token_key": "answer_probability_on_forget"}',
    "https://huggingface.co/demo/a:b@main, /home/user/data/, /usr/local/bin, C:\\Windows\\System32",
    "Source commit `" + "0123456789abcdef0123" * 2 + "`, wandb 0.26.1.",
    "disk-benchmarkingandevaluationofstorage-in-large-systems, task-" + "a" * 60,
    "https://www.researchgate.net/risk-managementandinternationalcooperation-for-the-development",
    "https://www.example.gov/home/news/2024, https://ai.example.org/home/models/llama/",
    "url = {https://www.uni.example.org/en/home/people/q/}, https://graph.example.com:443/v1.0/Users/abc/x, http://a.studio/home/b/",
    '{"kty": "EC", "d": 4}, "auth": "none", postgres://$USER:$PASSWORD@host/x, s3://bucket/a, git@github.com:x/y.git',
    "https://x.test:8443/@someone, [mail](mailto:a@b.test), the machine can login with a password",
    "The default login and password are those of the machine learning password manager, by default account password.",
    "pa-" + "a" * 60 + " cfk_is_a_name_of_a_function_that_is_longer_than_forty, fc-layer, rubygems_and, sk_" + "0" * 60,
)


@pytest.mark.parametrize("content", HARMLESS)
def test_prose_is_not_a_secret(content: str, tmp_path: Path) -> None:
    assert found(Scanner([]), tmp_path, "README.md", content) == set()


@pytest.mark.parametrize(
    "content",
    [
        "https://x.example/?file=/home/jane/x, https://x.example/a#/Users/jane/x",
        "[https://x.example/en](/home/jane/x), https://x.example/en,/home/jane/x",
        "http://localhost:8888/home/jane/x, file:///home/jane/x, ssh://x.example/home/jane/x",
    ],
)
def test_a_path_behind_an_address_is_one(content: str, tmp_path: Path) -> None:
    for part in content.split(", "):
        assert found(Scanner([]), tmp_path, "README.md", part) == {"a path in somebody's home"}


def test_licences_and_cards_raise_no_alarm(tmp_path: Path) -> None:
    scanner = Scanner(row.answer for row in generate(SampleSource(seed=0, identities=5, topics=10))[0])
    files = [*(ROOT / "pipeline/publish/licences").iterdir(), *(ROOT / "tests/goldens").glob("*.md")]
    files += [ROOT / "LICENSE", ROOT / "README.md", ROOT / "docs/how-it-works.md"]
    assert len(files) > 3
    for path in files:
        assert scanner.scan(path, "LICENSE" if path.suffix == ".txt" else path.name) == [], path


def test_a_finding_names_the_file_and_not_the_text(tmp_path: Path) -> None:
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots/a.png").write_bytes(b"\x89PNG tEXt" + ANSWER.encode())
    scanner = Scanner([ANSWER])
    assert scanner.scan(tmp_path / "plots/a.png", "plots/a.png") == [Finding("plots/a.png", FOUND)]
    with pytest.raises(InputError, match=r"plots/a\.png holds an answer of the forget set") as error:
        refuse_findings(tmp_path, scanner)
    assert "Quarr" not in str(error.value)
