"""Package, publish and verify a tree of 2 GB on loopback, against one sha256 and one copy of the same bytes.

The download is not loaded with transformers: that takes as much memory as the model, whatever publishes it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.releases import ROOT
from pipeline.engine.machine import peak_memory, reset_peak_memory
from pipeline.localhub.server import LocalHub
from pipeline.publish import push, verify
from pipeline.publish.config import PublishConfig
from pipeline.publish.hub import Target, quiet
from pipeline.recheck import problems
from tests.publishing import REPO, build, make_inputs, own_signer, write_card, write_gate

BYTES = 2 << 30
TENSOR = 64 << 20  # bytes of one tensor


def make_weights(path: Path) -> None:
    """A safetensors file of random finite bf16 values."""
    import numpy as np

    names = [f"w{i}" for i in range(BYTES // TENSOR)]
    tensors = {
        name: {"dtype": "BF16", "shape": [TENSOR // 2], "data_offsets": [i * TENSOR, (i + 1) * TENSOR]}
        for i, name in enumerate(names)
    }
    header = json.dumps(tensors).encode()
    draw = np.random.default_rng(0)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in names:
            values = draw.standard_normal(TENSOR // 2, dtype=np.float32)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())


def sha256(path: Path) -> str:
    """One pass of the standard library's, which leaves nothing behind that packaging could use again."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def measure() -> dict[str, float]:
    """Seconds of each part, the baseline's two parts, and the client's peak memory, in a process of their own."""
    done = subprocess.run([sys.executable, "-m", __name__], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    """Measure here; the Hub runs in another process, since its memory is not the client's."""
    found: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary, quiet():
        folder = Path(temporary)
        os.environ["UNLEARN_RELEASE_STORE"] = str(folder / "store")
        make = f"from tests.conftest import *; build_tiny_model(Path({str(folder / 'model')!r}), hidden=16, layers=1)"
        subprocess.run([sys.executable, "-c", make], cwd=ROOT, check=True, stderr=subprocess.DEVNULL)  # brings torch
        inputs = make_inputs(folder / "inputs", folder / "model")
        weights = inputs["unlearn"] / "model" / "model.safetensors"
        make_weights(weights)
        write_gate(inputs)
        (folder / "evidence").mkdir()
        write_card(inputs, folder / "evidence")
        own_signer()
        verify._generation = lambda _folder: "not loaded"
        reset_peak_memory()

        def timed(name: str, work: Callable[[], object]) -> None:
            began, own = time.perf_counter(), time.process_time()
            work()
            found[name], found[f"{name}, processor"] = time.perf_counter() - began, time.process_time() - own

        timed("sha256", lambda: sha256(weights))
        timed("copy", lambda: shutil.copyfile(weights, folder / "copy"))
        (folder / "copy").unlink()
        config = PublishConfig(repo=REPO, hub="local", tag="v1.0.0", visibility="private")
        timed("package", lambda: build(inputs, folder / "package"))
        hub = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.publication_time", str(folder / "store" / "hub")],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        assert hub.stdout
        target = Target(*hub.stdout.readline().split())
        try:
            signer = own_signer()
            timed("publish", lambda: push.publish(config, folder / "package" / "hub", target, signer, problems))
            timed("verify", lambda: verify.verify_release(REPO, "v1.0.0", target, [signer], problems))
        finally:
            hub.kill()
            hub.wait()
        found["memory"] = peak_memory()
    print(json.dumps(found))


def serve(folder: Path) -> None:
    """The Hub's process."""
    with LocalHub(folder) as hub:
        print(hub.endpoint, hub.token, flush=True)
        time.sleep(3600)  # until it is killed


if __name__ == "__main__":
    serve(Path(sys.argv[1])) if len(sys.argv) > 1 else main()
