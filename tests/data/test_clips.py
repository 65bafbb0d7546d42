"""From tars to tensors: what the loader yields, what plain WebDataset reads from the same tars, and what is refused."""

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from kdctool import recipe as recipes
from kdctool.data import decode
from kdctool.data.clips import Clips, Draw, Failed
from kdctool.data.device import ToBatch
from kdctool.data.order import Order, Request
from kdctool.errors import DataFault
from kdctool.shards import index
from kdctool.shards.read import ShardReader
from kdctool.shards.write import write_shard

RATE = 16000


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-20000, 20000, round(RATE * seconds)).astype(np.int16)


def encoded(samples: np.ndarray, kind: str, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate, format=kind.upper(), subtype=subtype)
    return buffer.getvalue()


def jpeg(size: tuple[int, int] = (32, 32), value: int = 90) -> bytes:
    buffer = io.BytesIO()
    picture = np.random.default_rng(value).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(picture).save(buffer, "JPEG")
    return buffer.getvalue()


def make(folder: Path, waves: list[np.ndarray], kind: str) -> index.Index:
    folder.mkdir()
    clips = [
        (
            f"clip-{n}",
            [
                ("json", b'{"labels": ["dog"]}'),
                (kind, encoded(wave, kind)),
                ("0.jpg", jpeg()),
                ("1.jpg", jpeg(value=7)),
            ],
        )
        for n, wave in enumerate(waves)
    ]
    entry = write_shard(folder / "train-000000.tar", "train", clips)
    made = index.Index(folder, ("cat", "dog"), False, {"sample_rate": RATE, "size": 32}, (entry,), {"manifest": "x"})
    index.write(made)
    return made


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_short_exact_and_long_clips_are_padded_kept_and_cut(
    tmp_path: Path, tiny_recipe: Callable[..., Path], kind: str
) -> None:
    recipe = recipes.load(tiny_recipe())
    full = (recipe.model.audio_frames - 1) * 160 + 400
    waves = [sound(0.3, 1), sound(full / RATE, 2), sound(1.5, 3)]
    made = make(tmp_path / kind, waves, kind)
    clips = Clips(made, made.split("train"), recipe, training=False, with_labels=True)
    raw = clips.__getitems__([Request(i, 0, 10 + i) for i in (2, 0, 1)])
    assert isinstance(raw, dict)
    for row, i in enumerate((2, 0, 1)):
        kept = waves[i][:full]
        assert np.array_equal(raw["waveform"][row, : len(kept)].numpy(), kept)
        assert not raw["waveform"][row, len(kept) :].any()
        assert raw["samples"][row] == len(kept)
        assert raw["mean"][row] == pytest.approx(waves[i].mean(dtype=np.float64), rel=1e-6)
    expected = torch.from_numpy(np.array(Image.open(io.BytesIO(jpeg(value=7))))).permute(2, 0, 1)
    assert (raw["frame"].int() - expected.int()).abs().max() <= 1
    assert raw["frame"].shape == (3, 3, 32, 32)
    assert (raw["row"].tolist(), raw["clip"].tolist()) == ([12, 10, 11], [2, 0, 1])
    assert raw["label"].tolist() == [[0.0, 1.0]] * 3
    batch = ToBatch(recipe, torch.device("cpu"), training=False)(raw)
    assert batch["frame"].is_contiguous()
    assert torch.isfinite(batch["fbank"]).all()


def test_wav_and_flac_of_one_sound_give_the_same_batch(tmp_path: Path, tiny_recipe: Callable[..., Path]) -> None:
    recipe = recipes.load(tiny_recipe())
    raws = []
    for kind in ("flac", "wav"):
        made = make(tmp_path / kind, [sound(0.5, 1), sound(0.7, 2)], kind)
        clips = Clips(made, made.split("train"), recipe, training=True, with_labels=False)
        raws.append(clips.__getitems__([Request(1, 3, 0), Request(0, 3, 1)]))
    assert all(torch.equal(raws[0][name], raws[1][name]) for name in raws[0])


def test_every_kind_of_wav_decodes_to_the_same_samples() -> None:
    samples = sound(0.2)
    for data in (encoded(samples, "wav"), encoded(samples, "wavex"), encoded(samples, "wav", subtype="PCM_24")):
        assert np.array_equal(decode.audio(data, RATE, "x"), samples)
    out = np.full(4000, 7, np.int16)
    assert np.array_equal(decode.audio(encoded(samples, "wav"), RATE, "x", out=out), samples)
    assert np.array_equal(out[: len(samples)], samples)
    assert (out[len(samples) :] == 7).all()
    assert len(decode.audio(encoded(samples, "wav"), RATE, "x", out=out[:10])) == len(samples)


