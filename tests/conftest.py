"""Fixtures several rooms need: a small extraction folder, shards made of it, and a recipe that trains in seconds."""

import hashlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from kdctool.files import canonical_json, write_json
from kdctool.shards.extraction import clip_folder
from kdctool.stages import shard

CLASSES = ("blue", "green", "red")
TINY = """
name = "tiny"
[data]
workers = 0
[model]
audio_frames = 64
mel_bins = 32
image_size = 32
audio_patch = 16
video_patch = 8
width = 32
heads = 2
depth = 1
[objective]
decoder = { width = 16, heads = 2, depth = 1 }
[optim]
lr = 1e-3
[training]
epochs = 2
global_batch = 8
[log]
every_steps = 1
tensorboard = false
[finetune]
optim = { lr = 1e-3, step_start = 1 }
training = { epochs = 1, global_batch = 8 }
"""


def make_extraction(folder: Path, clips: int = 44, seconds: float = 0.7, seed: int = 0) -> Path:
    """What `kdctool extract` leaves behind, made by hand: noise whose colour and pitch go with the label."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(clips):
        source = f"videos/clip {number}.mp4"
        uid = f"clip-{number}-{hashlib.sha256(source.encode()).hexdigest()[:10]}"
        label = number % len(CLASSES)
        place = clip_folder(folder, uid)
        place.mkdir(parents=True)
        for i in range(3):
            picture = rng.integers(0, 80, (40, 40, 3), dtype=np.uint8)
            picture[..., label] += 120
            buffer = io.BytesIO()
            Image.fromarray(picture).save(buffer, "JPEG", quality=90)
            (place / f"{i:02d}.jpg").write_bytes(buffer.getvalue())
        time = np.arange(int(16000 * seconds)) / 16000
        tone = 8000 * np.sin(2 * np.pi * 300 * 2**label * time) + rng.normal(0, 300, len(time))
        soundfile.write(place / "audio.flac", tone.astype(np.int16), 16000, subtype="PCM_16")
        rows.append(
            {
                "uid": uid, "source": source, "source_id": f"video-{number}", "start_s": 0.0, "duration_s": seconds,
                "status": "ok", "reason": "", "modalities": ["audio", "video"], "frames": 3,
                "frame_times": [0.0, seconds / 3, 2 * seconds / 3], "audio": "audio.flac", "audio_pad_s": 0.0,
                "width": 40, "height": 40, "rotation": 0, "crop": [0, 0, 40, 40], "labels": [CLASSES[label]],
                "split": "", "decoder": "none", "tool_versions": {}, "sha256": "",
            }
        )  # fmt: skip
    rows.sort(key=lambda row: row["uid"])
    (folder / "manifest.jsonl").write_text("".join(canonical_json(row) + "\n" for row in rows))
    settings = {"frames": 3, "size": 40, "sample_rate": 16000, "clip_seconds": seconds, "audio": "flac"}
    write_json(folder / "done.json", {"settings": settings})
    return folder


@pytest.fixture(scope="session")
def tiny_extraction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An extraction folder with 44 clips of three classes."""
    return make_extraction(tmp_path_factory.mktemp("tiny") / "out")


@pytest.fixture(scope="session")
def tiny_shards(tiny_extraction: Path) -> Path:
    """24 training and 20 test clips of three classes, in shards of ten."""
    folder = tiny_extraction.parent / "shards"
    shard.run(tiny_extraction, folder, clips_per_shard=10)
    return folder


@pytest.fixture
def tiny_recipe(tmp_path: Path, tiny_shards: Path) -> Callable[..., Path]:
    """Write the tiny recipe with changes (`--set` syntax) and return its path."""

    def write(*changes: str) -> Path:
        from kdctool import recipe as recipes

        loaded = recipes.loads(TINY, [f"data.shards={tiny_shards}", *changes])
        path = tmp_path / "tiny.toml"
        path.write_text(recipes.to_toml(loaded))
        return path

    return write
