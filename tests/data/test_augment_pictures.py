"""Finetuning's augmentation of pictures: cutmix, erasing and RandAugment, alike in any batch and on any ranks."""

from pathlib import Path

import numpy as np
import pytest
import torch
from picture_folders import picture_shards

from kdctool import recipe as recipes
from kdctool.data.augment import Mix, draw_mix
from kdctool.data.clips import Clips, Raw
from kdctool.data.device import ToBatch
from kdctool.data.loader import training_batches
from kdctool.data.order import Order, Request
from kdctool.data.patches import draw_erasing, inside
from kdctool.recipe import Finetune, Recipe
from kdctool.seeds import fold
from kdctool.shards import index

CPU = torch.device("cpu")
RECIPE = recipes.validate(
    {"name": "t", "model": {"image_size": 32}, "data": {"noise": False, "crop": "random", "flip": True}}
)
ALL = Finetune(
    modality="video", mixup=0.8, mixup_alpha=0.8, cutmix=0.5, erasing=0.4, rand_augment="rand-m9-mstd0.5-inc1"
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> index.Index:
    return index.load(picture_shards(tmp_path_factory.mktemp("pictures")))


def clips_of(made: index.Index, options: Finetune, recipe: Recipe = RECIPE) -> Clips:
    split = made.split("train")
    return Clips(made, split, recipe, training=True, with_labels=True, parts=("video",), finetune=options)


def batch_of(clips: Clips, options: Finetune, requests: list[Request]) -> tuple[Raw, Raw]:
    """What the loader yields and what the model sees."""
    raw = clips.__getitems__(requests)
    assert isinstance(raw, dict)
    return raw, ToBatch(RECIPE, CPU, training=True, finetune=options)(raw)


def requests(clips: int = 12, epoch: int = 1) -> list[Request]:
    return [Request(clip, epoch, clip) for clip in range(clips)]


def test_blends_and_cuts_share_the_mixed_clips_and_each_has_its_beta() -> None:
    options = Finetune(modality="video", mixup=1.0, mixup_alpha=0.8, cutmix=0.5, cutmix_alpha=1.0)
    found = [draw_mix(seed, options, 9, 224) for seed in range(6000)]
    mixes = [one for one in found if isinstance(one, Mix)]
    assert len(mixes) == 6000
    blends = [one for one in mixes if one.box == (0, 0, 0, 0)]
    cuts = [one for one in mixes if one.box != (0, 0, 0, 0)]
    assert len(cuts) == pytest.approx(3000, abs=5 * np.sqrt(1500))
    weights = np.array([one.weight for one in blends])
    assert weights.mean() == pytest.approx(0.5, abs=0.02)
    assert weights.var() == pytest.approx(1 / (4 * 2.6), rel=0.08)  # of Beta(0.8, 0.8)
    for one in cuts:
        assert one.weight == pytest.approx(1 - one.box[2] * one.box[3] / 224**2)
    whole = [draw_mix(seed, options.model_copy(update={"cutmix": 0.0}), 9, 224) for seed in range(6000)]
    for mine, plain in zip(mixes, whole, strict=True):
        assert plain is not None
        assert mine.partner == plain.partner
        assert mine == plain or mine.box != (0, 0, 0, 0), "a blend is what it is without cutmix"


def test_a_cut_picture_is_the_partners_inside_and_its_own_around(shards: index.Index) -> None:
    options = Finetune(modality="video", mixup=1.0, mixup_alpha=0.8, cutmix=0.7, cutmix_alpha=1.0)
    loader = clips_of(shards, options)
    raw, batch = batch_of(loader, options, requests())
    _, plain = batch_of(clips_of(shards, Finetune(modality="video")), Finetune(modality="video"), requests())
    kinds = set()
    for place, row in enumerate(raw["mix_row"].tolist()):
        box, weight = raw["mix_box"][place], float(raw["mix_weight"][place])
        mean, std = (torch.tensor(x)[:, None, None] for x in (RECIPE.data.image_mean, RECIPE.data.image_std))
        partner = (raw["mix_frame"][place] / 255 - mean) / std
        if int(box[2] * box[3]):
            hole = inside(box[None], 32, 32)[0]
            expected = torch.where(hole, partner, plain["frame"][row])
            assert weight == pytest.approx(1 - float(hole.float().mean()))
        else:
            expected = weight * plain["frame"][row] + (1 - weight) * partner
        torch.testing.assert_close(batch["frame"][row], expected, atol=1e-5, rtol=0)
        label = weight * plain["label"][row] + (1 - weight) * raw["mix_label"][place]
        torch.testing.assert_close(batch["label"][row], label.float())
        kinds.add(int(box[2] * box[3]) > 0)
    assert kinds == {True, False}


def test_pictures_are_erased_each_for_itself_before_they_are_mixed(shards: index.Index) -> None:
    only = Finetune(modality="video", erasing=0.5)
    raw, batch = batch_of(clips_of(shards, only), only, requests())
    _, plain = batch_of(clips_of(shards, Finetune(modality="video")), Finetune(modality="video"), requests())
    keys = [shards.split("train").key(clip) for clip in range(12)]
    for row in range(12):
        box = draw_erasing(fold(RECIPE.seed, "augment", 1, keys[row]), 0.5, 32, 32)
        changed = (batch["frame"][row] != plain["frame"][row]).any(dim=0)
        expected = inside(torch.tensor([box]), 32, 32)[0] if box else torch.zeros(32, 32, dtype=torch.bool)
        assert torch.equal(changed, expected)
    assert 0 < len(raw["erase_row"]) < 12
    mixed = Finetune(modality="video", mixup=1.0, erasing=1.0)
    raw, batch = batch_of(clips_of(shards, mixed), mixed, requests())
    assert len(raw["erase_row"]) == len(raw["mix_erase_row"]) == 12
    assert not torch.equal(raw["erase_key"], raw["mix_erase_key"])
    alone = Finetune(modality="video", erasing=1.0)
    _, first = batch_of(clips_of(shards, alone), alone, requests())
    theirs = {name.removeprefix("mix_"): value for name, value in raw.items() if name.startswith("mix_")}
    second = ToBatch(RECIPE, CPU, training=True)({**theirs, "row": raw["row"]})
    weight = raw["mix_weight"].float().view(-1, 1, 1, 1)
    expected = weight * first["frame"] + (1 - weight) * second["frame"]
    torch.testing.assert_close(batch["frame"], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["cutmix", "erasing", "rand_augment"])
def test_each_kind_changes_pictures_and_nothing_of_the_others(shards: index.Index, name: str) -> None:
    off = {"cutmix": 0.0, "erasing": 0.0, "rand_augment": ""}
    without = ALL.model_copy(update={name: off[name]})
    _, on = batch_of(clips_of(shards, ALL), ALL, requests(24))
    _, gone = batch_of(clips_of(shards, without), without, requests(24))
    same = [torch.equal(one, two) for one, two in zip(on["frame"], gone["frame"], strict=True)]
    assert not all(same)
    assert any(same)


def test_a_clip_looks_the_same_alone_and_among_others(shards: index.Index) -> None:
    loader = clips_of(shards, ALL)
    raw, batch = batch_of(loader, ALL, requests())
    assert 0 < len(raw["mix_row"]) < 12
    for request in requests():
        _, alone = batch_of(loader, ALL, [request])
        for name in ("frame", "label"):
            assert torch.equal(alone[name][0], batch[name][request.row])
    _, later = batch_of(loader, ALL, requests(epoch=2))
    assert not any(torch.equal(one, two) for one, two in zip(batch["frame"], later["frame"], strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_one_and_two_ranks_see_the_same_pictures(shards: index.Index, workers: int) -> None:
    split, loader = shards.split("train"), clips_of(shards, ALL)
    order, to_batch = Order(tuple(split.sizes), 8, 0, 1), ToBatch(RECIPE, CPU, training=True, finetune=ALL)

    def seen(micro: int, ranks: int) -> list[dict[int, torch.Tensor]]:
        each: list[dict[int, torch.Tensor]] = [{} for _ in range(order.total_steps)]
        for rank in range(ranks):
            steps = training_batches(loader, order, 0, micro, rank, ranks, workers if ranks > 1 else 0, CPU)
            for found, batches in zip(each, steps, strict=True):
                for batch in map(to_batch, batches):
                    found |= dict(zip(batch["row"].tolist(), batch["frame"], strict=True))
        return each

    alone, together = seen(8, 1), seen(2, 2)
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys() == set(range(8))
        assert all(torch.equal(one[row], two[row]) for row in one)


def test_evaluation_sees_none_of_it(shards: index.Index, tmp_path: Path) -> None:
    split = shards.split("train")
    clips = Clips(shards, split, RECIPE, training=False, with_labels=True, parts=("video",))
    raw, _ = batch_of(clips, Finetune(), requests())
    assert not [name for name in raw if name.startswith(("mix_", "erase_"))]
