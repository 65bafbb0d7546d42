"""kdctool extract --engine ray: a cluster of two nodes gives what this machine gives."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from extractions import fill, tree

from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.media import binary, engine
from kdctool.media.settings import Settings
from kdctool.stages import extract

SETTINGS = Settings(frames=2, size=32)
NUM_GOOD = 12
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (kdctool[ray])")


@pytest.fixture(scope="module")
def videos(video: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("videos"), video, (f"{number}.mp4" for number in range(NUM_GOOD)))


@pytest.fixture(scope="module")
def plain(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("plain") / "out"
    extract.run(videos, out, SETTINGS, workers=1)
    return tree(out)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Two nodes with a core each, on this machine."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    made.add_node(num_cpus=1)
    yield made.address
    made.shutdown()


@needs_ray
@pytest.mark.nightly
def test_a_cluster_of_two_nodes_gives_the_same_bytes(
    videos: Path, plain: dict[str, str], cluster: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = extract.run(videos, out, SETTINGS, engine="ray", ray_address=cluster)
    assert done.counts == {"ok": NUM_GOOD, "quarantined": 1}
    assert tree(out) == plain
    assert extract.run(videos, out, SETTINGS, engine="ray", ray_address=cluster).num_made == 0
    for path in (out / "clips").glob("*/3-*/*"):
        path.unlink()
    next((out / "clips").glob("*/3-*")).rmdir()
    assert extract.run(videos, out, SETTINGS, engine="ray", ray_address=cluster).num_made == 1
    assert tree(out) == plain


def ray_workers() -> list[psutil.Process]:
    """The Ray workers that are at work on a batch."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if (process.info["cmdline"] or [""])[0].startswith("ray::work"):
            found.append(process)
    return found


@needs_ray
@pytest.mark.nightly
def test_killed_ray_workers_lose_nothing(
    videos: Path, plain: dict[str, str], cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, killed = tmp_path / "out", list[int]()
    original = extract.Ledger.note

    def note(self: Any, *given: Any) -> None:
        original(self, *given)
        if len(self.rows) in (2, 7):
            for worker in ray_workers():
                worker.kill()
                killed.append(worker.pid)

    monkeypatch.setattr(extract.Ledger, "note", note)
    done = extract.run(videos, out, SETTINGS, engine="ray", ray_address=cluster)
    assert killed
    assert done.num_made == NUM_GOOD + 1
    assert tree(out) == plain


@needs_ray
@pytest.mark.nightly
def test_a_node_that_does_not_see_the_videos_stops_the_run(
    videos: Path, cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdctool.media import ray_pool

    monkeypatch.setattr(ray_pool.os.path, "lexists", lambda path: True)
    (tmp_path / "list.txt").write_text(f"{videos}/0.mp4\nnot-there.mp4\n")
    with pytest.raises(EnvironmentFault, match=r"does not see .*not-there\.mp4"):
        extract.run(tmp_path / "list.txt", tmp_path / "out", SETTINGS, engine="ray", ray_address=cluster)
    assert not (tmp_path / "out" / "done.json").exists()
    monkeypatch.undo()
    done = extract.run(tmp_path / "list.txt", tmp_path / "out", SETTINGS, engine="ray", ray_address=cluster)
    assert done.counts == {"ok": 1, "quarantined": 1}


@needs_ray
def test_a_batch_on_a_node_says_what_is_unfit(videos: Path, tmp_path: Path) -> None:
    from kdctool import __version__
    from kdctool.media import ray_pool
    from kdctool.media.messages import Task
    from kdctool.media.settings import Item, Tools

    item = Item(str(videos / "0.mp4"), "0.mp4")

    def said(out: Path, tools: Tools, version: str, seen: list[str]) -> list[dict[str, Any]]:
        return list(ray_pool.work([Task(item)], seen, (str(out), SETTINGS, tools, version)))

    right = Tools(binary.find(), binary.version(binary.find()))
    for given, words in (
        ((tmp_path, right, "0.0", []), "not 0.0"),
        ((tmp_path, Tools(binary.find(), "1.2"), __version__, []), "not 1.2"),
        ((tmp_path / "no", right, __version__, []), "does not see"),
        ((tmp_path, right, __version__, ["/no/such/file"]), "/no/such/file"),
    ):
        (message,) = said(*given)
        assert words in message["fault"][0]
    made = said(tmp_path, right, __version__, [item.path])
    assert [message["row"] and message["row"]["status"] for message in made] == ["ok", None]


def test_without_ray_the_command_to_install_it_is_told(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EnvironmentFault, match="not installed") as caught:
        extract.run(videos, tmp_path / "out", SETTINGS, engine="ray")
    assert (caught.value.exit_code, caught.value.next_step) == (4, "pip install 'kdctool[ray]'")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageFault, match="--ray-address"):
        extract.run(videos, tmp_path / "out", SETTINGS, ray_address="localhost:6379")
