"""Clips held decoded give the loader's batches bit for bit, and what cannot be held is refused with the reason."""

import io
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from kdctool import recipe as recipes
from kdctool.data import held as holds
from kdctool.data import holding
from kdctool.data.clips import Clips, Raw
from kdctool.data.device import ToBatch
from kdctool.data.held import Held, _Whole, ahead
from kdctool.data.holding import Extent
from kdctool.data.labels import read_labels
from kdctool.data.loader import training_batches
from kdctool.data.order import Order, Request
from kdctool.errors import DataFault, EnvironmentFault, UsageFault, VerificationFault
from kdctool.recipe import Data, Finetune, Recipe
from kdctool.shards import index
from kdctool.shards.write import write_shard

CPU = torch.device("cpu")
WINDOW = (64 - 1) * 160 + 400
SIZES = ((32, 32), (40, 50), (32, 32), (60, 41))
CLIPS = 22
LABELS = ("bird", "cat", "dog")


def sound(number: int) -> bytes:
    """Shorter than the model's window, as long, and longer; with a mean of its own."""
    length = (WINDOW - 2777, WINDOW, WINDOW + 4000, 700)[number % 4]
    buffer = io.BytesIO()
    samples = np.random.default_rng(number).normal(50 * number, 3000, length).astype(np.int16)
    soundfile.write(buffer, samples, 16000, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def picture(number: int, place: int) -> bytes:
    width, height = SIZES[number % len(SIZES)]
    pixels = np.random.default_rng(100 * number + place).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def made(folder: Path, *, frames: bool = True, audio: bool = True) -> index.Index:
    """22 clips in three shards, with four to seven frames; one label in most of them, and two, and none."""
    folder.mkdir()
    clips = []
    for number in range(CLIPS):
        names = [LABELS[0]] if number % 4 else [LABELS[1], LABELS[2]] if number % 8 else []
        members = [("json", f'{{"labels": {names}}}'.replace("'", '"').encode())]
        members += [("flac", sound(number))] if audio else []
        members += [(f"{place}.jpg", picture(number, place)) for place in range(4 + number % 4)] if frames else []
        clips.append((f"clip-{number:02d}", members))
    cuts = ((0, 9), (9, 10), (10, CLIPS))
    entries = tuple(
        write_shard(folder / f"train-00000{n}.tar", "train", clips[first:last]) for n, (first, last) in enumerate(cuts)
    )
    found = index.Index(folder, LABELS, True, {"sample_rate": 16000, "size": 32}, entries, {"manifest": "x"})
    index.write(found)
    return found


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> index.Index:
    return made(tmp_path_factory.mktemp("held") / "shards")


def recipe(hold: str = "memory", **data: object) -> Recipe:
    model = {"audio_frames": 64, "mel_bins": 32, "image_size": 32, "audio_patch": 16, "video_patch": 8}
    return recipes.validate({"name": "t", "seed": 3, "model": model, "data": {"hold": hold, **data}})


def clips_of(made: index.Index, options: Recipe, **more: object) -> Clips:
    kinds = {"training": True, "with_labels": False, **more}
    return Clips(made, made.split("train"), options, **kinds)  # type: ignore[arg-type]


def filled(clips: Clips, workers: int = 0) -> Held:
    found = Held(clips, CPU, CPU)
    found.fill(workers)
    return found


def assert_same(one: Raw, two: Raw) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype, name
        assert torch.equal(one[name], two[name]), name


def assert_held_is_read(
    clips: Clips, finetune: Finetune | None = None, *, weights: np.ndarray | None = None, start: int = 0
) -> list[Raw]:
    """Every batch of three epochs, with one and two micro batches, on one rank and on two."""
    order = Order(tuple(clips.split.sizes), 8, 3, 3, weights)
    held, seen = filled(clips), []
    to_batch = ToBatch(clips.recipe, CPU, training=True, finetune=finetune)
    for micro, ranks in ((8, 1), (4, 1), (2, 2)):
        for rank in range(ranks):
            both = [
                training_batches(clips, order, start, micro, rank, ranks, 0, CPU, reading)
                for reading in (held.read, None)
            ]
            steps = list(zip(*both, strict=True))
            assert len(steps) == order.total_steps - start
            for ours, theirs in steps:
                assert len(ours) == len(theirs) == 8 // (micro * ranks)
                for one, two in zip(ours, theirs, strict=True):
                    assert_same(one, two)
                    assert_same(to_batch(one), to_batch(two))
                    seen.append(one)
    return seen


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"frame": "cycle", "crop_pct": 0.8},
        {"flip": True},
        {"tiling": True},
        {"tiling": True, "flip": True, "noise": False},
    ],
    ids=["random", "cycle-centre", "flip", "tiling", "tiling-flip"],
)
def test_pretraining_sees_what_the_loader_reads(shards: index.Index, data: dict[str, object]) -> None:
    options = recipe(**data)
    raws = assert_held_is_read(clips_of(shards, options))
    if options.data.flip:
        plain = filled(clips_of(shards, recipe(**{**data, "flip": False})))
        flipped = filled(clips_of(shards, options))
        order = Order(tuple(shards.split("train").sizes), 8, 3, 1)
        pairs = zip(*(one.read(order.micro_batches(0, 8, 0, 1)) for one in (plain, flipped)), strict=True)
        same = [torch.equal(a, b) for one, two in pairs for a, b in zip(one["frame"], two["frame"], strict=True)]
        assert 0 < sum(same) < len(same)
    lengths = {int(count) for raw in raws for count in raw["samples"]}
    assert lengths == {WINDOW - 2777, WINDOW, 700}, "long clips are cut, short ones keep their length"


