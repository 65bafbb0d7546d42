"""Processes that join one gloo group, as torchrun would start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run_ranks(ranks: int, *arguments: str) -> None:
    """Run `python ARGUMENTS` once per rank; all must end well."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(ranks),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS), os.environ.get("PYTHONPATH", "")]),
    }
    workers = [
        subprocess.Popen(
            [sys.executable, *arguments], env={**os.environ, **shared, "RANK": str(rank)}, stderr=subprocess.PIPE
        )
        for rank in range(ranks)
    ]
    try:
        errors = [worker.communicate(timeout=180)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0] * ranks, errors
