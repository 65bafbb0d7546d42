"""kdctool extract --engine ray when the cluster fails: a node that dies, an address where nothing or nobody answers."""

import importlib.util
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import s3
from extractions import fill, tree

from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.media import ray_address
from kdctool.media.settings import Settings
from kdctool.stages import extract

SETTINGS = Settings(frames=2, size=32)
NUM_GOOD = 40
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (kdctool[ray])")


@pytest.fixture(scope="module")
def videos(video: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill(tmp_path_factory.mktemp("videos"), video, (f"{number}.mp4" for number in range(NUM_GOOD)))


@needs_ray
@pytest.mark.nightly
def test_the_death_of_a_whole_node_loses_nothing(videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    extract.run(videos, tmp_path / "plain", SETTINGS, workers=1)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    node = cluster.add_node(num_cpus=1)
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    workers, noted_after = list[psutil.Process](), [0]
    original = extract.Ledger.note

    def note(self: Any, *given: Any) -> None:
        original(self, *given)
        if raylet.is_running() and raylet.status() != psutil.STATUS_ZOMBIE:
            # Ray starts workers from the raylet; killed is the node that really has one at work, in mid-batch.
            workers[:] = [child for child in raylet.children() if _title(child).startswith("ray::work")]
            if workers and len(self.rows) >= 2:
                raylet.kill()
        elif workers:
            noted_after[0] += 1

    monkeypatch.setattr(extract.Ledger, "note", note)
    try:
        done = extract.run(videos, tmp_path / "out", SETTINGS, engine="ray", ray_address=cluster.address)
    finally:
        cluster.shutdown()
    assert workers
    assert noted_after[0] > 0
    assert done.counts == {"ok": NUM_GOOD, "quarantined": 1}
    assert done.num_made == NUM_GOOD + 1
    assert tree(tmp_path / "out") == tree(tmp_path / "plain")


@needs_ray
@s3.needs_s3
@pytest.mark.nightly
def test_nodes_without_a_common_disk_work_from_store_to_store(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    extract.run(videos, tmp_path / "plain", SETTINGS, workers=1)
    with s3.serving(monkeypatch) as bucket:  # Before the cluster, whose nodes get the environment from here.
        url = bucket.fill(videos, "videos")
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        cluster.add_node(num_cpus=1)
        try:
            extract.run(url, "s3://bucket/out", SETTINGS, engine="ray", ray_address=cluster.address)
        finally:
            cluster.shutdown()
        assert bucket.tree("out") == tree(tmp_path / "plain")


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.Error:
        return ""


@contextmanager
def listening(answer: bool) -> Iterator[int]:
    """A port of something that is not Ray: it says nothing, or speaks HTTP."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        held = list[socket.socket]()

        def serve() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                held.append(connection)
                if answer:
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        try:
            yield server.getsockname()[1]
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for connection in held:
                connection.close()


@needs_ray
@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_ends_at_once(videos: Path, tmp_path: Path, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"{scheme}127.0.0.1:{server.getsockname()[1]}"
    began = time.monotonic()
    with pytest.raises(
        EnvironmentFault, match=f"cannot reach the Ray cluster at {address}: Connection refused"
    ) as caught:
        extract.run(videos, tmp_path / "out", SETTINGS, engine="ray", ray_address=address)
    assert time.monotonic() - began < 20
    assert "ray status" in caught.value.next_step
    assert not (tmp_path / "out").exists()


@needs_ray
@pytest.mark.parametrize("answer", [False, True])
def test_an_address_where_something_else_listens_ends_soon(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bool
) -> None:
    with listening(answer) as port:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
        began = time.monotonic()
        with pytest.raises(EnvironmentFault, match=f"127.0.0.1:{port}: what listens there does not answer"):
            extract.run(videos, tmp_path / "out", SETTINGS, engine="ray")
        assert time.monotonic() - began < 20


def test_a_host_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*_: Any, timeout: float) -> Any:
        assert timeout <= 10
        raise TimeoutError

    monkeypatch.setattr(ray_address.socket, "create_connection", connect)
    with pytest.raises(EnvironmentFault, match="cannot reach the Ray cluster at far:6379: no answer"):
        ray_address.check("far:6379")


@pytest.mark.parametrize("address", ["node1", "node1:", ":6379", "node1:http", "node1:0", "node1:70000"])
def test_what_is_no_address_is_a_usage_fault(address: str) -> None:
    with pytest.raises(UsageFault, match="is no address"):
        ray_address.check(address)


@pytest.mark.parametrize("address", ["", "auto", "local"])
def test_no_address_asks_nobody(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_address.socket, "create_connection", None)
    ray_address.check(address)
