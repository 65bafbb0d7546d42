"""Videos for the demo: a coloured shape moves while a tone sounds, and what is seen tells what is heard.

Colour goes with pitch, shape with timbre, motion with rhythm: the shape turns round exactly when a pulse begins.
8 x 4 x 5 combinations; the held-out ones are never trained on, each of their attributes is. Position, size,
background, phase, loudness and noise differ between clips, so that none is a copy of another.
"""

import concurrent.futures
import csv
import io
import itertools
import os
import subprocess
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdctool import progress
from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.files import PARTIAL, read_json, write_bytes, write_json
from kdctool.media import binary
from kdctool.seeds import fold

Floats = NDArray[np.float64]

SIZE, FRAME_RATE, SAMPLE_RATE = 128, 12.5, 44_100
HIGHEST_HZ = 7_500.0
"""Partials end below the 8 kHz that extraction keeps."""

COLOURS = {
    "red": (230, 40, 40),
    "orange": (245, 145, 20),
    "yellow": (240, 235, 60),
    "green": (50, 190, 60),
    "cyan": (60, 220, 225),
    "blue": (50, 80, 235),
    "magenta": (225, 60, 215),
    "white": (240, 240, 240),
}
PITCHES_HZ = np.geomspace(180.0, 1_600.0, len(COLOURS))
SHAPES = ("circle", "square", "triangle", "cross")
"""With the timbres sine, square wave, sawtooth and FM, in this order."""
MOTIONS = ("horizontal", "vertical", "diagonal", "orbit", "pulse")
PULSES_PER_S = (1.0, 1.7, 2.8, 4.2, 6.0)

Combination = tuple[int, int, int]
"""Indices of colour, shape and motion."""


@dataclass(frozen=True)
class DemoClip:
    """One video to make."""

    name: str
    split: str
    colour: int
    shape: int
    motion: int
    seed: int


def make_clips(folder: Path, seed: int, clips: int = 160, held_out: int = 40, seconds: float = 2.0) -> Path:
    """Write `clips` mp4 files (H.264, AAC, 128 x 128, 12.5 frames/s) and return the path of their labels.csv.

    The label is the colour. The same seed gives the same frames and samples. A folder that already holds exactly
    these clips is left alone; clips of another seed that this function made before are replaced.
    """
    wanted = plan(seed, clips, held_out)
    record = folder / "clips.json"
    settings = {"generator": 1, "seed": seed, "seconds": seconds, "clips": [[clip.name, clip.split] for clip in wanted]}
    labels = folder / "labels.csv"
    if record.is_file():
        before = read_json(record)
        names = [name for name, _ in before["clips"]]
        if before == settings and labels.is_file() and all((folder / name).is_file() for name in names):
            return labels
        record.unlink()
        for name in names:
            (folder / name).unlink(missing_ok=True)
    program = encoder()
    folder.mkdir(parents=True, exist_ok=True)
    with (
        progress.bar("making clips", len(wanted)) as bar,
        concurrent.futures.ThreadPoolExecutor(min(2, len(os.sched_getaffinity(0)))) as pool,
    ):
        # Threads are enough: each waits for its own ffmpeg process most of the time.
        jobs = [pool.submit(write_clip, folder / clip.name, clip, seconds, program) for clip in wanted]
        try:
            for job in concurrent.futures.as_completed(jobs):
                job.result()
                bar.advance()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("path", "label", "split"))
    rows.writerows((clip.name, tuple(COLOURS)[clip.colour], clip.split) for clip in wanted)
    write_bytes(labels, table.getvalue().encode())
    write_json(record, settings)
    return labels


def plan(seed: int, clips: int = 160, held_out: int = 40) -> list[DemoClip]:
    """Which combination each clip shows, and its split: `train` or `test`."""
    train, test = combinations(seed)
    if not (0 <= held_out <= len(test) and clips > held_out):
        raise UsageFault(f"{clips} clips with {held_out} held out cannot be made", f"hold out at most {len(test)}")
    shown = [(item, "test") for item in test[:held_out]]
    shown += [(item, "train") for item in itertools.islice(itertools.cycle(train), clips - held_out)]
    made = []
    for number, ((colour, shape, motion), split) in enumerate(shown):
        name = f"{tuple(COLOURS)[colour]}-{SHAPES[shape]}-{MOTIONS[motion]}-{number:03d}.mp4"
        made.append(DemoClip(name, split, colour, shape, motion, fold(seed, "demo clip", number)))
    return made


