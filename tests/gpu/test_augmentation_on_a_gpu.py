"""Augmentation of pictures on a GPU: what the CPU makes of the same clips, to the rounding of its functions."""

from pathlib import Path

import pytest
import torch
from picture_folders import picture_shards

from kdctool import recipe as recipes
from kdctool.data.clips import Clips
from kdctool.data.device import ToBatch
from kdctool.data.order import Request
from kdctool.models import drop_path
from kdctool.recipe import Finetune
from kdctool.shards import index

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")]


def test_mixed_and_erased_pictures_are_those_of_the_cpu(tmp_path: Path) -> None:
    made = index.load(picture_shards(tmp_path))
    recipe = recipes.validate({"name": "t", "model": {"image_size": 32}, "data": {"noise": False, "crop": "random"}})
    options = Finetune(modality="video", mixup=0.8, mixup_alpha=0.8, cutmix=0.5, erasing=0.5)
    split = made.split("train")
    clips = Clips(made, split, recipe, training=True, with_labels=True, parts=("video",), finetune=options)
    raw = clips.__getitems__([Request(clip, 0, clip) for clip in range(24)])
    assert isinstance(raw, dict)
    assert len(raw["erase_row"])
    here, there = (
        ToBatch(recipe, torch.device(name), training=True, finetune=options)(raw) for name in ("cpu", "cuda")
    )
    for name in ("frame", "label"):
        torch.testing.assert_close(there[name].cpu(), here[name], atol=1e-4, rtol=0)


def test_a_gpu_draws_stochastic_depth_for_the_whole_batch_too() -> None:
    path, rows = drop_path.DropPath(0.4).train(), torch.arange(16, device="cuda")
    kept = []
    for part in (rows, rows[:5], rows[5:]):
        drop_path.draw(path, {"row": part}, 16, torch.Generator("cuda").manual_seed(3))
        kept.append(path(torch.ones(len(part), 2, 1, device="cuda"))[:, 0, 0])
    assert torch.equal(kept[0], torch.cat(kept[1:]))
    assert 0 < int((kept[0] == 0).sum()) < 16
