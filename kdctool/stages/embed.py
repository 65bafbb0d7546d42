"""Embeddings of every clip of a folder of videos or of shards, without labels, into one file.

Work is done in pieces of `PIECE` clips, each a file in OUT.pieces/ that appears whole: stopped at any moment, the same
command goes on. The pieces go when the one file is written.
"""

import io
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kdctool.batch import Batch
from kdctool.data.loader import eval_batches
from kdctool.data.whole import BOTH, whole
from kdctool.errors import DataFault, UsageFault, VerificationFault, quoted
from kdctool.files import digest, locked, read_json, write_bytes, write_json
from kdctool.media.settings import Settings
from kdctool.models.image_classifier import patch_tokens
from kdctool.progress import bar, say
from kdctool.shards import index as shard_index
from kdctool.shards.extraction import MANIFEST
from kdctool.shards.index import Index, Split
from kdctool.stages import embed_file, extract_to_shards, run_folder
from kdctool.stages.eval_data import abouts, source_of, with_workers
from kdctool.stages.fitting import choose_device
from kdctool.stages.load import Opened, open_model
from kdctool.stages.media_file import settings_for
from kdctool.tasks.retrieval import unit_embedding

PIECE = 1024


@dataclass(frozen=True)
class Embeddings:
    """What was written where, and what could not be embedded."""

    path: Path
    model: str
    n_embedded: int
    n_total: int
    missing: dict[str, int]
    width: int
    parts: tuple[str, ...]
    """Which vectors every row has; an image model has "video" alone."""
    resumed: int
    """Clips that an earlier start had embedded."""


def run(
    source: Path | None,
    clips: Path,
    out: Path,
    *,
    split: str | None = None,
    stride_s: float | None = None,
    every_window: bool = False,
    device_name: str = "auto",
    batch_size: int = 32,
    workers: int | None = None,
    overwrite: bool = False,
) -> Embeddings:
    """Embed all clips of `clips`, shards or a folder of videos, with the model of `source` (default: newest run).

    Videos are extracted as the training clips were, into OUT.shards/, which stays: the first window of each, or all
    with `every_window` (`stride_s` apart, by default a window's length). VerificationFault when an embedding is not
    finite; nothing is written then.
    """
    embed_file.check(out)
    opened = open_model(source or run_folder.newest(), images=True)
    shards, lost = _shards(opened, clips, out, stride_s, every_window, workers)
    index = shard_index.load(shards)
    recipe = with_workers(opened.recipe, workers)
    device = choose_device(device_name)
    pieces = out.with_name(out.name + ".pieces")
    keys = digest([opened.weights_sha256, index.digest, split or "", batch_size])
    if out.exists() and not overwrite:
        raise UsageFault(f"{out} exists", "choose another name, or --overwrite")
    with locked(pieces):
        _clear(pieces, keys, overwrite)
        say(f"embedding with {opened.said()}")
        total, missing, resumed = 0, dict(lost), 0
        for name in [split] if split else [n for n, count in index.splits.items() if count]:
            chosen = index.split(name)
            usable, lacking = whole(chosen, _needs(opened))
            total += len(chosen)
            for reason, count in lacking.items():
                missing[reason] = missing.get(reason, 0) + count
            resumed += _split(opened, index, usable, name, pieces, recipe, device, batch_size)
        table = _gathered(pieces)
        if not len(table["uid"]):
            sought = "a picture" if opened.is_image else "both sound and picture"
            raise DataFault(f"no clip of {clips} has {sought}: {missing}", "kdctool verify says more")
        embed_file.write(out, table, {"weights_sha256": opened.weights_sha256, "data_digest": index.digest})
        shutil.rmtree(pieces)
    parts = embed_file.vectors(table)
    width, clips_in_all = table[parts[0]].shape[1], total + sum(lost.values())
    return Embeddings(out, opened.said(), len(table["uid"]), clips_in_all, missing, width, parts, resumed)


def _clear(pieces: Path, keys: str, overwrite: bool) -> None:
    """Delete pieces of another model, other clips or another batch size; they would not fit together."""
    about = pieces / "keys.json"
    there = list(pieces.glob("*.npz"))
    if there and (overwrite or not about.exists() or read_json(about) != keys):
        say(f"{pieces}: {len(there)} pieces of another model or of other clips are made anew")
        for path in there:
            path.unlink()
    write_json(about, keys)


