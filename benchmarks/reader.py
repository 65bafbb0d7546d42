"""Reading clips for training: kdctool's shards beside the CAV-MAE loader and beside raw WebDataset.

    python benchmarks/reader.py [--quick] [--out benchmarks/results/NAME.json]

CPU seconds of one thread, warm page cache, variants interleaved, medians of the rounds. Both sides read the same
224-pixel JPEG and the same 10 s of 16 kHz sound, all generated here. The rows "to uint8/int16" leave the filter bank
to the training device, which is what kdctool does with a GPU; the rows "with fbank" do all of it on the CPU.
"""

import argparse
import io
import sys
import tempfile
import time
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import harness
import numpy as np

SAMPLE_RATE, SECONDS, FRAMES, SIZE = 16_000, 10, 10, 224
CLIPS_PER_SHARD, BATCH = 128, 16
MEAN, STD = -5.081, 4.4849
RECIPE = f"""
name = "reader"
[data]
workers = 0
noise = true
fbank_mean = {MEAN}
fbank_std = {STD}
"""


def sound(rng: np.random.Generator) -> np.ndarray:
    """10 s of int16: a few gliding tones over brown noise, about as compressible as recorded sound."""
    time = np.arange(SAMPLE_RATE * SECONDS) / SAMPLE_RATE
    tones = sum(
        rng.uniform(300, 2000) * np.sin(2 * np.pi * (f * time + rng.uniform(0, 40) * time**2))
        for f in rng.uniform(80, 3000, 5)
    )
    noise = np.cumsum(rng.normal(0, 60, len(time)))
    noise -= np.convolve(noise, np.ones(400) / 400, mode="same")
    swell = 0.6 + 0.4 * np.sin(2 * np.pi * rng.uniform(0.1, 2) * time)
    return np.clip((tones + noise + rng.normal(0, 80, len(time))) * swell, -32768, 32767).astype(np.int16)


