"""RandAugment as timm does it, as a function of a clip's seed, with nobody's generator moved."""

import random

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.constants import IMAGENET_DEFAULT_MEAN
from timm.data.transforms_factory import transforms_imagenet_train

from kdctool.data.rand_augment import _transform, rand_augment
from kdctool.seeds import fold

POLICY = "rand-m9-mstd0.5-inc1"
MEAN = IMAGENET_DEFAULT_MEAN


def picture(seed: int = 0, side: int = 64) -> np.ndarray:
    rough = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(rough).resize((side, side), Image.Resampling.BICUBIC))


def test_it_is_timms_with_the_same_draws() -> None:
    settings = {"translate_const": 28, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BICUBIC}
    theirs = rand_augment_transform(POLICY, settings)
    for seed in range(12):
        drawn = fold(seed, "rand augment")
        random.seed(drawn)
        np.random.seed([drawn & 0xFFFFFFFF, drawn >> 32])
        expected = np.asarray(theirs(Image.fromarray(picture())))
        assert np.array_equal(rand_augment(picture(), POLICY, MEAN, seed), expected)


def test_the_settings_are_those_of_timms_training_pipeline() -> None:
    """What MAE and dBOT call with interpolation = bicubic; timm's own default of RandAugment is another one."""
    pipeline = transforms_imagenet_train(64, auto_augment=POLICY, interpolation="bicubic", color_jitter=None, mean=MEAN)
    theirs = next(part for part in pipeline.transforms if type(part).__name__ == "RandAugment")
    ours = _transform(POLICY, 64, MEAN)
    assert ours.num_layers == theirs.num_layers == 2
    assert [op.name for op in ours.ops] == [op.name for op in theirs.ops]
    for one, two in zip(ours.ops, theirs.ops, strict=True):
        assert (one.prob, one.magnitude, one.magnitude_std) == (two.prob, two.magnitude, two.magnitude_std)
        assert (one.kwargs, one.hparams) == (two.kwargs, two.hparams)
    assert not any(type(part).__name__ == "ColorJitter" for part in pipeline.transforms)


def test_nobody_else_sees_that_the_generators_were_lent() -> None:
    random.seed(3)
    np.random.seed(3)
    expected = [random.random() for _ in range(4)], np.random.rand(4).tolist()
    random.seed(3)
    np.random.seed(3)
    found: tuple[list[float], list[float]] = ([], [])
    for seed in range(4):
        found[0].append(random.random())
        found[1].append(float(np.random.rand()))
        rand_augment(picture(), POLICY, MEAN, seed)
    assert found == expected


def test_they_come_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(image: Image.Image) -> Image.Image:
        raise OSError(random.random())

    monkeypatch.setattr("kdctool.data.rand_augment._transform", lambda *_: broken)
    before = random.getstate()
    with pytest.raises(OSError, match="0"):
        rand_augment(picture(), POLICY, MEAN, 1)
    assert random.getstate() == before


def test_a_seed_decides_and_seeds_differ() -> None:
    found = [rand_augment(picture(), POLICY, MEAN, seed) for seed in range(16)]
    again = [rand_augment(picture(), POLICY, MEAN, seed) for seed in range(16)]
    assert all(np.array_equal(one, two) for one, two in zip(found, again, strict=True))
    assert len({one.tobytes() for one in found}) > 8
    assert any(np.array_equal(one, picture()) for one in found), "each of the two steps is left out half of the time"


def test_no_draw_of_any_policy_fails_at_any_magnitude() -> None:
    """timm posterizes to 0 bits at full magnitude, which Pillow 13 refuses: the 2 % of 9 +- 0.5 that reach 10."""
    for policy in (
        "rand-m10-p1.0-inc1",
        "rand-m10-p1.0-inc0",
        "rand-m0-p1.0-inc1",
        "rand-m0-p1.0-inc0",
        "rand-m20-mmax30-p1.0-inc1",
    ):
        found = [rand_augment(picture(side=16), policy, MEAN, seed) for seed in range(200)]
        assert all(one.shape == (16, 16, 3) and one.dtype == np.uint8 for one in found)


def test_a_picture_of_no_bits_is_black_and_of_others_timms() -> None:
    image = Image.fromarray(picture())
    step = next(op for op in _transform("rand-inc1", 64, MEAN).ops if op.name == "PosterizeIncreasing")
    assert not np.asarray(step.aug_fn(image, 0, **step.kwargs)).any()
    for bits in range(1, 9):
        theirs = np.asarray(image) & (0xFF << (8 - bits) & 0xFF)
        assert np.array_equal(np.asarray(step.aug_fn(image, bits, **step.kwargs)), theirs)
