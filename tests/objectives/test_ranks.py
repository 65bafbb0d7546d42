"""Two gloo ranks take the steps of one process: terms, gradients, and all that learns or moves beside the encoder."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_ranks

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
    run_ranks(2, str(WORKER), str(tmp_path))
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
