"""Which ffmpeg runs: KDCTOOL_FFMPEG, else the one on PATH, else the one that imageio-ffmpeg carries."""

import os
import shutil
import subprocess

from kdctool.errors import EnvironmentFault

FORCE = "KDCTOOL_FFMPEG"
_FIX = f"install ffmpeg, or `pip install imageio-ffmpeg`, or set {FORCE} to a binary; --decoder pyav needs none"


def find() -> str:
    """Path of the ffmpeg binary; EnvironmentFault with the fix where there is none."""
    forced = os.environ.get(FORCE)
    if forced:
        found = shutil.which(forced)
        if found is None:
            raise EnvironmentFault(
                f"{FORCE} names '{forced}', which cannot be run", f"set {FORCE} to an ffmpeg binary, or unset it"
            )
        return os.path.abspath(found)
    on_path = shutil.which("ffmpeg")
    if on_path is not None:
        return os.path.abspath(on_path)
    try:
        import imageio_ffmpeg

        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except (ImportError, RuntimeError) as error:
        raise EnvironmentFault("no ffmpeg on this machine", _FIX) from error


def version(binary: str) -> str:
    """The version that the binary reports; EnvironmentFault where it does not start."""
    try:
        done = subprocess.run(
            [binary, "-version"], capture_output=True, timeout=30, stdin=subprocess.DEVNULL, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFault(f"{binary} does not start: {error}", _FIX) from error
    words = done.stdout.decode(errors="replace").split()
    if words[:2] != ["ffmpeg", "version"] or len(words) < 3:
        raise EnvironmentFault(f"{binary} is not ffmpeg", _FIX)
    return words[2]