def combinations(seed: int) -> tuple[list[Combination], list[Combination]]:
    """All 160 combinations as (training, held out), shuffled by the seed.

    Held out is each pair of colour and motion once, with a shape that turns through a Latin pattern: 5 clips per
    colour, 10 per shape, 8 per motion. So every attribute, and every pair of them, also occurs in training.
    """
    rng = np.random.default_rng(fold(seed, "demo combinations"))
    turn = int(rng.integers(len(SHAPES)))
    every = list(itertools.product(range(len(COLOURS)), range(len(SHAPES)), range(len(MOTIONS))))
    test = [item for item in every if item[1] == (item[0] + item[2] + turn) % len(SHAPES)]
    train = [item for item in every if item not in set(test)]
    return [train[i] for i in rng.permutation(len(train))], [test[i] for i in rng.permutation(len(test))]


def draw(clip: DemoClip, seconds: float) -> tuple[NDArray[np.uint8], NDArray[np.int16]]:
    """The clip's frames (N, 128, 128, 3) and its sound (S,) at 44.1 kHz."""
    rng = np.random.default_rng(clip.seed)
    rate = PULSES_PER_S[clip.motion] * rng.uniform(0.97, 1.03)
    phase = rng.uniform(0.0, 1.0)
    return _frames(clip, rng, rate, phase, seconds), _sound(clip, rng, rate, phase, seconds)


def _frames(clip: DemoClip, rng: np.random.Generator, rate: float, phase: float, seconds: float) -> NDArray[np.uint8]:
    times = np.arange(round(seconds * FRAME_RATE)) / FRAME_RATE
    centre = SIZE / 2 + rng.uniform(-9.0, 9.0, size=2)
    radius, swing = rng.uniform(15.0, 21.0), rng.uniform(26.0, 32.0)
    colour = np.array(tuple(COLOURS.values())[clip.colour]) * rng.uniform(0.88, 1.0)
    picture = np.repeat(_background(rng)[None], len(times), axis=0)  # (N, H, W, 3)
    # Fading images of the last 0.2 s: one frame alone then shows how the shape moves.
    for lag, alpha in ((0.20, 0.15), (0.15, 0.2), (0.10, 0.3), (0.05, 0.45), (0.0, 1.0)):
        x, y, scale = _path(clip.motion, rate * (times - lag) + phase, swing)
        cover = alpha * _cover(SHAPES[clip.shape], centre[0] + x, centre[1] + y, radius * scale)[..., None]
        picture = picture * (1 - cover) + colour * cover
    return np.clip(picture, 0, 255).astype(np.uint8)


