"""Three steps of an objective on this rank's share of a global batch; started once per rank by test_ranks.py."""

import sys
from pathlib import Path
from typing import Any

import torch
from trainers import make_trainer

from kdctool import dist
from kdctool.batch import Batch
from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives import build
from kdctool.recipe import Recipe, load
from kdctool.recipe.machine import Parallel
from kdctool.train.parallel import whole, wrap
from kdctool.train.step import train_step


def steps(recipe: Recipe, batch: Batch, mode: str, micros: int) -> dict[str, Any]:
    """Rows of three steps and the state after them; `micros` micro batches per rank, measuring every second step."""
    rank, ranks = dist.world()
    torch.manual_seed(0)
    objective = build(recipe, AVEncoder(recipe.model))
    module = wrap(objective, torch.device("cpu"), Parallel.model_validate({"mode": mode, "compile": "off"}))
    trainer = make_trainer(objective, module=module, gradient_norms_every=2, collapse_every=2)
    parts = [{name: x[rank + m * ranks :: ranks * micros] for name, x in batch.items()} for m in range(micros)]
    rows = [dict(train_step(trainer, parts, step)) for step in range(3)]
    return {"rows": rows, "state": {name: whole(value) for name, value in objective.state_dict().items()}}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init(torch.device("cpu"), timeout_s=60)
    given = torch.load(folder / "batch.pt", weights_only=True)
    for path in sorted(folder.glob("*.toml")):
        _, mode, micros = path.stem.split("-")
        found = steps(load(path), given, mode, int(micros))
        if dist.is_main():
            torch.save(found, path.with_suffix(".pt"))
    dist.shutdown()
