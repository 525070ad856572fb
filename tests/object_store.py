"""A real S3 server on loopback for tests: moto's, in a process of its own, which can be told to fail.

``python -m tests.object_store FAULT`` prints its port. While the file FAULT exists, each request whose method and path
it names in a line ``METHOD PART STATUS CODE`` is answered with that error; with ``METHOD PART ignore``, the condition
is ignored under which the object is to be written.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pipeline.engine.remote import Remote
from tests.conftest import ROOT

BUCKET = "shared"


class ObjectStore(NamedTuple):
    """A running server. ``bucket`` has an address of fsspec's."""

    endpoint: str
    fault: Path
    bucket: str = f"s3://{BUCKET}"

    def environment(self) -> dict[str, str]:
        """What a client reads."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def failing(self, line: str) -> Iterator[None]:
        """As long as the body lasts, requests fail as ``line`` says."""
        self.fault.write_text(line)
        try:
            yield
        finally:
            self.fault.unlink()


@contextmanager
def running(folder: Path) -> Iterator[ObjectStore]:
    """A server with an empty bucket, as long as the body lasts."""
    fault = folder / "fault"
    argv = [sys.executable, "-m", "tests.object_store", str(fault)]
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)
    assert server.stdout
    try:
        port = server.stdout.readline().strip()
        assert port, (folder / "server.log").read_text()[-2000:]
        yield ObjectStore(f"http://127.0.0.1:{port}", fault)
    finally:
        server.kill()
        server.wait()


def serve(fault: Path) -> None:
    """Run until killed."""
    import boto3
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)
    one_at_a_time = threading.Lock()  # moto looks whether an object is there, and then writes it; S3 does both in one

    def application(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        # Before the lock: a client that is stopped while it sends must not stop the others.
        environ["wsgi.input"] = BytesIO(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        for line in fault.read_text().splitlines() if fault.exists() else []:
            method, part, status, *code = line.split()
            if environ["REQUEST_METHOD"] != method or part not in environ["PATH_INFO"]:
                continue
            if status == "ignore":
                environ.pop("HTTP_IF_NONE_MATCH", None)
                continue
            start(f"{status} Refused", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code[0]}</Code><Message>as the test wants it</Message></Error>".encode()]
        with one_at_a_time:
            return list(moto(environ, start))

    server = make_server("127.0.0.1", 0, application, threaded=True, request_handler=MotoRequestHandler)
    threading.Thread(target=server.serve_forever).start()
    client = boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{server.port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    client.create_bucket(Bucket=BUCKET)
    print(server.port, flush=True)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with running(tmp_path_factory.mktemp("s3")) as store:
        yield store


def forget_addresses() -> None:
    """What s3fs has read from the environment of an earlier test."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


@pytest.fixture
def s3(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    forget_addresses()
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    return server


@pytest.fixture
def remote(s3: ObjectStore, tmp_path: Path) -> Remote:
    """A place of its own in the bucket."""
    return Remote(f"{s3.bucket}/{tmp_path.name}")


def files(remote: Remote) -> Any:
    """The store as fsspec shows it, past our code."""
    return remote._files


def objects(remote: Remote, stage: str = "") -> list[str]:
    return [str(path) for path in files(remote).find(f"{remote.url}/{stage}")]


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