def test_mixed_balanced_finetuning_sees_what_the_loader_reads(shards: index.Index) -> None:
    options = Finetune(mixup=0.5, freq_mask=8, time_mask=16, balanced=True)
    clips = clips_of(shards, recipe(), with_labels=True, finetune=options)
    weights = read_labels(shards, shards.split("train")).balancing()
    raws = assert_held_is_read(clips, options, weights=weights)
    assert any(0 < len(raw["mix_row"]) < len(raw["row"]) for raw in raws)
    assert any(len(set(raw["clip"].tolist())) < len(raw["clip"]) for raw in raws), "some clip is drawn again"
    assert {tuple(row) for raw in raws for row in raw["label"].tolist()} == {(1.0, 0.0, 0.0), (0.0, 1.0, 1.0)}


def test_a_batch_of_which_nothing_is_mixed_is_the_loaders(shards: index.Index) -> None:
    options = Finetune(mixup=0.01)
    raws = assert_held_is_read(clips_of(shards, recipe(), with_labels=True, finetune=options), options)
    assert min(len(raw["mix_row"]) for raw in raws) == 0


def test_cut_and_erased_pictures_are_the_loaders(shards: index.Index) -> None:
    options = Finetune(modality="video", mixup=0.8, cutmix=0.5, erasing=0.4)
    clips = clips_of(shards, recipe(flip=True), with_labels=True, parts=("video",), finetune=options)
    raws = assert_held_is_read(clips, options)
    assert any(raw["mix_box"].any() for raw in raws)
    assert any(len(raw["erase_row"]) for raw in raws)
    assert any(len(raw["mix_erase_row"]) for raw in raws)


@pytest.mark.parametrize("start", [1, 3])
def test_a_resume_within_an_epoch_goes_on_with_the_loaders_batch(shards: index.Index, start: int) -> None:
    assert_held_is_read(clips_of(shards, recipe()), start=start)


def test_the_frame_of_the_middle_is_the_loaders(shards: index.Index) -> None:
    assert_held_is_read(clips_of(shards, recipe(flip=True), training=False))


@pytest.mark.parametrize("part", ["audio", "video"])
def test_clips_of_one_modality_are_held_without_the_other(tmp_path: Path, part: str) -> None:
    found = made(tmp_path / part, frames=part == "video", audio=part == "audio")
    clips = clips_of(found, recipe(), parts=(part,), with_labels=True, finetune=Finetune(modality=part, mixup=0.5))
    raws = assert_held_is_read(clips)
    assert ("frame" in raws[0], "waveform" in raws[0]) == (part == "video", part == "audio")
    extent = Extent.of(clips)
    assert (sum(extent.counts) > 0, extent.samples > 0) == (part == "video", part == "audio")


def test_workers_decode_the_same(shards: index.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "CHUNK_BYTES", 200_000)  # Several lists for two workers.
    clips = clips_of(shards, recipe())
    one, two = filled(clips), filled(clips, workers=2)
    assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in ("waveform", "samples", "mean"))
    assert torch.equal(one.frames, two.frames)
    sent = pickle.loads(pickle.dumps(_Whole(clips)))  # As a GPU's workers get it, which are not forked.
    requests = [Request(4, 0, 0)]
    assert_same(sent.batch(requests), _Whole(clips).batch(requests))


def test_what_is_held_is_as_large_as_was_said_before(shards: index.Index) -> None:
    for options, more in ((recipe(), {}), (recipe(tiling=True), {"with_labels": True})):
        clips = clips_of(shards, options, **more)
        held = filled(clips)
        tensors = (held.frames, held.waveform, held.samples, held.mean, held.label)
        assert sum(t.numel() * t.element_size() for t in tensors) == Extent.of(clips).bytes


def test_a_damaged_clip_ends_the_decoding_by_name(tmp_path: Path) -> None:
    found = made(tmp_path / "s")
    split = found.split("train")
    offset, _ = split.members(9)["2.jpg"]
    path = split.path(9)
    data = bytearray(path.read_bytes())
    data[offset + 300] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataFault, match=rf"train-000001\.tar: member clip-09\.2\.jpg at offset {offset}"):
        filled(clips_of(found, recipe()))


def test_held_clips_that_are_not_those_of_the_shards_are_noticed(shards: index.Index) -> None:
    clips = clips_of(shards, recipe())
    held = filled(clips)
    held.frames ^= 1
    order = Order(tuple(clips.split.sizes), 8, 3, 1)
    with pytest.raises(VerificationFault, match="'frame' differs"):
        next(held.read(order.micro_batches(0, 8, 0, 1)))


