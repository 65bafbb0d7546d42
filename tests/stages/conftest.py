"""A recipe of one view for studies, and a store for URLs."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import s3


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
