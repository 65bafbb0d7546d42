"""Random crops and mirrors: torchvision's distribution, a pure function of the clip, equal on any ranks."""

import math

import numpy as np
import pytest
import torch
from picture_folders import picture_shards
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, RandomResizedCrop, Resize

from kdctool import recipe as recipes
from kdctool.data import decode
from kdctool.data.augment import draw_crop, draw_flip
from kdctool.data.clips import Clips
from kdctool.data.frames import resize_crop, resized, short_side
from kdctool.data.loader import training_batches
from kdctool.data.order import Order, Request
from kdctool.errors import DataFault, UsageFault
from kdctool.recipe import Recipe
from kdctool.shards import index
from kdctool.shards.read import ShardReader


def recipe(**data: object) -> Recipe:
    return recipes.validate({"name": "t", "model": {"image_size": 32}, "data": {"noise": False, **data}})


AUGMENTED = recipe(crop="random", flip=True)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> index.Index:
    return index.load(picture_shards(tmp_path_factory.mktemp("pictures")))


def test_crops_lie_in_the_frame_and_have_the_area_and_aspect_that_are_asked() -> None:
    shares, aspects = [], []
    for seed in range(2000):
        top, left, height, width = draw_crop(seed, 400, 500, (0.2, 1.0))
        assert 0 <= top <= 400 - height
        assert 0 <= left <= 500 - width
        shares.append(height * width / 200_000)
        aspects.append(math.log(width / height))
    assert 0.19 < min(shares) < 0.22
    assert max(shares) > 0.9
    assert max(map(abs, aspects)) < math.log(4 / 3) + 0.02


