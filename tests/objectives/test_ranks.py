"""Two gloo ranks: the coupled terms and all gradients are those of one process with the same global batch."""

import os
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

WORKER = """
import sys, torch
from torch.nn.parallel import DistributedDataParallel
from kdctool import dist
from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives import build
from kdctool.recipe import load
torch.set_num_threads(1)
dist.init(torch.device("cpu"), timeout_s=60)
rank, ranks = dist.world()
recipe = load(sys.argv[1])
torch.manual_seed(0)
objective = build(recipe, AVEncoder(recipe.model))
batch = torch.load(sys.argv[2], weights_only=True)
mine = {name: x[rank::ranks] for name, x in batch.items()}
wrapped = DistributedDataParallel(objective)  # must outlive backward
loss = wrapped(mine, torch.Generator().manual_seed(7), 8)
loss.total.backward()
if rank == 0:
    grads = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    torch.save({"terms": loss.terms, "grads": grads}, sys.argv[3])
dist.shutdown()
"""


def run_ranks(tmp_path: Path, recipe: Recipe, batch: Batch) -> dict[str, dict[str, torch.Tensor]]:
    (tmp_path / "r.toml").write_text(to_toml(recipe))
    torch.save(batch, tmp_path / "batch.pt")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", WORKER, *(str(tmp_path / name) for name in ("r.toml", "batch.pt", "out.pt"))]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    workers = [
        subprocess.Popen(command, env={**os.environ, **shared, "RANK": str(rank), "PYTHONPATH": path}, stderr=-1)
        for rank in range(2)
    ]
    try:
        errors = [worker.communicate(timeout=120)[1].decode() for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return torch.load(tmp_path / "out.pt", weights_only=True)


@pytest.mark.dist
@pytest.mark.parametrize("shift", ["global", "sample"])
def test_two_ranks_equal_one_process(
    shift: str,
    tmp_path: Path,
    make_recipe: Callable[..., Recipe],
    make_objective: Callable[..., Any],
    make_batch: Callable[..., Batch],
) -> None:
    changes = {"self_distillation": {"shift": shift}, "contrastive": {"weight": 0.5}}
    batch = make_batch(list(range(8)))
    found = run_ranks(tmp_path, make_recipe("kdc_mae", objective=changes), batch)
    objective = make_objective("kdc_mae", objective=changes)
    loss = objective(batch, torch.Generator().manual_seed(7), 8)
    loss.total.backward()
    for term in objective.coupled_terms:
        torch.testing.assert_close(found["terms"][term], loss.terms[term], atol=1e-6, rtol=1e-5)
    expected = {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}
    assert found["grads"].keys() == expected.keys()
    for name, grad in expected.items():
        torch.testing.assert_close(found["grads"][name], grad, atol=1e-6, rtol=1e-5)
