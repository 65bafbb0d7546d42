"""Finetuning's augmentation against the reference's own words: torchaudio's maskings, and mixup by hand."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from PIL import Image

from kdctool import recipe as recipes
from kdctool.data.augment import Mix, draw_mix, spec_aug
from kdctool.data.clips import Clips
from kdctool.data.device import ToBatch
from kdctool.data.noise import uniform
from kdctool.data.order import Request
from kdctool.recipe import Finetune, Recipe
from kdctool.seeds import fold
from kdctool.shards import index
from kdctool.shards.write import write_shard

CPU = torch.device("cpu")
RATE, WINDOW = 16000, (64 - 1) * 160 + 400
LENGTHS = (WINDOW - 3000, WINDOW, WINDOW + 5000, WINDOW - 1111, WINDOW + 2000, 4000)
"""Of the clips: shorter than the model's window, as long and longer."""
LABELS = ("bird", "cat", "dog")


def picture(number: int) -> np.ndarray:
    rng = np.random.default_rng(number)
    return np.full((32, 32, 3), rng.integers(0, 255, 3), dtype=np.uint8)


def wave(number: int) -> np.ndarray:
    rng = np.random.default_rng(100 + number)
    return (rng.normal(300 * number, 3000, LENGTHS[number])).astype(np.int16)


def encoded(number: int) -> list[tuple[str, bytes]]:
    sound, frame = io.BytesIO(), io.BytesIO()
    soundfile.write(sound, wave(number), RATE, format="FLAC", subtype="PCM_16")
    Image.fromarray(picture(number)).save(frame, "JPEG", quality=95)
    about = f'{{"labels": ["{LABELS[number % 3]}"]}}'.encode()
    return [("json", about), ("flac", sound.getvalue()), ("0.jpg", frame.getvalue())]


@pytest.fixture
def shards(tmp_path: Path) -> index.Index:
    clips = [(f"clip-{number}", encoded(number)) for number in range(len(LENGTHS))]
    entry = write_shard(tmp_path / "train-000000.tar", "train", clips)
    made = index.Index(tmp_path, LABELS, False, {"sample_rate": RATE, "size": 32}, (entry,), {"manifest": "x"})
    index.write(made)
    return made


def reference_sound(recipe: Recipe, first: np.ndarray, second: np.ndarray, weight: float) -> torch.Tensor:
    """CAV-MAE's _wav2fbank with a second file, line by line, then its padding and normalisation."""
    one, two = (torch.from_numpy(samples[None] / 32768).float() for samples in (first, second))
    one, two = one - one.mean(), two - two.mean()
    if one.shape[1] > two.shape[1]:
        padded = torch.zeros(1, one.shape[1])
        padded[0, : two.shape[1]] = two
        two = padded
    else:
        two = two[:, : one.shape[1]]
    mixed = weight * one + (1 - weight) * two
    mixed = mixed - mixed.mean()
    fbank = torchaudio.compliance.kaldi.fbank(
        mixed, htk_compat=True, sample_frequency=RATE, use_energy=False, window_type="hanning",
        num_mel_bins=recipe.model.mel_bins, dither=0.0, frame_shift=10,
    )  # fmt: skip
    short = recipe.model.audio_frames - len(fbank)
    fbank = torch.nn.functional.pad(fbank, (0, 0, 0, short)) if short > 0 else fbank[: recipe.model.audio_frames]
    return (fbank - recipe.data.fbank_mean) / recipe.data.fbank_std


def reference_frame(recipe: Recipe, number: int) -> torch.Tensor:
    data = dict(encoded(number))["0.jpg"]
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(x)[:, None, None] for x in (recipe.data.image_mean, recipe.data.image_std))
    return (pixels - mean) / std


def test_mixed_sound_frames_and_labels_are_the_references(
    shards: index.Index, tiny_recipe: Callable[..., Path]
) -> None:
    recipe, options = recipes.load(tiny_recipe("data.noise=false", "seed=4")), Finetune(mixup=1.0)
    split, clips = shards.split("train"), len(LENGTHS)
    loader = Clips(shards, split, recipe, training=True, with_labels=True, finetune=options)
    to_batch = ToBatch(recipe, CPU, training=True, finetune=options)
    kinds = set()
    for epoch in range(4):
        raw = loader.__getitems__([Request(clip, epoch, clip) for clip in range(clips)])
        assert isinstance(raw, dict)
        batch = {name: value.clone() for name, value in to_batch(raw).items()}
        for clip in range(clips):
            found = draw_mix(fold(recipe.seed, "augment", epoch, split.key(clip)), options, clips, 32)
            assert found is not None
            kinds.add(np.sign(LENGTHS[clip] - LENGTHS[found.partner]))
            expected = reference_sound(recipe, wave(clip), wave(found.partner), found.weight)
            torch.testing.assert_close(batch["fbank"][clip], expected, atol=2e-3, rtol=0)
            one, two = reference_frame(recipe, clip), reference_frame(recipe, found.partner)
            mixed = found.weight * one + (1 - found.weight) * two
            torch.testing.assert_close(batch["frame"][clip], mixed, atol=0.02, rtol=0)
            label = torch.zeros(3)
            label[clip % 3] += found.weight
            label[found.partner % 3] += 1 - found.weight
            torch.testing.assert_close(batch["label"][clip], label)
            alone = reference_sound(recipe, wave(clip), wave(clip), 1.0)
            if found.partner != clip:
                assert (batch["fbank"][clip] - alone).abs().max() > 0.05
        again = to_batch(raw)
        assert all(torch.equal(batch[name], again[name]) for name in batch), "the raw clips were changed"
    assert kinds == {-1, 0, 1}, "partners must be shorter, equal and longer than the first clip"


