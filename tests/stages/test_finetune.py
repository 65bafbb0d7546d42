"""Finetuning and mixed precision through the stages, on tiny shards."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from kdctool import recipe as recipes
from kdctool.errors import DataFault
from kdctool.stages import evaluate, finetune, pretrain, shard

Recipe = Callable[..., Path]


@pytest.mark.parametrize("modality", ["audio", "video", "both"])
def test_several_labels_per_clip_are_learnt_with_bce_and_scored_with_map(
    tiny_recipe: Recipe, tiny_extraction: Path, tmp_path: Path, modality: str
) -> None:
    uids = [json.loads(line)["uid"] for line in (tiny_extraction / "manifest.jsonl").open()]
    rows = [f"{uid},{'a;b' if place % 2 else 'b;c'}\n" for place, uid in enumerate(uids)]
    (tmp_path / "labels.csv").write_text("uid,label\n" + "".join(rows))
    shard.run(tiny_extraction, tmp_path / "shards", labels=tmp_path / "labels.csv")
    pretrain.run(recipes.load(tiny_recipe("training.epochs=1")), out=tmp_path / "pre", device_name="cpu")
    shards, change = tmp_path / "shards", [f"finetune.modality={modality}", "finetune.training.epochs=2"]
    finetune.run(tmp_path / "pre", overrides=change, shards=shards, out=tmp_path / "fine", device_name="cpu")
    result = evaluate.run(tmp_path / "fine", task="classification", shards=shards, device_name="cpu").result
    assert {"map", "auc", "d_prime"} <= result.metrics.keys()
    assert "top1" not in result.metrics
    assert result.n_scored == result.n_total == 20


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near_float32(tiny_recipe: Recipe, tmp_path: Path, precision: str) -> None:
    losses = []
    for name in ("fp32", precision):
        recipe = recipes.load(tiny_recipe(f"training.precision={name}", "training.micro_batch=4"))
        fitted = pretrain.run(recipe, out=tmp_path / name, device_name="cpu").fitted
        assert fitted is not None
        losses.append(fitted.last["loss"])
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[0] == pytest.approx(losses[1], rel=5e-3)


def test_shards_without_labels_are_refused_with_the_command_that_adds_them(
    tiny_recipe: Recipe, tiny_extraction: Path, tmp_path: Path
) -> None:
    pretrain.run(recipes.load(tiny_recipe("training.epochs=1")), out=tmp_path / "pre", device_name="cpu")
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny_extraction.iterdir():
        (bare / path.name).symlink_to(path)
    (bare / "manifest.jsonl").unlink()
    text = (tiny_extraction / "manifest.jsonl").read_text()
    (bare / "manifest.jsonl").write_text(text.replace('"labels":["blue"]', '"labels":[]').replace(
        '"labels":["green"]', '"labels":[]').replace('"labels":["red"]', '"labels":[]'))  # fmt: skip
    shard.run(bare, tmp_path / "shards")
    with pytest.raises(DataFault, match="has no labels") as fault:
        finetune.run(tmp_path / "pre", shards=tmp_path / "shards", out=tmp_path / "fine", device_name="cpu")
    assert "--labels" in fault.value.next_step
