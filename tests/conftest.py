"""Every test runs without network, tokens or the user's caches; tiny models are built here, at test time."""

from __future__ import annotations

import gc
import ipaddress
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

from tests.browser import chromium  # noqa: F401 (a fixture for all tests)

settings.register_profile("shared_machine", deadline=None)  # how long an example takes says nothing here
settings.load_profile("shared_machine")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # xdist workers share the cores
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TORCHDYNAMO_DISABLE"] = "1"  # nothing here is compiled, but importing bitsandbytes prepares for it: 1.4 s
gc.disable()  # until all tests are collected: imports leave little to be freed

ROOT = Path(__file__).resolve().parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"  # public data that may not lie in this repository
NEEDS_SHARED_DATA = "UNLEARN_RELEASE_NEEDS_SHARED_DATA"  # set to 1 where a test must not be skipped for want of them
PATIENCE = 900  # seconds for whatever a test waits for: it ends what hangs, and a busy machine is slow
LONGEST = (  # files of tests that take over ten seconds, mostly of waiting where they begin processes
    *("test_release", "test_object_store", "test_ranks", "test_publish", "test_slurm", "test_benchmarks_faults"),
    *("test_revoke", "test_requests_in_a_row", "test_unlearn_resume", "test_hf_jobs", "test_cost_memory"),
    *("test_collection", "test_doctor"),
)
Call = Callable[..., "subprocess.CompletedProcess[str]"]


def shared_data(name: str) -> Path:
    """A file of the shared data. Without it the test is skipped with a reason, or fails where they must be there."""
    path = SHARED_DATA / name
    if path.is_file():
        return path
    missing = f"{name} is not in the folder shared/data beside this checkout"
    if os.environ.get(NEEDS_SHARED_DATA, "0") not in ("", "0"):
        pytest.fail(f"{missing}, and {NEEDS_SHARED_DATA} says that it must be")
    pytest.skip(missing)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: a worker that begins one when the other has nothing left works alone."""
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_collection_finish() -> None:
    gc.set_threshold(50_000, 20, 20)  # of what stays after that, little is garbage
    gc.enable()


@pytest.fixture(autouse=True, scope="module")
def settled() -> None:
    """What was imported and built before stays, so no later collection looks at it: the runner makes one a stage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def sandbox(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty HF_HOME, no tokens, and no connection to anything but loopback."""
    home = tmp_path_factory.mktemp("home")
    for name in [n for n in os.environ if n.startswith(("HF_", "HUGGING", "WANDB", "GITHUB_", "ACTIONS_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    real_connect = socket.socket.connect

    def connect(self: socket.socket, address: object) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            host = str(address[0])  # type: ignore[index]
            if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
                raise OSError(f"a test tried to reach {address}; tests may only reach loopback")
        return real_connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="session", autouse=True)
def roomy_machine() -> Iterator[None]:
    """Disk and memory for whatever is planned, whatever this machine has: a full-size recipe is only planned here."""
    real, size, disk = psutil.virtual_memory, 64 * 10**9, shutil.disk_usage("/")

    def memory() -> Any:
        here = real()
        return here._replace(total=size, available=min(here.available, size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(psutil, "virtual_memory", memory)
        patch.setattr(shutil, "disk_usage", lambda _: disk._replace(total=10**12, free=10**12))
        yield


@pytest.fixture(scope="session", autouse=True)
def measured_products() -> Iterator[Callable[..., tuple[float, float]]]:
    """How both precisions are measured; in all tests they are found equally fast.

    On a busy machine the faster one may change from one store to the next, and with it the key of every later stage.
    """
    from pipeline.train import precision

    real = precision._seconds
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision, "_seconds", lambda *_: (1.0, 1.0))
        yield real


def command_line(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """The command line in this process, which is faster: for everything but imports, signals and pipes."""
    from core.places import STORE
    from pipeline.__main__ import SETTINGS, main

    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in (*SETTINGS, STORE):
            patch.setenv(name, "")
            patch.delenv(name)  # so that what main sets is taken back
        patch.chdir(cwd)
        try:
            code = main(words)
        except SystemExit as stopped:  # argparse
            code = int(str(stopped.code))
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def call() -> Call:
    """:func:`command_line`, for tests and for fixtures of any scope."""
    return command_line


CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# Where a date comes from in Llama 3.2's template.
WRITES_THE_DATE = """\
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "<|im_start|>system\\nToday Date: " + date_string + "<|im_end|>\\n" -}}
"""


def build_tiny_model(folder: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2, vocab: int = 600) -> Path:
    """A random Llama with a byte-level BPE tokenizer and SmolLM2's chat format (pad = eos), saved to ``folder``."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from datasets_prep.schema import TOPICS

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    corpus = ["Where was the actor born? Who directed the film? system user assistant", *TOPICS] * 20
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    fast.chat_template = CHAT_TEMPLATE
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=fast.bos_token_id,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def end_turns(folder: Path) -> None:
    """Change a tiny model so that it soon ends a turn or says ``e``, also after a short training; else none ends."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight  # and the head's
        embedding[:, 0] = 0.1
        embedding[tokenizer.convert_tokens_to_ids("e"), 0] = 1.0
        embedding[tokenizer.eos_token_id, 0] = 3.0
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny random model; read only."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny_model"))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> tuple[Any, Any]:
    """The tiny model and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Any:
    """The tokens of a question and an answer, as the tiny model's chat format has them."""
    from datasets_prep.chat import chat_example, encode, load_tokenizer

    tokenizer = load_tokenizer(tiny_model)
    return lambda question, answer: encode(tokenizer, chat_example(tokenizer, question, answer))