def test_a_clip_is_mixed_alike_in_any_batch_and_by_any_share(
    shards: index.Index, tiny_recipe: Callable[..., Path]
) -> None:
    recipe, options = recipes.load(tiny_recipe()), Finetune(mixup=0.5, freq_mask=8, time_mask=16)
    loader = Clips(shards, shards.split("train"), recipe, training=True, with_labels=True, finetune=options)
    plain = Clips(shards, shards.split("train"), recipe, training=True, with_labels=True)
    to_batch = ToBatch(recipe, CPU, training=True, finetune=options)
    requests = [Request(clip, 1, clip) for clip in range(6)]
    raw, bare = loader.__getitems__(requests), plain.__getitems__(requests)
    assert isinstance(raw, dict)
    assert isinstance(bare, dict)
    batch, unmixed = to_batch(raw), to_batch(bare)
    assert 0 < len(raw["mix_row"]) < 6
    for request in requests:
        single = loader.__getitems__([request])
        assert isinstance(single, dict)
        alone = to_batch(single)
        for name in ("fbank", "frame", "label"):
            torch.testing.assert_close(alone[name][0], batch[name][request.row], atol=1e-6, rtol=0)
        same = torch.equal(batch["fbank"][request.row], unmixed["fbank"][request.row])
        assert same == (request.row not in raw["mix_row"].tolist())


def test_a_clip_that_an_epoch_draws_again_is_augmented_anew(
    shards: index.Index, tiny_recipe: Callable[..., Path]
) -> None:
    recipe = recipes.load(tiny_recipe())
    loader = Clips(shards, shards.split("train"), recipe, training=True, with_labels=True)
    raw = loader.__getitems__([Request(2, 0, 0), Request(2, 0, 1, again=1), Request(2, 0, 2)])
    assert isinstance(raw, dict)
    assert raw["seed"][0] == raw["seed"][2] != raw["seed"][1]


def test_mixing_happens_at_its_rate_with_betas_weights_and_any_partner() -> None:
    found = [draw_mix(seed, Finetune(mixup=0.5), 7, 32) for seed in range(4000)]
    mixes = [one for one in found if isinstance(one, Mix)]
    assert len(mixes) == pytest.approx(2000, abs=5 * np.sqrt(1000))
    weights = np.array([one.weight for one in mixes])
    assert weights.mean() == pytest.approx(0.5, abs=0.02)
    assert weights.var() == pytest.approx(1 / 84, rel=0.15)  # of Beta(10, 10)
    counts = np.bincount([one.partner for one in mixes], minlength=7)
    assert len(counts) == 7
    assert counts.min() > 0.7 * counts.mean()
    assert draw_mix(3, Finetune(), 7, 32) is None
    assert all(one.box == (0, 0, 0, 0) for one in mixes)


def test_spec_aug_masks_what_torchaudio_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = torch.arange(40)
    fbank = torch.rand(40, 256, 64) + 1
    masked = spec_aug(fbank, seeds, 48, 192, blank=-7.0)
    draws = uniform(~seeds, 4)
    for row in range(len(seeds)):
        stream = iter(draws[row].tolist())
        monkeypatch.setattr(torch, "rand", lambda *_, stream=stream: torch.tensor([next(stream)]))
        picture = fbank[row].T[None]  # torchaudio wants (..., freq, time)
        picture = torchaudio.transforms.FrequencyMasking(48)(picture)
        picture = torchaudio.transforms.TimeMasking(192)(picture)
        monkeypatch.undo()
        expected = torch.where(picture[0].T == 0, torch.tensor(-7.0), picture[0].T)
        assert torch.equal(masked[row], expected)


def test_spec_augs_widths_are_uniform_below_their_limits() -> None:
    blank = spec_aug(torch.ones(3000, 96, 40), torch.arange(3000), 12, 30, blank=0.0) == 0
    bins, frames = blank.all(dim=1).sum(dim=1), blank.all(dim=2).sum(dim=1)
    for widths, limit in ((bins, 12), (frames, 30)):
        assert (int(widths.min()), int(widths.max())) == (0, limit - 1)
        share = np.bincount(widths.numpy(), minlength=limit) / len(widths)
        assert share.max() < 1.6 / limit
        assert share.min() > 0.5 / limit
    assert abs(np.corrcoef(bins, frames)[0, 1]) < 0.06
    assert not (spec_aug(torch.ones(9, 8, 8), torch.arange(9), 0, 0, blank=0.0) == 0).any()


def test_blanks_are_what_the_reference_normalises_from_zero(
    shards: index.Index, tiny_recipe: Callable[..., Path]
) -> None:
    recipe, options = recipes.load(tiny_recipe("data.noise=false")), Finetune(time_mask=64)
    loader = Clips(shards, shards.split("train"), recipe, training=True, with_labels=False, finetune=options)
    raw = loader.__getitems__([Request(1, epoch, 0) for epoch in range(8)])
    assert isinstance(raw, dict)
    batch = ToBatch(recipe, CPU, training=True, finetune=options)(raw)
    plain = ToBatch(recipe, CPU, training=True)(raw)
    changed = batch["fbank"] != plain["fbank"]
    assert changed.any()
    expected = -torch.tensor(recipe.data.fbank_mean) / torch.tensor(recipe.data.fbank_std)
    torch.testing.assert_close(batch["fbank"][changed], expected.expand(int(changed.sum())))