def _background(rng: np.random.Generator) -> Floats:
    """A dim, coarse, slightly tinted texture (H, W, 3)."""
    from PIL import Image

    coarse = rng.uniform(15.0, 85.0, size=(6, 6)).astype(np.float32)
    grey = np.asarray(Image.fromarray(coarse).resize((SIZE, SIZE), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.clip(grey, 0, 110)[..., None] * rng.uniform(0.85, 1.15, size=3)


def _path(motion: int, cycles: Floats, swing: float) -> tuple[Floats, Floats, Floats]:
    """Offset in pixels and scale of the shape; it turns round at whole `cycles`, where a pulse begins."""
    still, one = np.zeros_like(cycles), np.ones_like(cycles)
    wave_ = swing * np.cos(np.pi * cycles)
    match MOTIONS[motion]:
        case "horizontal":
            return wave_, still, one
        case "vertical":
            return still, wave_, one
        case "diagonal":
            return 0.8 * wave_, 0.8 * wave_, one
        case "orbit":
            return 0.9 * wave_, 0.9 * swing * np.sin(np.pi * cycles), one
        case _:
            return still, still, 0.75 + 0.9 * np.exp(-3.0 * (cycles % 1.0))


def _cover(shape: str, x: Floats, y: Floats, radius: Floats) -> Floats:
    """How much of each pixel the shape covers, 0-1: (N, H, W) for centres and radii (N,)."""
    grid = np.arange(SIZE) + 0.5
    dx = grid[None, None, :] - x[:, None, None]
    dy = grid[None, :, None] - y[:, None, None]
    r = radius[:, None, None]
    match shape:
        case "circle":
            distance = np.hypot(dx, dy) - r
        case "square":
            distance = np.maximum(np.abs(dx), np.abs(dy)) - 0.88 * r
        case "triangle":
            distance = np.maximum(0.894 * np.abs(dx) - 0.447 * dy - 0.5 * r, dy - 0.85 * r)
        case _:
            across, thin = np.maximum(np.abs(dx), np.abs(dy)), np.minimum(np.abs(dx), np.abs(dy))
            distance = np.maximum(across - 1.15 * r, thin - 0.38 * r)
    return np.clip(0.5 - distance, 0.0, 1.0)


def _sound(clip: DemoClip, rng: np.random.Generator, rate: float, phase: float, seconds: float) -> NDArray[np.int16]:
    times = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    hertz = PITCHES_HZ[clip.colour] * rng.uniform(0.985, 1.015)
    tone = _tone(SHAPES[clip.shape], hertz, times, rng.uniform(0.0, 2 * np.pi))
    since = ((rate * times + phase) % 1.0) / rate  # seconds since the last pulse began
    envelope = 0.08 + 0.92 * np.exp(-3.5 * since * rate) * np.minimum(1.0, since / 0.004)
    loudness = 10 ** (rng.uniform(-12.0, -6.0) / 20)
    noise = 10 ** (rng.uniform(-52.0, -42.0) / 20) * rng.standard_normal(len(times))
    return np.round(32_767 * np.clip(loudness * envelope * tone + noise, -1.0, 1.0)).astype(np.int16)


def _tone(shape: str, hertz: float, times: Floats, phase: float) -> Floats:
    """The shape's timbre at a pitch, about equally loud for all, without partials above 7.5 kHz."""
    angle = 2 * np.pi * hertz * times + phase
    partials = int(HIGHEST_HZ // hertz)
    match shape:
        case "circle":
            return np.sin(angle)
        case "square":
            return 0.85 * sum((np.sin(k * angle) / k for k in range(1, partials + 1, 2)), np.zeros_like(times))
        case "triangle":
            return 0.6 * sum((np.sin(k * angle) / k for k in range(1, partials + 1)), np.zeros_like(times))
        case _:
            return np.sin(angle + 2.5 * np.sin(0.31 * angle))


def write_clip(path: Path, clip: DemoClip, seconds: float, program: str) -> None:
    """Encode one clip; the file appears when it is complete."""
    import ffmpeg

    frames, sound = draw(clip, seconds)
    partial = path.with_name(path.name + PARTIAL)
    with tempfile.TemporaryDirectory(prefix="kdctool-") as scratch:
        tone = Path(scratch) / "tone.wav"
        with wave.open(str(tone), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLE_RATE)
            file.writeframes(sound.tobytes())
        picture = ffmpeg.input("pipe:", format="rawvideo", pix_fmt="rgb24", s=f"{SIZE}x{SIZE}", framerate=FRAME_RATE)
        exact: dict[str, Any] = {"fflags": "+bitexact", "flags": "+bitexact", "map_metadata": -1, "threads": 1}
        # x264's lookahead is repeatable only with the code paths that every processor has.
        exact["x264-params"] = "cpu-independent=1"
        graph = ffmpeg.output(
            picture,
            ffmpeg.input(f"file:{tone}"),
            f"file:{partial}",
            format="mp4",
            vcodec="libx264",
            preset="veryfast",
            crf=18,
            pix_fmt="yuv420p",
            acodec="aac",
            audio_bitrate="96k",
            **exact,
        ).global_args("-nostdin", "-v", "error")
        command = ffmpeg.compile(graph, cmd=program, overwrite_output=True)
        done = subprocess.run(command, input=frames.tobytes(), capture_output=True, check=False)
    if done.returncode:
        partial.unlink(missing_ok=True)
        cause = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise EnvironmentFault(f"ffmpeg could not write {path}: {cause[-1]}", "kdctool doctor says what is missing")
    os.replace(partial, path)


def encoder() -> str:
    """An ffmpeg that writes H.264 and AAC; the one on PATH may be built without, the bundled one is not."""
    programs = candidates()
    for program in programs:
        listed = subprocess.run([program, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False)
        names = {words[1] for line in listed.stdout.splitlines() if len(words := line.split()) > 1}
        if {"libx264", "aac"} <= names:
            return program
    raise EnvironmentFault(f"{' and '.join(programs)} cannot write H.264 and AAC", "pip install imageio-ffmpeg")


def candidates() -> list[str]:
    """ffmpeg programs of this machine, the one that every command takes first; EnvironmentFault without any."""
    first = binary.find()
    if os.environ.get(binary.FORCE):
        return [first]
    try:
        import imageio_ffmpeg

        return list(dict.fromkeys((first, imageio_ffmpeg.get_ffmpeg_exe())))
    except (ImportError, RuntimeError):  # not installed, or installed from source without a program inside
        return [first]
