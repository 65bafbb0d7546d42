"""What every task does around its model: inference mode, each clip once, and whose video a clip is from."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kdctool.batch import Batch
from kdctool.errors import DataFault, UsageFault
from kdctool.progress import bar
from kdctool.tasks import EvalData


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Inference mode with dropout off; the model's training flag is put back."""
    was_training = bool(getattr(model, "training", False))
    if was_training:
        model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if was_training:
            model.train()


def read_batches(data: EvalData) -> Iterator[Batch]:
    """The batches with a progress bar; DataFault when a clip comes twice or one is missing without a reason."""
    seen: set[int] = set()
    expected = data.n_total - sum(data.missing.values())
    with bar("scoring", expected) as progress:
        for batch in data.batches:
            clips = [int(clip) for clip in batch["clip"]]
            twice = [clip for clip in clips if clip in seen]
            seen.update(clips)
            if twice or len(set(clips)) < len(clips):
                raise DataFault(
                    f"clip {data.uids[(twice or clips)[0]]} was read twice", "run kdctool verify on the shards"
                )
            yield batch
            progress.advance(len(clips))
    if len(seen) != expected:
        raise DataFault(
            f"{len(seen)} of {expected} clips were read and nothing says why the others were not",
            "run kdctool verify on the shards",
        )


def clusters(data: EvalData, clip: Tensor) -> list[str]:
    """Source video of each scored clip, in the order of `clip` (N,)."""
    return [data.sources[int(index)] for index in clip]


def check_frames(data: EvalData) -> None:
    """UsageFault where single frames mean nothing to the model, because it was trained on collages of four."""
    if data.collages:
        raise UsageFault(
            "the model was trained on collages of four frames (data.tiling), single frames are not what it knows",
            "leave the option frames out",
        )


def own_frames(batch: Batch) -> Tensor:
    """(B, N) float: 1 for each frame of batch["frames"] that is the clip's, 0 for padding."""
    frames, count = batch["frames"], batch["frame_count"]
    return (torch.arange(frames.shape[1], device=frames.device)[None] < count[:, None]).float()
