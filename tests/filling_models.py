"""Tiny pre-training models and clips of noise: what inpainting is tested on."""

import torch

from kdctool.models.av_encoder import AVEncoder
from kdctool.objectives.kdc_mae import KdcMae
from kdctool.recipe import Recipe
from kdctool.tasks import EvalData

CLIPS = 10
SIZES = {
    "audio_frames": 32, "mel_bins": 16, "image_size": 32, "audio_patch": 8, "video_patch": 8,
    "width": 16, "heads": 2, "depth": 1, "joint_depth": 1,
}  # fmt: skip
LA, LV = 8, 16


def recipe(norm_pix=False, kind="joint", **objective):
    decoder = {"width": 16, "heads": 2, "depth": 1, "kind": kind}
    return Recipe.model_validate(
        {
            "name": "tiny",
            "model": SIZES,
            "masking": {"views": 1},
            "objective": {
                "decoder": decoder,
                "reconstruction": {"norm_pix": norm_pix},
                "self_distillation": {"weight": 0.0},
                **objective,
            },
        }
    )


def model(cls=KdcMae, **how):
    torch.manual_seed(0)
    given = recipe(**how)
    return cls(given, AVEncoder(given.model)).eval()


def evaluation(clips=CLIPS, batch_size=4, order=None, twins=False, **other):
    """Clips of noise, or (`twins`) clips whose sound and picture are one number each."""
    rng = torch.Generator().manual_seed(1)
    fbank, frame = torch.randn(clips, 32, 16, generator=rng), torch.randn(clips, 3, 32, 32, generator=rng)
    if twins:
        value = torch.linspace(-1, 1, clips)
        fbank, frame = value.view(-1, 1, 1).expand_as(fbank), value.view(-1, 1, 1, 1).expand_as(frame)
    order = list(range(clips)) if order is None else order
    fbank, frame = fbank[order].contiguous(), frame[order].contiguous()
    batches = [
        {"clip": torch.arange(clips)[rows], "fbank": fbank[rows], "frame": frame[rows]}
        for rows in (slice(first, first + batch_size) for first in range(0, clips, batch_size))
    ]
    given = {
        "uids": [f"clip-{i}" for i in order],
        "sources": [f"video-{i // 2}" for i in order],
        "n_total": clips,
        "abouts": [{} for _ in order],
    }
    return EvalData(batches=batches, **{**given, **other})
