"""kdctool: from a folder of videos to a trained, measured, exported audio-visual model."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    from kdctool.stages.load import Opened

__version__ = "0.1.0"


def load(path: "str | os.PathLike[str]") -> "Opened":
    """Open a run folder or an export: `.encoder`, `.classifier` (or None), `.recipe`, `.labels`, in eval mode."""
    from pathlib import Path

    from kdctool.stages.load import open_model  # torch loads here, not with `import kdctool`

    return open_model(Path(path))