def _shards(
    opened: Opened, clips: Path, out: Path, stride_s: float | None, every_window: bool, workers: int | None
) -> tuple[Path, dict[str, int]]:
    """The folder of shards to read: `clips` itself, or what is made of its videos; and what was quarantined."""
    if not clips.exists():
        raise UsageFault(f"{clips} does not exist", "give a folder of videos or of shards")
    if (clips / shard_index.INDEX).exists() or (clips.is_dir() and any(clips.glob("*.tar"))):
        if stride_s is not None or every_window:
            raise UsageFault("--windows and --stride cut videos, and these are shards", "leave them out")
        return clips, {}
    if (clips / MANIFEST).exists():
        packed = f"kdctool shard {quoted(clips)} shards/, then kdctool embed shards/"
        raise UsageFault(f"{clips} holds extracted clips, neither videos nor shards", packed)
    settings: Settings = settings_for(opened.recipe, opened.clip)
    if stride_s is not None or every_window:
        settings = Settings(**{**vars(settings), "stride_s": settings.window_s if stride_s is None else stride_s})
    shards = out.with_name(out.name + ".shards")
    made, _ = extract_to_shards.run(clips, shards, settings, packing={"holdout": False}, workers=workers or None)
    return shards, dict(made.reasons)


def _split(
    opened: Opened, index: Index, split: Split, name: str, pieces: Path, recipe: Any, device: torch.device, batch: int
) -> int:
    """Write the pieces of a split that are not there yet; returns how many clips were."""
    opened.encoder.to(device)
    resumed = 0
    with bar(f"embed {name}", len(split)) as progress:
        for first in range(0, len(split), PIECE):
            last = min(first + PIECE, len(split))
            path = pieces / f"{name}-{first:09d}.npz"
            if path.exists():
                resumed += last - first
            else:
                picked = np.zeros(len(split), dtype=bool)
                picked[first:last] = True
                _piece(opened, index, split.subset(picked), path, recipe, device, batch)
            progress.advance(last - first)
    return resumed


def _piece(
    opened: Opened, index: Index, split: Split, path: Path, recipe: Any, device: torch.device, batch_size: int
) -> None:
    found: dict[str, list[np.ndarray]] = {}
    workers, needs = recipe.data.workers, _needs(opened)
    with torch.inference_mode():
        for batch in eval_batches(index, split, recipe, device, batch_size, workers, labels=False, parts=needs):
            for part, values in _tokens(opened, batch).items():
                vectors = unit_embedding(values).cpu().numpy()
                if not np.isfinite(vectors).all():
                    raise VerificationFault(f"{part} embeddings are not finite", "kdctool verify checks the weights")
                found.setdefault(part, []).append(vectors)
    told = abouts(split)
    rows = {
        "uid": np.array([split.key(i) for i in range(len(split))]),
        "source": np.array([source_of(about, split.key(i)) for i, about in enumerate(told)]),
        "start_s": np.array([float(about.get("start_s", 0.0)) for about in told]),
        "duration_s": np.array([float(about.get("duration_s", np.nan)) for about in told]),
    }
    held = io.BytesIO()
    np.savez(held, **rows, **{part: np.concatenate(vectors) for part, vectors in found.items()})  # type: ignore[arg-type]
    write_bytes(path, held.getvalue())


def _needs(opened: Opened) -> tuple[str, ...]:
    return ("video",) if opened.is_image else BOTH


def _tokens(opened: Opened, batch: Batch) -> dict[str, torch.Tensor]:
    """Kind of vector -> tokens (B, L, D) whose mean it is."""
    if opened.is_image:
        return {"video": patch_tokens(opened.encoder, batch["frame"])}
    fbank, frame = batch["fbank"], batch["frame"]
    joint = opened.encoder(fbank, frame, single=False).joint
    assert joint is not None
    return {"audio": opened.encoder.embed_audio(fbank), "video": opened.encoder.embed_video(frame), "joint": joint}


def _gathered(pieces: Path) -> dict[str, np.ndarray]:
    """All pieces as one table, sorted by uid: the order of shards and splits leaves no trace."""
    loaded = [dict(np.load(path, allow_pickle=False)) for path in sorted(pieces.glob("*.npz"))]
    if not loaded:
        return {"uid": np.empty(0, dtype=str)}
    table = {name: np.concatenate([piece[name] for piece in loaded]) for name in loaded[0]}
    order = np.argsort(table["uid"], kind="stable")
    return {name: values[order] for name, values in table.items()}
