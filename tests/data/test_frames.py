"""Frames come out as torchvision's Resize and CenterCrop on a Pillow image make them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from kdctool.data.frames import normalise, resize_crop, tile


def picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=40, deadline=None)
@given(height=st.integers(5, 90), width=st.integers(5, 90), size=st.sampled_from([16, 31, 48]))
def test_resize_and_crop_equal_torchvision_on_pillow(height: int, width: int, size: int) -> None:
    frame = picture(height, width)
    transform = v2.Compose([v2.Resize(size, v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)])
    expected = np.asarray(transform(Image.fromarray(frame)))
    assert np.array_equal(resize_crop(frame, size), expected)


@pytest.mark.parametrize(("shape", "offset"), [((32, 32), (0, 0)), ((32, 37), (0, 2)), ((35, 32), (2, 0))])
def test_a_frame_of_the_right_size_is_cut_but_not_resampled(shape: tuple[int, int], offset: tuple[int, int]) -> None:
    frame = picture(*shape)
    top, left = offset
    assert np.array_equal(resize_crop(frame, 32), frame[top : top + 32, left : left + 32])


def test_the_result_is_writable_and_its_own() -> None:
    frame = picture(16, 16)
    cut = resize_crop(frame, 16)
    cut[:] = 0
    assert frame.any()


def test_a_collage_fills_column_by_column() -> None:
    frames = [np.full((6, 9, 3), value, dtype=np.uint8) for value in (10, 20, 30, 40)]
    collage = tile(frames, 4)
    assert collage.shape == (8, 8, 3)
    assert [int(collage[y, x, 0]) for y, x in ((0, 0), (7, 0), (0, 7), (7, 7))] == [10, 20, 30, 40]
    with pytest.raises(ValueError, match="4 frames, got 3"):
        tile(frames[:3], 4)


def test_normalise_works_on_any_leading_shape() -> None:
    frames = torch.tensor([0, 255], dtype=torch.uint8).view(1, 2, 1, 1, 1).expand(3, 2, 3, 2, 2)
    out = normalise(frames, (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))
    assert out.shape == frames.shape
    assert out[0, 0, :, 0, 0].tolist() == [-1.0, -1.0, 0.0]
    assert out[2, 1, :, 1, 1].tolist() == [1.0, 3.0, 1.0]
