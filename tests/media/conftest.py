"""Real clips, made once per session by the ffmpeg of imageio-ffmpeg: a system's may lack encoders and options."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import imageio_ffmpeg
import pytest

Make = Callable[..., Path]

PICTURE = "testsrc2=s=320x180:r=25:d=3"
SOUND = "sine=f=440:r=44100:d=3"


@pytest.fixture(scope="session")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """make(name, *output options, before=[input options], inputs=[lavfi sources or files]) -> a clip of 3 s."""
    folder = tmp_path_factory.mktemp("clips")
    exe = str(imageio_ffmpeg.get_ffmpeg_exe())

    def clip(
        name: str, *options: str, inputs: tuple[str | Path, ...] = (PICTURE, SOUND), before: tuple[str, ...] = ()
    ) -> Path:
        path = folder / name
        if not path.exists():
            sources = [
                part
                for source in inputs
                for part in (["-i", str(source)] if isinstance(source, Path) else ["-f", "lavfi", "-i", source])
            ]
            command = [exe, "-v", "error", "-y", "-threads", "1", *before, *sources, *options, str(path)]
            subprocess.run(command, check=True, timeout=120, stdin=subprocess.DEVNULL)
        return path

    return clip


@pytest.fixture(scope="session")
def plain(make: Make) -> Path:
    """3 s of H.264 with B-frames and AAC stereo."""
    return make("plain.mp4", "-c:v", "libx264", "-preset", "fast", "-g", "50", "-c:a", "aac", "-ac", "2")