def picture(rng: np.random.Generator) -> bytes:
    """A JPEG of about 11 KB: smooth shapes with some grain."""
    from PIL import Image

    coarse = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8)).resize(
        (SIZE, SIZE), Image.Resampling.BICUBIC
    )
    grain = rng.normal(0, 6, (SIZE, SIZE, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def make(folder: Path, clips: int) -> None:
    """Loose wav and jpg files for the reference; shards with FLAC and shards with WAV of the same clips."""
    import soundfile

    from kdctool.shards import index
    from kdctool.shards.write import write_shard

    (folder / "loose").mkdir()
    samples: dict[str, list[tuple[str, list[tuple[str, bytes]]]]] = {"flac": [], "wav": []}
    for number in range(clips):
        rng = np.random.default_rng(number)
        waveform = sound(rng)
        frames = [(f"{i}.jpg", picture(rng)) for i in range(FRAMES)]
        (folder / "loose" / f"{number}.jpg").write_bytes(frames[FRAMES // 2][1])
        for kind in samples:
            buffer = io.BytesIO()
            soundfile.write(buffer, waveform, SAMPLE_RATE, format=kind.upper(), subtype="PCM_16")
            samples[kind].append((f"clip-{number:06d}", [("json", b"{}"), (kind, buffer.getvalue()), *frames]))
        (folder / "loose" / f"{number}.wav").write_bytes(samples["wav"][-1][1][1][1])
    for kind, all_clips in samples.items():
        place = folder / kind
        place.mkdir()
        entries = tuple(
            write_shard(place / f"train-{n:06d}.tar", "train", all_clips[first : first + CLIPS_PER_SHARD])
            for n, first in enumerate(range(0, clips, CLIPS_PER_SHARD))
        )
        settings = {"frames": FRAMES, "size": SIZE, "sample_rate": SAMPLE_RATE, "audio": kind}
        index.write(index.Index(place, (), False, settings, entries, {"benchmark": "reader"}))


class Reference:
    """One sample as the released CAV-MAE loader makes it: the same calls in the same order."""

    def __init__(self, folder: Path, load: Callable[[Path], tuple[Any, int]]) -> None:
        import PIL.Image
        import torchvision.transforms as transforms

        self.folder, self.load = folder, load
        self.preprocess = transforms.Compose(
            [
                transforms.Resize(SIZE, interpolation=PIL.Image.BICUBIC),
                transforms.CenterCrop(SIZE),
                transforms.ToTensor(),
                transforms.Normalize(mean=[0.4850, 0.4560, 0.4060], std=[0.2290, 0.2240, 0.2250]),
            ]
        )

    def __call__(self, number: int) -> tuple[Any, Any]:
        import torch
        import torchaudio
        from PIL import Image

        waveform, rate = self.load(self.folder / f"{number}.wav")
        waveform = waveform - waveform.mean()
        fbank = torchaudio.compliance.kaldi.fbank(
            waveform, htk_compat=True, sample_frequency=rate, use_energy=False, window_type="hanning",
            num_mel_bins=128, dither=0.0, frame_shift=10,
        )  # fmt: skip
        fbank = torch.nn.ZeroPad2d((0, 0, 0, 1024 - fbank.shape[0]))(fbank)
        image = self.preprocess(Image.open(self.folder / f"{number}.jpg"))
        fbank = (fbank - MEAN) / STD
        fbank = fbank + torch.rand(fbank.shape[0], fbank.shape[1]) * np.random.rand() / 10
        return torch.roll(fbank, np.random.randint(-1024, 1024), 0), image


def load_soundfile(path: Path) -> tuple[Any, int]:
    """soundfile, float32: the usual replacement where torchcodec is missing."""
    import soundfile
    import torch

    data, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(data.T), rate


def load_fast(path: Path) -> tuple[Any, int]:
    """The fastest way to read a wav in Python: the standard library's `wave` and one conversion."""
    import torch

    with wave.open(str(path)) as file:
        data = np.frombuffer(file.readframes(file.getnframes()), dtype=np.int16)
        return torch.from_numpy(data.astype(np.float32) / 32768)[None], file.getframerate()


def reference_load() -> tuple[str, Callable[[Path], tuple[Any, int]], str]:
    """(name, loader, remark): torchaudio.load where it works, else soundfile under its own name."""
    import torchaudio

    try:
        import torchcodec  # noqa: F401
    except (ImportError, RuntimeError, OSError) as error:
        cause = str(error).strip().splitlines()[0]
        return "reference_soundfile", load_soundfile, (
            f"torchcodec cannot be imported ({cause}), so torchaudio.load cannot run: "
            "the reference reads its wav with soundfile instead, which is faster than torchaudio.load"
        )  # fmt: skip
    return (
        "reference",
        lambda path: torchaudio.load(path),
        "the reference reads its wav with torchaudio.load (torchcodec)",
    )


class Work:
    """One variant: `samples` of them per call, CPU milliseconds per sample as the result."""

    def __init__(self, name: str, samples: int, run: Callable[[int, int], None], clips: int) -> None:
        self.name, self.samples, self.run, self.clips = name, samples, run, clips
        self.next = 0

    def __call__(self) -> float:
        first, self.next = self.next, (self.next + self.samples) % self.clips
        seconds = harness.timed(lambda: self.run(first, self.samples), time.process_time)
        return 1000 * seconds / self.samples


def each(work: Callable[[int], Any], clips: Iterator[int]) -> None:
    """Do the work and drop what it gives: keeping hundreds of samples would measure the allocation of memory."""
    for clip in clips:
        work(clip)


def variants(folder: Path, clips: int, scale: int) -> tuple[list[Work], str, str]:
    """All variants; the name of the reference row and a remark on it."""
    import torch
    import webdataset

    from kdctool import recipe as recipes
    from kdctool.data.clips import Clips
    from kdctool.data.device import ToBatch
    from kdctool.data.order import Request
    from kdctool.shards import index
    from kdctool.shards.read import ShardReader

    recipe = recipes.loads(RECIPE, [f"data.shards={folder / 'flac'}"])
    random = np.random.default_rng(0).permutation(clips)
    works: list[Work] = []

    def add(name: str, samples: int, run: Callable[[int, int], None]) -> None:
        works.append(Work(name, samples, run, clips))

    def places(first: int, count: int) -> Iterator[int]:
        return (int(random[(first + i) % clips]) for i in range(count))

    name, load, remark = reference_load()
    for row, how in ((name, load), ("reference_fast_wav", load_fast)):
        reference = Reference(folder / "loose", how)
        add(row, 4 * scale, lambda first, count, one=reference: each(one, places(first, count)))

    urls = [str(path) for path in sorted((folder / "flac").glob("*.tar"))]

    def stream(count: int, **options: Any) -> None:
        samples = iter(
            webdataset.WebDataset(urls * (1 + count // clips), shardshuffle=False, empty_check=False, **options)
        )
        for _ in range(count):
            next(samples)

    three = {"json", "flac", f"{FRAMES // 2}.jpg"}
    wanted = lambda name: name.partition(".")[2] in three  # noqa: E731
    add("webdataset_raw", 64 * scale, lambda first, count: stream(count))
    add("webdataset_raw_3_members", 64 * scale, lambda first, count: stream(count, select_files=wanted))

    for kind in ("flac", "wav"):
        opened = index.load(folder / kind)
        split = opened.split("train")
        members = ["json", kind, f"{FRAMES // 2}.jpg"]
        if kind == "flac":
            for check in (True, False):
                reader = ShardReader(split, check=check)
                add(
                    "index_3_members" + ("" if check else "_no_crc"),
                    256 * scale,
                    lambda first, count, r=reader, m=tuple(members): each(lambda i: r.read(i, m), places(first, count)),
                )
        clip_source = Clips(opened, split, recipe, training=True, with_labels=False)
        to_batch = ToBatch(recipe, torch.device("cpu"), training=True)

        def batches(first: int, count: int, source: Clips = clip_source, step: Any = None) -> None:
            todo = [Request(clip, 0, row) for row, clip in enumerate(places(first, count))]
            for start in range(0, count, BATCH):
                raw = source.__getitems__(todo[start : start + BATCH])
                assert isinstance(raw, dict), raw
                if step is not None:
                    step(raw)

        add(f"{kind}_jpeg_to_uint8_int16", BATCH * scale, batches)
        add(
            f"{kind}_jpeg_with_fbank",
            BATCH * scale,
            lambda first, count, run=batches, step=to_batch: run(first, count, step=step),
        )
    return works, name, remark


def ratios(ms: dict[str, float], reference: str) -> dict[str, float]:
    """What is compared; above 1 kdctool is faster."""
    found = {
        "reader_index_samples_per_s": 1000 / ms["index_3_members"],
        "reader_index_no_crc_samples_per_s": 1000 / ms["index_3_members_no_crc"],
        "reader_index_speedup_over_webdataset": ms["webdataset_raw"] / ms["index_3_members"],
        "reader_index_no_crc_speedup_over_webdataset": ms["webdataset_raw"] / ms["index_3_members_no_crc"],
        "reader_index_speedup_over_webdataset_3_members": ms["webdataset_raw_3_members"] / ms["index_3_members"],
    }
    suffix = "_over_reference" if reference == "reference" else f"_over_{reference}"
    for row in ("flac_jpeg_to_uint8_int16", "wav_jpeg_to_uint8_int16", "flac_jpeg_with_fbank", "wav_jpeg_with_fbank"):
        short = row.replace("_jpeg_to_uint8_int16", "").replace("_jpeg_with", "")
        found[f"reader_{short}_speedup{suffix}"] = ms[reference] / ms[row]
        found[f"reader_{short}_speedup_over_reference_fast_wav"] = ms["reference_fast_wav"] / ms[row]
    return found


def main() -> None:
    """Measure, print a table on stderr and the JSON line on stdout."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="under a minute: fewer clips, five rounds")
    parser.add_argument("--rounds", type=int, help="runs of each variant, at least 5")
    parser.add_argument("--out", type=Path, help="write the report to this file too")
    given = parser.parse_args()
    clips, scale, rounds = (128, 4, 5) if given.quick else (512, 8, 9)
    rounds = given.rounds or rounds
    if rounds < 5:
        parser.error("--rounds: at least 5")

    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="kdctool-reader-") as folder:
        harness.say(f"making {clips} clips")
        make(Path(folder), clips)
        works, reference, remark = variants(Path(folder), clips, scale)
        harness.say(remark)
        for work in works:
            work()  # page cache, lazy imports and tables; not counted
        seen = harness.interleaved({work.name: work for work in works}, rounds)
    results = [harness.result(name, values, "CPU ms/sample") for name, values in seen.items()]
    found = ratios({item.name: item.value for item in results}, reference)
    for item in results:
        harness.say(
            f"{item.name:28} {item.value:9.4f} ms  {1000 / item.value:9.0f} samples/s/core  +-{item.spread:.0%}"
        )
    for name, value in found.items():
        harness.say(f"{name:58} {value:9.2f}")
    packages = ("torch", "torchaudio", "torchcodec", "torchvision", "soundfile", "pillow", "webdataset", "numpy")
    value = harness.report("reader", harness.hardware(), packages, results, found, remark=remark, rounds=rounds)
    harness.finish(value, given.out)


if __name__ == "__main__":
    sys.exit(main())
