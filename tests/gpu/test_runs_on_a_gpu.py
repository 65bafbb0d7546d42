"""Whole commands on a GPU: loader processes, compiled blocks, checkpoints, probes, held clips, tasks.

KDCTOOL_TEST_DEVICE=cpu runs them without one: do the tests themselves run?
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from training_runs import curve, rows

from kdctool import recipe as recipes
from kdctool.data.clips import Clips
from kdctool.data.loader import read
from kdctool.data.order import Request
from kdctool.recipe import Recipe
from kdctool.shards import index as shard_index
from kdctool.stages import embed, evaluate, finetune, pretrain

DEVICE = os.environ.get("KDCTOOL_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="torch sees no GPU"),
]
OFF = 'parallel.compile="off"'
Write = Callable[..., Path]


def recipe_of(tiny_recipe: Write, *changes: str) -> Recipe:
    return recipes.load(tiny_recipe(*changes))


def test_a_run_with_everything_on_it_ends_and_says_how_fast(tiny_recipe: Write, tmp_path: Path) -> None:
    """Compiled where there is a compiler; loader processes; every meter; a profile."""
    meters = ["log.gradient_norms_every=2", "log.collapse_every=2", "log.probe_every_steps=3"]
    compiling = [] if DEVICE == "cuda" else [OFF]
    recipe = recipe_of(tiny_recipe, "data.workers=2", "training.epochs=3", *meters, *compiling)
    run = tmp_path / "run"
    fitted = pretrain.run(recipe, out=run, device_name=DEVICE, profile=(3, 5)).fitted
    assert fitted is not None
    assert fitted.step == 9
    found = [row for row in rows(run) if "loss" in row]
    assert len(found) == 9
    assert all(np.isfinite(row["loss"]) for row in found)
    assert any((run / "profile").iterdir())
    if DEVICE == "cuda":
        assert found[-1]["gpu_memory_gb"] > 0
        assert found[-1]["tflops_per_rank"] > 0


def test_a_resumed_run_goes_on_where_it_was(tiny_recipe: Write, tmp_path: Path) -> None:
    """Rounding may differ between two runs of a GPU, whose sums come in any order."""
    long = [OFF, 'training.precision="fp32"', "log.checkpoint_every_steps=2", "training.micro_batch=4"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recipe = recipe_of(tiny_recipe, *long)
    pretrain.run(recipe, out=whole, device_name=DEVICE)
    pretrain.run(recipe, out=cut, device_name=DEVICE)
    for last in sorted((cut / "checkpoints").iterdir())[-1:]:
        (last / "manifest.json").unlink()  # Damaged: the run goes on from the one before.
    fitted = pretrain.run(recipe, out=cut, device_name=DEVICE).fitted
    assert fitted is not None
    assert fitted.resumed_from == 4
    for one, two in zip(curve(whole), curve(cut), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("hold", ["device", "memory"])
def test_held_clips_give_the_run_that_reading_them_gives(tiny_recipe: Write, tmp_path: Path, hold: str) -> None:
    same = [OFF, 'training.precision="fp32"', "training.epochs=1"]
    for name in ("none", hold):
        recipe = recipe_of(tiny_recipe, *same, f'data.hold="{name}"')
        pretrain.run(recipe, out=tmp_path / name, device_name=DEVICE)
    for one, two in zip(curve(tmp_path / "none"), curve(tmp_path / hold), strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-5)


def test_a_finetuned_model_is_scored_embedded_and_agrees_with_the_cpu(tiny_recipe: Write, tmp_path: Path) -> None:
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    pretrain.run(recipe_of(tiny_recipe, OFF), out=run, device_name=DEVICE)
    change = ["finetune.mixup=0.5", "finetune.freq_mask=8", "finetune.time_mask=8", "finetune.average_from=1"]
    finetune.run(run, recipe=recipe_of(tiny_recipe, OFF, *change), out=tuned, device_name=DEVICE)
    for task, model in {
        "retrieval": run, "probe": run, "diagnose": run, "inpainting": run, "classification": tuned,
    }.items():  # fmt: skip
        options = {"labels": "all"} if task == "probe" else {}
        there = evaluate.run(model, task=task, device_name=DEVICE, options=options).result
        assert there.n_scored == 20
        if task in ("retrieval", "classification"):
            here = evaluate.run(model, task=task, device_name="cpu", out=tmp_path / "cpu").result
            assert {name: metric.value for name, metric in there.metrics.items()} == pytest.approx(
                {name: metric.value for name, metric in here.metrics.items()}, abs=0.11
            ), "a tie may fall the other way, and no more"
    shards = json.loads((run / "run.json").read_text())["shards"]
    vectors = {}
    for device in (DEVICE, "cpu"):
        embed.run(run, Path(shards), tmp_path / f"{device}.npy", device_name=device, split="test", overwrite=True)
        vectors[device] = np.load(tmp_path / f"{device}.npy", allow_pickle=False)
    assert np.abs(vectors[DEVICE] - vectors["cpu"]).max() < 1e-3


def test_loader_processes_start_beside_a_gpu_and_read_what_one_process_reads(tiny_shards: Path) -> None:
    """They are not forked, as a fork would have the GPU's context."""
    index = shard_index.load(tiny_shards)
    recipe = recipes.loads('name = "tiny"', ["model.audio_frames=64", "model.mel_bins=32", "model.image_size=32"])
    clips = Clips(index, index.split("train"), recipe, training=True, with_labels=True)
    lists = [[Request(i, 0, i) for i in range(first, first + 4)] for first in (0, 4)]
    alone = list(read(clips, lists, 0, torch.device("cpu")))
    apart = list(read(clips, lists, 2, torch.device("cuda")))
    for one, two in zip(alone, apart, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(value, two[name]) for name, value in one.items())
