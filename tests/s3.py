"""An S3 server on this machine that can be told to fail, for the tests of s3:// URLs."""

import importlib.util
import logging
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

NEEDED = ("s3fs", "moto", "flask_cors")
needs_s3 = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in NEEDED), reason="s3fs or moto is not installed (kdctool[dev])"
)


class Bucket:
    """The bucket `bucket` of a server of this process."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.fails: Callable[[str, str], int] = lambda method, path: 0
        """What the server answers to (method, path) in place of the truth; 0: the truth."""

    @property
    def files(self) -> Any:
        import fsspec

        return fsspec.filesystem("s3", use_listings_cache=False)

    def fill(self, folder: Path, prefix: str) -> str:
        """Copy a folder into the bucket; its URL."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.files.pipe_file(f"bucket/{prefix}/{path.relative_to(folder)}", path.read_bytes())
        return f"s3://bucket/{prefix}"

    def tree(self, prefix: str) -> dict[str, str]:
        """Hash of every object below a prefix."""
        start = len(f"bucket/{prefix}/")
        found = sorted(self.files.find(f"bucket/{prefix}"))
        return {name[start:]: sha256(self.files.cat_file(name)).hexdigest() for name in found}

    def put(self, name: str, data: bytes) -> None:
        self.files.pipe_file(f"bucket/{name}", data)

    def remove(self, name: str) -> None:
        self.files.rm(f"bucket/{name}", recursive=True)


@contextmanager
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A server with one empty bucket; the environment names it and its credentials, for other processes, too."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = DomainDispatcherApplication(create_backend_app)
    held = list[Bucket]()

    def answer(environ: Any, start: Any) -> Any:
        status = held[0].fails(environ["REQUEST_METHOD"], environ["PATH_INFO"])
        if not status:
            return app(environ, start)
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        code = {
            403: "AccessDenied", 412: "PreconditionFailed", 500: "InternalError", 501: "NotImplemented"
        }[status]  # fmt: skip
        body = f"<Error><Code>{code}</Code><Message>as the test wants it</Message></Error>".encode()
        start(f"{status} {code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]

    server = make_server("127.0.0.1", 0, answer, threaded=True)
    held.append(Bucket(f"http://127.0.0.1:{server.port}"))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    point_at(monkeypatch, held[0].url)
    # What moto keeps belongs to the process, not to the server.
    urllib.request.urlopen(urllib.request.Request(f"{held[0].url}/moto-api/reset", method="POST")).close()
    held[0].files.mkdir("bucket")
    try:
        yield held[0]
    finally:
        forget()
        server.shutdown()
        thread.join()


def forget() -> None:
    """What an earlier test made of the environment is not remembered."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


def point_at(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let s3:// mean this server."""
    forget()
    for name, value in (
        ("AWS_ENDPOINT_URL", url),
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("AWS_CONFIG_FILE", "/dev/null"),
        ("AWS_SHARED_CREDENTIALS_FILE", "/dev/null"),
        ("AWS_MAX_ATTEMPTS", "1"),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