def test_random_crops_are_refused_with_the_reason_unless_nothing_is_seen(shards: index.Index) -> None:
    options = recipe(crop="random")
    with pytest.raises(UsageFault, match="as they are stored") as caught:
        holding.choose(clips_of(shards, options), CPU, 1)
    assert "data.hold=none" in caught.value.next_step
    heard = holding.choose(clips_of(shards, options, parts=("audio",)), CPU, 1)
    assert heard is not None
    assert heard.where == CPU
    left = holding.choose(clips_of(shards, recipe("auto", crop="random")), CPU, 1)
    assert left is not None
    assert left.where is None
    assert "as they are stored" in left.row[1]


def test_redrawn_pictures_are_refused(shards: index.Index) -> None:
    options = Finetune(modality="video", rand_augment="rand-m9")
    with pytest.raises(UsageFault, match="rand_augment"):
        holding.choose(clips_of(shards, recipe(), parts=("video",), finetune=options), CPU, 1)


def test_too_little_memory_is_refused_with_numbers(shards: index.Index, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = clips_of(shards, recipe())
    needed = Extent.of(clips).bytes
    monkeypatch.setattr(holding, "free_memory", lambda place: round(needed / 0.9) + 1)
    fitting = holding.choose(clips, CPU, 1)
    assert fitting is not None
    assert fitting.where == CPU
    assert "119 frames of 32 x 32 and 22 x 0.7 s of sound" in fitting.row[1]
    with pytest.raises(EnvironmentFault, match=r"2 processes keep 807\.6 KB each") as caught:
        holding.choose(clips, CPU, 2)
    assert "data.hold=none" in caught.value.next_step


def test_auto_takes_the_device_then_main_memory_then_neither(
    shards: index.Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpu, needed = torch.device("cuda", 0), Extent.of(clips_of(shards, recipe())).bytes
    free = {"cuda": 3 * needed, "cpu": 3 * needed}
    monkeypatch.setattr(holding, "free_memory", lambda place: free[place.type])

    def chosen(hold: str) -> torch.device | None:
        found = holding.choose(clips_of(shards, recipe(hold)), gpu, 1)
        assert found is not None
        return found.where

    assert holding.choose(clips_of(shards, recipe("none")), gpu, 1) is None
    assert (chosen("auto"), chosen("device"), chosen("memory")) == (gpu, gpu, CPU)
    free["cuda"] = needed
    assert chosen("auto") == CPU
    with pytest.raises(EnvironmentFault, match="GPU memory") as caught:
        chosen("device")
    assert "data.hold=memory" in caught.value.next_step
    free["cpu"] = needed
    assert chosen("auto") is None


def test_the_limit_of_a_container_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holding, "CGROUP", tmp_path)
    unlimited = holding.free_memory(CPU)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    (tmp_path / "memory.stat").write_text("anon 2000000\ninactive_file 700000\nactive_file 300000\n")
    assert holding.free_memory(CPU) == 3_000_000 < unlimited
    (tmp_path / "memory.max").write_text("max\n")
    assert holding.free_memory(CPU) > 3_000_000


HELD = {
    "frame", "tiling", "noise", "flip", "crop_pct", "mixup", "mixup_alpha", "cutmix", "cutmix_alpha", "erasing",
    "freq_mask", "time_mask", "balanced", "modality",
}  # fmt: skip
"""Keys whose effect on a batch is compared above."""
REFUSED = {"crop", "rand_augment"}
ELSEWHERE = {
    "shards", "workers", "hold", "train_split", "eval_split", "crop_scale", "fbank_mean", "fbank_std", "image_mean",
    "image_std", "loss", "head", "freeze_encoder", "head_lr_scale", "layer_decay", "drop_path", "label_smoothing",
    "average_from", "per_class", "share", "optim", "training",
}  # fmt: skip
"""Keys that choose the clips, or act after a batch is on the device; crop_scale goes with crop."""


def test_every_key_of_data_and_finetuning_is_held_refused_or_elsewhere() -> None:
    """A new key is to be sorted in here: compared above where `Clips` obeys it, or refused by `holding.obstacle`."""
    keys = set(Data.model_fields) | set(Finetune.model_fields)
    assert keys == HELD | REFUSED | ELSEWHERE


def test_the_key_is_no_result() -> None:
    assert recipes.result_keys(recipe("none")) == recipes.result_keys(recipe("auto"))


def test_a_thread_makes_the_next_item_in_order_and_hands_errors_on() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number
        raise DataFault("broken")

    source = ahead(items(), CPU)
    assert next(source) == 0
    assert [next(source) for _ in range(3)] == [1, 2, 3]
    with pytest.raises(DataFault, match="broken"):
        next(source)
    stopped = ahead(items(), CPU)
    assert next(stopped) == 0
    stopped.close()  # type: ignore[attr-defined]
    assert made[4:] in ([0, 1],), "one item ahead, and no more"
