"""kdctool: from a folder of videos to a trained, measured, exported audio-visual model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from kdctool.stages.single import Model

__version__ = "0.1.0"


def load(path: "str | os.PathLike[str]") -> "Model":
    """Open a run folder or an export for use: `.embed("clip.mp4")`, `.similarity(...)`, `.localize(...)` and more.

    `.encoder`, `.classifier` (or None), `.recipe` and `.labels` are the parts, in eval mode on the CPU.
    """
    from pathlib import Path

    from kdctool.stages.single import open_for_use  # torch loads here, not with `import kdctool`

    return open_for_use(Path(path))
