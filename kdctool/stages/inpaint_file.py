"""Fill in a part of one media file: what `Model.inpaint` does."""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.recipe import Recipe
from kdctool.stages.load import Opened
from kdctool.stages.media_file import Window
from kdctool.tasks.filling import ClipMasks, Statistics, fill_in


class Filled(NamedTuple):
    """A window before and after: what was kept is the same in both."""

    original: npt.NDArray[np.float32]
    """(T, F) log-mel energies for sound, (H, W, 3) in 0-1 for the picture."""
    filled: npt.NDArray[np.float32]
    """The same with the removed patches as the model thinks them."""
    removed: npt.NDArray[np.bool_]
    """(rows, columns) of the patch grid; for sound rows are frequencies."""


def inpainted(
    opened: Opened,
    window: Window,
    remove: Literal["audio", "video"],
    ratio: float,
    masking: str,
    statistics: Statistics,
    key: str,
) -> Filled:
    """Remove the share `ratio` of the tokens of one modality and fill them in; 1 leaves the other modality alone."""
    if remove not in ("audio", "video"):
        raise UsageFault(f"remove = '{remove}' is neither audio nor video")
    objective, model = opened.objective(), opened.recipe.model
    grid = model.audio_grid if remove == "audio" else model.video_grid
    if ratio == 1:
        keep = torch.zeros(1, 0, dtype=torch.int64)
    else:
        keep = ClipMasks(remove, masking, grid, ratio, opened.recipe.seed)([key])
    fbank, frame = window.heard(), window.middle()
    keeps = {"keep_a": keep} if remove == "audio" else {"keep_v": keep}
    with torch.inference_mode():
        audio, video = fill_in(objective, fbank, frame, **keeps, statistics=statistics)
    removed = np.ones(grid[0] * grid[1], dtype=bool)
    removed[keep[0].numpy()] = False
    pair = (fbank[0], audio[0]) if remove == "audio" else (frame[0], video[0])
    units = log_mel if remove == "audio" else picture
    original, filled = (units(values, opened.recipe) for values in pair)
    return Filled(original, filled, removed.reshape(grid))


def log_mel(fbank: Tensor, recipe: Recipe) -> npt.NDArray[np.float32]:
    """Model input (T, F) back to log-mel energies."""
    return (fbank * recipe.data.fbank_std + recipe.data.fbank_mean).float().numpy()


def picture(frame: Tensor, recipe: Recipe) -> npt.NDArray[np.float32]:
    """Model input (C, H, W) back to a picture (H, W, 3) in 0-1."""
    mean, std = torch.tensor(recipe.data.image_mean), torch.tensor(recipe.data.image_std)
    return (frame.permute(1, 2, 0).float() * std + mean).clamp(0, 1).numpy()
