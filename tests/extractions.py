"""Small real videos, and what a command left in a folder."""

import random
import subprocess
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from kdctool.media import binary


def make_video(path: Path, seconds: float = 1, hertz: int = 440) -> Path:
    """H.264 of 64 x 48 at 10 frames per second, and a tone in AAC."""
    picture, sound = f"testsrc2=s=64x48:r=10:d={seconds}", f"sine=f={hertz}:d={seconds}"
    sources = ["-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", sound]
    subprocess.run([binary.find(), "-v", "error", *sources, "-c:v", "libx264", "-c:a", "aac", str(path)], check=True)
    return path


def fill(folder: Path, video: bytes, names: Iterable[str]) -> Path:
    """Copies of a good video under `names`, and noise.mkv, which is none."""
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(video)
    (folder / "noise.mkv").write_bytes(random.Random(0).randbytes(5000))
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Hash of every file of a folder but the locks, which hold process numbers."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".lock"))
    return {str(path.relative_to(folder)): sha256(path.read_bytes()).hexdigest() for path in files}
