"""A recipe for somebody's own shards: model, batch and length sized to the clips and to the device at hand."""

import math
import re
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from kdctool.errors import DataFault
from kdctool.recipe import Recipe, loads
from kdctool.shards import index as shard_index
from kdctool.stages.estimate import Estimate, Hardware, estimate, find_hardware

USABLE = 0.85
"""Share of a device's memory that training may plan with."""


@dataclass(frozen=True)
class Size:
    """A model that is known to be worth training from a number of clips on."""

    name: str
    width: int
    heads: int
    depth: int
    decoder: tuple[int, int, int]
    image_size: int
    batch: int
    lr: float
    steps: int
    """Optimiser steps after which more passes over a small set stop paying."""


TINY = Size("tiny", 128, 4, 2, (96, 4, 1), 96, 40, 1e-3, 600)
MINI = Size("mini", 192, 6, 4, (128, 4, 2), 112, 64, 1e-3, 3_000)
SMALL = Size("small", 384, 6, 11, (256, 8, 4), 224, 128, 5e-4, 15_000)
BASE = Size("base", 768, 12, 11, (512, 16, 8), 224, 120, 1e-4, 30_000)


@dataclass(frozen=True)
class NewRecipe:
    """What `recipe new` found: the text, and what to tell the reader about it."""

    text: str
    recipe: Recipe
    estimate: Estimate
    hours: float
    hardware: Hardware
    clips: int


def run(shards: Path, name: str = "", device: str = "auto") -> NewRecipe:
    """Write a recipe (as text) for a folder of shards and a device."""
    return size_for(shard_index.load(shards), name or _name_of(shards), find_hardware(device))


def size_for(index: shard_index.Index, name: str, hardware: Hardware) -> NewRecipe:
    """The largest model worth training on the clips of `index` that fits the device."""
    if index.settings.get("images"):
        raise DataFault(
            f"{index.folder} holds pictures without sound, and `recipe new` writes audio-visual recipes",
            "recipes/hybrid_clip.toml learns from pictures: kdctool recipe show recipes/hybrid_clip.toml",
        )
    train = "train" if "train" in index.splits else max(index.splits, key=lambda split: index.splits[split], default="")
    clips = index.splits.get(train, 0)
    if clips < 4:
        raise DataFault(
            f"{index.folder} has {clips} clips to train on, 4 are the least", "extract and shard more videos"
        )
    held_out = next((split for split in ("test", "val", "eval") if split in index.splits and split != train), train)
    window_s = float(index.settings.get("window_s") or 10.0)
    facts = {
        "name": name,
        "shards": str(index.folder),
        "train": train,
        "held_out": held_out,
        "clips": clips,
        "window_s": window_s,
        "audio_frames": audio_frames(window_s),
        "frame": int(index.settings.get("size") or 224),
        "multi_label": index.multi_label,
        "labels": len(index.labels),
    }
    for size in _sizes(hardware, clips):
        text, recipe, cost = _fill(facts, size, hardware)
        if cost.memory_gb(1) <= hardware.memory_gb * USABLE:
            break
    hours = cost.hours(clips * recipe.training.epochs, hardware)
    return NewRecipe(text, recipe, cost, hours, hardware, clips)


def audio_frames(window_s: float) -> int:
    """Filter-bank frames (10 ms) that cover a window, a multiple of 16.

    Ten seconds give 1024 rather than 1008: published CAV-MAE weights hold positions for exactly 1024.
    """
    frames = max(16, math.ceil(round(window_s * 100, 6) / 16) * 16)
    return 1024 if frames == 1008 else frames


def _sizes(hardware: Hardware, clips: int) -> list[Size]:
    """Candidates, best first; the next is taken when one clip does not fit in memory."""
    if hardware.kind == "cpu":
        return [MINI, TINY] if clips >= 2_000 else [TINY]
    if clips < 3_000:
        return [MINI, TINY]
    return [BASE, SMALL, MINI, TINY] if clips >= 100_000 and hardware.memory_gb >= 20 else [SMALL, MINI, TINY]


