"""Shards of made-up clips for gpu_all.py. Free of torch: the processes that make them start in a moment."""

import io
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from reader import sound

FRAMES = 10


def make_shards(folder: Path, clips: int, processes: int, size: int, seconds: float) -> Any:
    """Shards of FLAC and ten JPEG per clip; 64 different clips, repeated, which decoding does not notice."""
    from kdctool.shards import index
    from kdctool.shards.write import write_shard

    different = min(clips, 64)
    # Forked children would inherit the GPU's context: started anew, they never see it.
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        jobs = [(number, size, seconds) for number in range(different)]
        made = list(pool.map(_members, *zip(*jobs, strict=True)))
    per_shard = max(1, min(512, clips // 2))
    entries = []
    for number, first in enumerate(range(0, clips, per_shard)):
        members = [(f"clip-{i:06d}", made[i % different]) for i in range(first, min(clips, first + per_shard))]
        entries.append(write_shard(folder / f"train-{number:06d}.tar", "train", members))
    settings = {"frames": FRAMES, "size": size, "sample_rate": 16000, "audio": "flac"}
    made_index = index.Index(folder, (), False, settings, tuple(entries), {"benchmark": "gpu_all"})
    index.write(made_index)
    return made_index


def _members(number: int, size: int, seconds: float) -> list[tuple[str, bytes]]:
    import soundfile
    from PIL import Image

    rng = np.random.default_rng(number)
    waveform = io.BytesIO()
    soundfile.write(waveform, sound(rng)[: int(16000 * seconds)], 16000, format="FLAC", subtype="PCM_16")
    members = [("json", b"{}"), ("flac", waveform.getvalue())]
    for frame in range(FRAMES):
        coarse = Image.fromarray(rng.integers(0, 255, (7, 7, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))
        picture = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=90)
        members.append((f"{frame}.jpg", buffer.getvalue()))
    return members
