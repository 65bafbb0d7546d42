"""A recipe of one view for studies, a real clip, and a store for URLs."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import s3
from extractions import make_video


@pytest.fixture
def one_view(tiny_recipe: Callable[..., Path]) -> Path:
    """CAV-MAE, three steps."""
    return tiny_recipe("objective.name=cav_mae", "training.epochs=1")


@pytest.fixture(scope="module")
def server() -> Iterator[s3.Bucket]:
    """An S3 server of this module's own."""
    with pytest.MonkeyPatch.context() as monkeypatch, s3.serving(monkeypatch) as bucket:
        yield bucket


@pytest.fixture
def bucket(server: s3.Bucket) -> Iterator[s3.Bucket]:
    """Its bucket, empty, telling the truth."""
    server.fails = lambda method, path: 0
    s3.forget()
    for name in server.files.ls("bucket"):
        server.files.rm(name, recursive=True)
    yield server
    server.fails = lambda method, path: 0


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real clip of 1 s."""
    return make_video(tmp_path_factory.mktemp("video") / "x.mp4").read_bytes()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Scratch folders lie here, and none is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def extract_command() -> Callable[..., Any]:
    """`kdctool extract` in this process."""
    import typer

    from kdctool.cli.extract import register

    def call(*arguments: str) -> Any:
        app = typer.Typer()
        register(app)
        app.callback()(lambda: None)
        return app(args=["extract", *arguments], standalone_mode=False)

    return call