def _batch(wanted: int, clips: int) -> int:
    """At most half of the clips; a multiple of 8 where there are 8."""
    batch = min(wanted, clips // 2)
    return batch // 8 * 8 if batch >= 8 else batch


def _micro_batch(batch: int, cost: Estimate, memory_gb: float) -> int:
    """0 when the batch fits whole, else the largest divisor of it that fits."""
    fitting = [n for n in range(1, batch + 1) if batch % n == 0 and cost.memory_gb(n) <= memory_gb * USABLE]
    largest = max(fitting, default=1)
    return 0 if largest == batch else largest


def _contrastive_weight(clips: int) -> tuple[float, str]:
    if clips < 5_000:
        return 1.0, "few clips, from scratch: matching sound and picture has to lead; the papers' 0.01 is for millions"
    if clips < 100_000:
        return 0.1, "between the 1.0 that suits a few thousand clips and the papers' 0.01"
    return 0.01, "as in the papers"


def _fill(facts: dict[str, object], size: Size, hardware: Hardware) -> tuple[str, Recipe, Estimate]:
    clips, frame = int(str(facts["clips"])), int(str(facts["frame"]))
    image = max(16, min(size.image_size, frame) // 16 * 16)
    batch = _batch(size.batch, clips)
    per_epoch = clips // batch
    epochs = max(10, min(400, math.ceil(size.steps / per_epoch)))
    weight, why = _contrastive_weight(clips)
    precision = "fp32" if hardware.kind == "cpu" else "bf16"
    tune_batch = _batch(48, clips)
    tune_epochs = max(10, min(50, math.ceil(1_000 / max(1, clips // tune_batch))))
    labels = f"{facts['labels']} labels" if facts["labels"] else "no labels yet: finetune needs shards with labels.csv"
    unseen = "" if facts["held_out"] != facts["train"] else "  # nothing is held out here: scores will be too good"
    dw, dh, dd = size.decoder

    def text(micro: int, cost: Estimate | None) -> str:
        memory = f", about {cost.memory_gb(micro or batch):.1f} GB" if cost else ""
        return f"""\
# {facts["name"]}: KDC-MAE, size "{size.name}", for {clips:,} clips of {facts["window_s"]:g} s on {hardware.name}
# ({hardware.memory_gb:.0f} GB). Written by `kdctool recipe new`; every key may be changed here or with
# --set section.key=value, and `kdctool recipe show FILE --resolved` prints the ones that are not written down.

name = {_quoted(str(facts["name"]))}

[data]
shards = {_quoted(str(facts["shards"]))}
train_split = {_quoted(str(facts["train"]))}
eval_split = {_quoted(str(facts["held_out"]))}{unseen}
workers = {min(8, hardware.cores - 1)}

[model]
audio_frames = {facts["audio_frames"]}  # 10 ms each: covers the {facts["window_s"]:g} s of a clip, a multiple of 16
image_size = {image}  # frames are stored at {frame} pixels
width = {size.width}
heads = {size.heads}
depth = {size.depth}

[objective]
name = "kdc_mae"  # cav_mae is the one-view baseline
decoder = {{ width = {dw}, heads = {dh}, depth = {dd} }}
contrastive = {{ weight = {weight} }}  # {why}

[optim]
name = "adamw"
lr = {size.lr:g}  # for this batch; nothing scales it later
betas = [0.9, 0.95]
weight_decay = 0.05
schedule = "cosine"
warmup_epochs = {max(1, epochs // 20)}
grad_clip = 1.0

[training]
epochs = {epochs}  # {per_epoch:,} steps each, {per_epoch * epochs:,} in all
global_batch = {batch}  # at most half of the clips; each clip is told apart from the {batch - 1} others
micro_batch = {micro}  # per pass{memory}; 0 = the whole batch at once
precision = "{precision}"

[finetune]
modality = "both"  # {labels}
loss = "{"bce" if facts["multi_label"] else "ce"}"
optim = {{ name = "adamw", lr = {size.lr / 5:g}, weight_decay = 0.05, schedule = "cosine", warmup_epochs = 1 }}
training = {{ epochs = {tune_epochs}, global_batch = {tune_batch}, precision = "{precision}" }}
"""

    cost = estimate(loads(text(0, None), origin="recipe new"))
    micro = _micro_batch(batch, cost, hardware.memory_gb)
    final = text(micro, cost)
    return final, loads(final, origin="recipe new"), cost


def _name_of(shards: Path) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "-", shards.resolve().name).removesuffix("shards").strip("-_") or "mine"


def _quoted(text: str) -> str:
    return tomli_w.dumps({"x": text}).removeprefix("x = ").rstrip("\n")
