"""A pre-training and a finetuning run on tiny real shards, made once per session from the real parts."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from kdctool import recipe as recipes
from kdctool.recipe import Recipe
from kdctool.shards import index as shard_index
from kdctool.shards.write import write_shard
from kdctool.stages import finetune, pretrain, run_folder
from kdctool.train import checkpoint
from kdctool.train.log import write_status

LABELS = ("bell", "dog", "rain")
RECIPE = """
name = "tiny"
seed = 3
[data]
workers = 0
[model]
audio_frames = 32
mel_bins = 16
image_size = 16
audio_patch = 8
video_patch = 8
width = 32
heads = 2
depth = 1
[objective.decoder]
width = 16
heads = 2
depth = 1
[[expected]]
task = "retrieval"
metric = "a2v_r1"
value = 0.302
source = "somebody 2024"
"""


@dataclass(frozen=True)
class Study:
    """Shards with a train and a test split, and two finished runs on them."""

    folder: Path
    shards: Path
    recipe: Recipe
    pretrained: Path
    finetuned: Path


def clip(number: int, labels: list[str], source: str) -> tuple[str, list[tuple[str, bytes]]]:
    rng = np.random.default_rng(number)
    sound, picture = io.BytesIO(), io.BytesIO()
    soundfile.write(sound, rng.integers(-9000, 9000, 8000).astype(np.int16), 16000, format="FLAC", subtype="PCM_16")
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(picture, "JPEG", quality=95)
    key = f"clip-{number:010x}"
    about = {"uid": key, "source": f"{source}.mp4", "source_id": source, "labels": labels, "status": "ok"}
    frames = [(f"{i}.jpg", picture.getvalue()) for i in range(2)]
    return key, [("json", json.dumps(about).encode()), ("flac", sound.getvalue()), *frames]


def make_shards(folder: Path, splits: dict[str, list], labels: tuple[str, ...] = LABELS) -> Path:
    folder.mkdir(parents=True)
    entries = tuple(write_shard(folder / f"{name}-000000.tar", name, clips) for name, clips in splits.items())
    settings = {"frames": 2, "size": 16, "sample_rate": 16000, "window_s": 0.5, "audio": "flac"}
    shard_index.write(shard_index.Index(folder, labels, False, settings, entries, {}))
    return folder


def finish(run: Path, recipe: Recipe, kind: str, objective: torch.nn.Module, digest: str, about: dict) -> Path:
    """A run folder as training leaves it, with the weights of `objective` at step 7."""
    run_folder.prepare(run, recipe, kind, digest, {}, about)
    optimizer = torch.optim.Adam([p for p in objective.parameters() if p.requires_grad])
    checkpoint.save(run / "checkpoints", objective, optimizer, {"step": 7})
    write_status(run, "done", 7, 0)
    return run


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    folder = tmp_path_factory.mktemp("study")
    clips = [clip(i, [LABELS[i % 3]], f"video{i // 2}") for i in range(18)]
    shards = make_shards(folder / "shards", {"train": clips[:8], "test": clips[8:]})
    index = shard_index.load(shards)
    recipe = recipes.loads(RECIPE, [f'data.shards="{shards}"'])
    objective = pretrain.build_objective(recipe)
    with torch.no_grad():  # Not the initial norms: a norm that is left out must show.
        for parameter in objective.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    pretrained = finish(folder / "runs" / "pre", recipe, "pretrain", objective, index.digest, {})
    about = {"labels": list(index.labels), "multi_label": index.multi_label}
    classifying = finetune.build_objective(recipe, objective.encoder, index)
    finetuned = finish(folder / "runs" / "fine", recipe, "finetune", classifying, index.digest, about)
    return Study(folder, shards, recipe, pretrained, finetuned)


@pytest.fixture(scope="session", name="make_shards")
def make_shards_fixture():
    return make_shards


@pytest.fixture(scope="session", name="clip")
def clip_fixture():
    return clip
