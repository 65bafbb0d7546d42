"""What learns or moves beside the encoder is in the checkpoint: a run that was cut goes on bit for bit."""

from collections.abc import Callable
from pathlib import Path

import torch
from training_runs import power_cut, weights

from kdctool import recipe as recipes
from kdctool.stages import pretrain

EVERYTHING = (
    "objective.self_distillation.stop_gradient=teacher",
    "objective.self_distillation.momentum=0.8",
    "objective.contrastive={ learn_temperature = true, weight = 1.0, own_ratio = 0.5 }",
    "objective.decoder.kind=light",
    "masking.video=adaptive",
    "log.checkpoint_every_steps=2",
)


def test_teacher_temperature_and_learned_masks_go_on_where_they_were(
    tiny_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    recipe = recipes.load(tiny_recipe(*EVERYTHING))
    pretrain.run(recipe, out=tmp_path / "whole", device_name="cpu")
    with power_cut(5):
        pretrain.run(recipe, out=tmp_path / "cut", device_name="cpu")
    done = pretrain.run(recipe, out=tmp_path / "cut", device_name="cpu")
    assert done.fitted is not None
    assert done.fitted.resumed_from == 4
    before, after = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    moved = ("teacher.encoder.norm.weight", "contrastive.log_temperature", "video_masking.logit.weight")
    assert all(name in before for name in moved)
    assert not torch.equal(before["teacher.encoder.norm.weight"], before["encoder.norm.weight"])
