"""Clips for the extraction benchmark: what a camera sees, as far as a decoder can tell.

Pictures with the 1/f spectrum of natural ones, panned by a shaky hand, an object moving through them, a cut, sensor
noise; sound with the spectrum and the rhythm of speech. Everything is seeded.
"""

import subprocess
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

SIZES = {"360p": (640, 360), "720p": (1280, 720), "1080p": (1920, 1080)}
FPS, SECONDS = 25, 10
SOUND = "anoisesrc=color=pink:r=44100:a=0.4:seed={seed},tremolo=f=4:d=0.9,highpass=f=120"
_MARGIN = 1.25


def make(ffmpeg: str, path: Path, size: tuple[int, int], seed: int, b_frames: bool = True) -> Path:
    """10 s at 25 fps: x264 medium, crf 23, key frames at most 250 apart; AAC, 44.1 kHz, stereo."""
    if path.exists():
        return path
    width, height = size
    command = [ffmpeg, "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
    command += ["-r", str(FPS), "-i", "-", "-f", "lavfi", "-i", SOUND.format(seed=seed), "-t", str(SECONDS)]
    command += ["-c:v", "libx264", "-preset", "medium", "-crf", "23", "-g", "250", "-pix_fmt", "yuv420p"]
    command += [*([] if b_frames else ["-bf", "0"]), "-c:a", "aac", "-ac", "2", str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None
        for frame in _frames(width, height, seed):
            process.stdin.write(frame.tobytes())
    if process.returncode != 0:
        raise RuntimeError(f"{path} could not be made: {command}")
    return path


def cut(ffmpeg: str, video: Path, folder: Path, at: list[int]) -> list[Path]:
    """Pieces of 10 s of a real video, not encoded again; from a key frame, for OpenCV loses frames that are hidden."""
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        keys = [float(p.pts * p.time_base) for p in container.demux(stream) if p.is_keyframe and p.pts is not None]
    pieces = []
    for start in at:
        key = min(key for key in keys if key >= start)
        path = folder / f"{video.stem}_{start}.mp4"
        command = [ffmpeg, "-v", "error", "-y", "-ss", f"{key:.6f}", "-i", str(video), "-t", str(SECONDS)]
        subprocess.run([*command, "-c", "copy", str(path)], check=True, stdin=subprocess.DEVNULL)
        pieces.append(path)
    return pieces


def smaller(ffmpeg: str, video: Path, path: Path, height: int) -> Path:
    """A real video at another size, encoded as `make` does."""
    command = [ffmpeg, "-v", "error", "-y", "-i", str(video), "-vf", f"scale=-2:{height}", "-c:v", "libx264"]
    command += ["-preset", "medium", "-crf", "23", "-g", "250", "-c:a", "copy", str(path)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    return path


def _frames(width: int, height: int, seed: int):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    scenes = [_picture(round(width * _MARGIN), round(height * _MARGIN), rng) for _ in range(2)]
    thing = _picture(width // 5, height // 4, rng)
    grain = rng.normal(0, 2.5, (4, height, width, 1)).astype(np.int16)
    room = np.array([scenes[0].shape[1] - width, scenes[0].shape[0] - height])
    cut_at = rng.integers(80, 170)
    for number in range(FPS * SECONDS):
        time = number / FPS
        hand = 0.5 + 0.4 * np.sin([0.5 * time + seed, 0.37 * time]) + 0.01 * np.sin([5.1 * time, 4.3 * time])
        left, top = (room * np.clip(hand, 0, 1)).astype(int)
        frame = scenes[int(number > cut_at)][top : top + height, left : left + width].astype(np.int16)
        x = round((0.5 + 0.45 * np.sin(0.9 * time)) * (width - thing.shape[1]))
        y = round((0.5 + 0.3 * np.sin(1.7 * time)) * (height - thing.shape[0]))
        frame[y : y + thing.shape[0], x : x + thing.shape[1]] = thing
        yield np.clip(frame + np.roll(grain[number % 4], rng.integers(0, width), axis=1), 0, 255).astype(np.uint8)


def _picture(width: int, height: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(height, width, 3): noise whose amplitude falls with the frequency, more so for colour than for brightness."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = 1
    bright, *colours = (
        np.fft.irfft2(np.fft.rfft2(rng.normal(size=(height, width))) / frequency**power, (height, width))
        for power in (1.2, 1.6, 1.6)
    )
    bright, red, blue = (plane / plane.std() for plane in (bright, *colours))
    rgb = np.stack([bright + 0.4 * red, bright - 0.2 * red - 0.1 * blue, bright + 0.4 * blue], axis=-1)
    return np.clip(118 + 48 * rgb, 0, 255).astype(np.uint8)
