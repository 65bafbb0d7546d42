"""Two gloo ranks take the steps of one process: terms, gradients, and all that learns or moves beside the encoder."""

import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdctool.batch import Batch
from kdctool.recipe import Recipe, to_toml

WORKER = Path(__file__).with_name("ranks_worker.py")
LEARNING = {
    "objective": {
        "contrastive": {"weight": 0.5, "learn_temperature": True, "own_ratio": 0.5},
        "self_distillation": {"stop_gradient": "teacher", "momentum": 0.9, "per_modality": True},
        "decoder": {"kind": "light", "share": 0.5},
    },
    "masking": {"audio": "adaptive", "audio_options": {"weight": 1.0}},
}
CHANGES: dict[str, dict[str, Any]] = {
    "plain-ddp-1": {"objective": {"contrastive": {"weight": 0.5}}},
    "sample-ddp-1": {
        "objective": {
            "self_distillation": {"shift": "sample"},
            "contrastive": {"learn_temperature": True, "direction": "both", "weight": 0.5},
        }
    },
    "learning-ddp-2": LEARNING,
    "learning-fsdp-2": LEARNING,
}
"""What changes, how it is spread over ranks, and micro batches per rank."""


def run_two_ranks(folder: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join([str(WORKER.parents[2]), os.environ.get("PYTHONPATH", "")])
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)],
            env={**os.environ, **shared, "RANK": str(rank), "PYTHONPATH": path},
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=120)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], errors


@pytest.mark.dist
def test_two_ranks_take_the_steps_of_one_process(
    tmp_path: Path, make_recipe: Callable[..., Recipe], make_batch: Callable[..., Batch]
) -> None:
    """Terms, gradient norms of each term, ranks of the embeddings, and every weight after three steps."""
    batch = make_batch(list(range(8)))
    torch.save(batch, tmp_path / "batch.pt")
    recipes = {name: make_recipe("kdc_mae", **changes) for name, changes in CHANGES.items()}
    for name, recipe in recipes.items():
        (tmp_path / f"{name}.toml").write_text(to_toml(recipe))
    run_two_ranks(tmp_path)
    steps = runpy.run_path(str(WORKER))["steps"]
    for name, recipe in recipes.items():
        alone, found = steps(recipe, batch, "none", 1), torch.load(tmp_path / f"{name}.pt", weights_only=True)
        for one, two in zip(alone["rows"], found["rows"], strict=True):
            assert two == pytest.approx(one, rel=2e-4), name
            assert "contrastive_accuracy" in two
        assert any(key.startswith("gradient/") for key in alone["rows"][0])
        assert alone["state"].keys() == found["state"].keys()
        for key, value in alone["state"].items():
            torch.testing.assert_close(found["state"][key], value, atol=2e-6, rtol=1e-5, msg=f"{name}: {key}")