@pytest.mark.parametrize("kind", ["flac", "wav"])
def test_sound_that_is_not_what_it_says_is_refused_by_name(kind: str) -> None:
    good = encoded(sound(0.5), kind)
    stereo = encoded(np.stack([sound(0.2), sound(0.2)], axis=1), kind)
    for bad in (
        b"",
        good[:20],
        good[: len(good) // 2],
        stereo,
        encoded(sound(0.2), kind, rate=8000),
        good[:44] if kind == "wav" else good[:60],
    ):
        with pytest.raises(DataFault, match=r"t\.tar: clip a cannot be decoded"):
            decode.audio(bad, RATE, "t.tar: clip a")


def test_a_damaged_member_reaches_the_trainer_as_a_data_fault(tmp_path: Path, tiny_recipe: Callable[..., Path]) -> None:
    recipe = recipes.load(tiny_recipe())
    made = make(tmp_path / "s", [sound(0.5)], "flac")
    offset, _ = made.split("train").members(0)["flac"]
    path = tmp_path / "s" / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[offset + 500] ^= 255
    path.write_bytes(data)
    clips = Clips(made, made.split("train"), recipe, training=False, with_labels=False)
    failed = clips.__getitems__([Request(0, 0, 0)])
    assert isinstance(failed, Failed)
    assert f"train-000000.tar: member clip-0.flac at offset {offset}" in failed.error.cause


@pytest.mark.parametrize("member", ["0.jpg", "1.jpg", "flac", "json"])
def test_one_flipped_bit_is_refused_whenever_its_member_is_drawn_and_only_then(
    tmp_path: Path, tiny_recipe: Callable[..., Path], member: str
) -> None:
    """Training draws one of the frames at random: every epoch that draws the damaged one ends by name."""
    recipe = recipes.load(tiny_recipe())
    made = make(tmp_path / "s", [sound(0.5, n) for n in range(3)], "flac")
    path, split = tmp_path / "s" / "train-000000.tar", made.split("train")
    whole = path.read_bytes()
    offset, length = split.members(1)[member]
    for bit in (0, 4 * length, 8 * length - 1):  # Of the first byte, of the middle, of the last byte.
        data = bytearray(whole)
        data[offset + bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        clips = Clips(made, split, recipe, training=True, with_labels=True)
        refused, shown = [], []
        for epoch in range(24):
            request = Request(1, epoch, 0)
            shown.append(f"{clips.shown(Draw(1, epoch, clips._seed(request), False), 2)[0]}.jpg")
            answer = clips.__getitems__([request])
            refused.append(isinstance(answer, Failed))
            if isinstance(answer, Failed):
                place = f"train-000000.tar: member clip-1.{member} at offset {offset}"
                assert answer.error.cause == f"{place}: its bytes do not match the checksum of the index"
            assert not isinstance(clips.__getitems__([Request(0, epoch, 0), Request(2, epoch, 1)]), Failed)
        assert set(shown) == {"0.jpg", "1.jpg"}  # Each frame was drawn, so each was put to the test.
        assert refused == [member not in ("0.jpg", "1.jpg") or name == member for name in shown]


def test_a_seeded_webdataset_pipeline_over_the_same_tars_yields_the_same_samples(tiny_shards: Path) -> None:
    """Interoperability: any order, the bytes of every sample are those that our reader gives."""
    webdataset = pytest.importorskip("webdataset")
    split = index.load(tiny_shards).split("train")
    urls = [str(tiny_shards / name) for name in split.shards]
    pipeline = webdataset.WebDataset(urls, shardshuffle=len(urls), detshuffle=True, seed=5).shuffle(16, initial=16)
    theirs = {sample["__key__"]: sample for sample in pipeline}
    reader = ShardReader(split)
    order = Order(tuple(split.sizes), global_batch=4, seed=5, epochs=1)
    ours = [request.clip for batch in order.micro_batches(0, 4, 0, 1) for request in batch]
    assert len(ours) == len(set(ours)) == len(split) == len(theirs)
    for clip in ours:
        sample = theirs[split.key(clip)]
        members = {name: data for name, data in sample.items() if not name.startswith("__")}
        assert members == reader.read(clip, split.members(clip))


FORGED = """
import resource, sys
import numpy, soundfile, torch, torchvision.io
from kdctool.data import decode
from kdctool.errors import DataFault
data = open(sys.argv[2], "rb").read()
decode.audio(open(sys.argv[3], "rb").read(), 16000, "warm")
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (64 << 20),) * 2)
try:
    decode.frame(data, "t.tar: clip a") if sys.argv[1] == "jpeg" else decode.audio(data, 16000, "t.tar: clip a")
except DataFault as fault:
    sys.exit(0 if "t.tar: clip a" in fault.cause and sys.argv[4] in fault.cause else fault.cause)
sys.exit("was decoded")
"""


def forged_jpeg() -> bytes:
    """A JPEG of a few hundred bytes that claims 65500 x 65500 pixels, 12 GB."""
    data = bytearray(jpeg((16, 16)))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = b"\xff\xdc\xff\xdc"
    return bytes(data)


def forged_flac() -> bytes:
    """A FLAC whose header claims 2**36 - 1 samples, 137 GB."""
    data = bytearray(encoded(sound(0.1), "flac"))
    assert data[:4] == b"fLaC"
    data[21] |= 0x0F  # the stream info's 36 bits of total samples
    data[22:26] = b"\xff\xff\xff\xff"
    return bytes(data)


def forged_wav() -> bytes:
    data = bytearray(encoded(sound(0.1), "wav"))
    data[40:44] = b"\xfe\xff\xff\x7f"
    return bytes(data)


@pytest.mark.parametrize(
    ("kind", "data", "word"),
    [("jpeg", forged_jpeg(), "pixels"), ("flac", forged_flac(), "samples"), ("wav", forged_wav(), "bytes of sound")],
)
def test_a_forged_header_is_refused_before_it_allocates(tmp_path: Path, kind: str, data: bytes, word: str) -> None:
    (tmp_path / "forged").write_bytes(data)
    (tmp_path / "good").write_bytes(encoded(sound(0.1), "flac"))
    arguments = [sys.executable, "-c", FORGED, kind, str(tmp_path / "forged"), str(tmp_path / "good"), word]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_jpeg_at_the_limit_is_decoded_and_one_above_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 64 * 48)
    assert decode.frame(jpeg((64, 48)), "x").shape == (3, 48, 64)
    with pytest.raises(DataFault, match="64 x 49 pixels, more than 3072"):
        decode.frame(jpeg((64, 49)), "x")