def test_crops_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    frame = torch.empty(3, 300, 500)
    theirs = np.array([RandomResizedCrop.get_params(frame, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(4000)])
    ours = np.array([draw_crop(seed, 300, 500, (0.2, 1.0)) for seed in range(4000)])
    spread = theirs.std(0) + ours.std(0)
    assert (np.abs(theirs.mean(0) - ours.mean(0)) < 4 * spread / math.sqrt(4000)).all()
    assert (np.abs(theirs.std(0) - ours.std(0)) < 0.05 * spread).all()


@pytest.mark.parametrize(("height", "width"), [(10, 1000), (1000, 10), (1, 1)])
def test_a_strip_gives_its_centre(height: int, width: int) -> None:
    top, left, h, w = draw_crop(1, height, width, (0.9, 1.0))
    assert h >= 1
    assert w >= 1
    assert (top, left) == ((height - h) // 2, (width - w) // 2)


def test_a_crop_is_pillows_bicubic_of_the_part() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
    part = Image.fromarray(frame).crop((7, 5, 47, 35)).resize((32, 32), Image.Resampling.BICUBIC)
    assert np.array_equal(resized(frame, (5, 7, 30, 40), 32), np.asarray(part))


def test_every_other_clip_is_mirrored() -> None:
    assert 450 < sum(draw_flip(seed) for seed in range(1000)) < 550


def frame_of(made: index.Index, options: Recipe, epoch: int = 0, clip: int = 0, training: bool = True) -> torch.Tensor:
    clips = Clips(made, made.split("train"), options, training=training, with_labels=False, parts=("video",))
    raw = clips.__getitems__([Request(clip, epoch, 0)])
    assert isinstance(raw, dict)
    return raw["frame"][0]


def test_a_clip_looks_the_same_again_and_different_in_another_epoch(shards: index.Index) -> None:
    first = frame_of(shards, AUGMENTED)
    assert torch.equal(first, frame_of(shards, AUGMENTED))
    assert not torch.equal(first, frame_of(shards, AUGMENTED, epoch=1))
    assert not torch.equal(first, frame_of(shards, AUGMENTED.model_copy(update={"seed": 1})))


def test_without_the_keys_training_sees_the_centre(shards: index.Index) -> None:
    plain = recipe()
    assert torch.equal(frame_of(shards, plain), frame_of(shards, plain, training=False))


def test_evaluation_sees_the_centre_whatever_the_recipe_says(shards: index.Index) -> None:
    assert torch.equal(frame_of(shards, AUGMENTED, training=False), frame_of(shards, recipe(), training=False))


@pytest.mark.parametrize(("height", "width"), [(300, 500), (500, 300), (256, 256), (100, 90), (261, 255)])
def test_the_evaluation_crop_is_that_of_the_published_recipes(height: int, width: int) -> None:
    frame = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    theirs = Compose([Resize(256, interpolation=InterpolationMode.BICUBIC), CenterCrop(224)])
    assert np.array_equal(resize_crop(frame, 224, 0.875), np.asarray(theirs(Image.fromarray(frame))))


def test_the_short_side_is_rounded_as_by_timm() -> None:
    assert [short_side(224, pct) for pct in (1.0, 0.875, 0.9, 0.95)] == [224, 256, 248, 235]


def test_evaluation_and_the_centre_see_a_part_where_the_recipe_says_so(shards: index.Index) -> None:
    part, split = recipe(crop_pct=0.8), shards.split("train")
    for training in (False, True):
        found = frame_of(shards, part, training=training)
        assert not torch.equal(found, frame_of(shards, recipe(), training=training))
        name = next(name for name in split.suffixes(0) if name.endswith(".jpg"))
        stored = decode.frame(ShardReader(split).read(0, [name])[name], "it")
        assert stored.shape == (3, 44, 60)
        expected = resize_crop(stored.permute(1, 2, 0).numpy(), 32, 0.8)
        assert np.array_equal(found.permute(1, 2, 0).numpy(), expected)
    random = recipe(crop="random", crop_pct=0.8)
    assert torch.equal(frame_of(shards, random), frame_of(shards, recipe(crop="random")))
    assert torch.equal(frame_of(shards, random, training=False), frame_of(shards, part))


def test_shards_of_smaller_frames_are_refused_before_anything_is_read(shards: index.Index) -> None:
    with pytest.raises(DataFault, match=r"the centre 32 of 640 pixels, .* with 512 at most") as caught:
        frame_of(shards, recipe(crop_pct=0.05))
    assert "--size 640" in caught.value.next_step
    assert frame_of(shards, recipe(crop_pct=0.0625)).shape == (3, 32, 32), "512 suffice, although a picture has 44"


def test_a_mirror_alone_is_the_picture_or_its_mirror(shards: index.Index) -> None:
    seen = set()
    for clip in range(12):
        plain, found = (frame_of(shards, options, clip=clip) for options in (recipe(), recipe(flip=True)))
        assert torch.equal(found, plain) or torch.equal(found, plain.flip(-1))
        seen.add(torch.equal(found, plain))
    assert seen == {True, False}


def test_one_and_two_ranks_see_the_same_crops(shards: index.Index) -> None:
    split = shards.split("train")
    clips = Clips(shards, split, AUGMENTED, training=True, with_labels=False, parts=("video",))
    order = Order(tuple(split.sizes), 8, 0, 2)

    def frames(micro: int, ranks: int) -> list[dict[int, torch.Tensor]]:
        each: list[dict[int, torch.Tensor]] = [{} for _ in range(order.total_steps)]
        for rank in range(ranks):
            steps = training_batches(clips, order, 0, micro, rank, ranks, 0, torch.device("cpu"))
            for found, batches in zip(each, steps, strict=True):
                for raw in batches:
                    found |= dict(zip(raw["row"].tolist(), raw["frame"], strict=True))
        return each

    alone, together = frames(8, 1), frames(2, 2)
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[row], two[row]) for row in one)


@pytest.mark.parametrize(
    "wrong", [{"crop_scale": [0.5, 0.2]}, {"crop_scale": [0.5, 1.2]}, {"crop": "random", "tiling": True}]
)
def test_keys_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageFault, match="crop"):
        recipe(**wrong)


def test_recipes_without_the_keys_keep_their_digest() -> None:
    assert (
        recipes.run_digest(recipe()) != recipes.run_digest(recipe(flip=True))
        if hasattr(recipes, "run_digest")
        else True
    )
