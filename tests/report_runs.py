"""A run with every kind of evaluation, made by hand as the stages leave it: what `kdctool report` is tested on."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from PIL import Image

from kdctool import recipe as recipes
from kdctool.data.fbank import centre, log_mel
from kdctool.files import canonical_json, write_json
from kdctool.shards import index as shard_index
from kdctool.shards.extraction import clip_folder
from kdctool.stages import demo_clips, shard
from kdctool.train.log import write_status

RECIPE = """
name = "made"
[training]
global_batch = 8
epochs = 20
[[expected]]
task = "retrieval"
metric = "a2v_r1"
value = 0.3
source = "a paper <b>that</b> says so"
"""
HOSTILE = (
    "<img src=x onerror=alert(1)>.mp4",
    "</script><script>alert(2)</script>.mp4",
    "שלום עולם \u202egpj.mp4",
    "long-" + "n" * 300 + ".mp4",
    "two\nlines\tand a tab.mp4",
    "not-utf8-\udcff\udcfe.mp4",
    "\"quotes' & ampersands {{ 7 * 7 }}.mp4",
)


def make_extraction(folder: Path, clips: int = 24, seconds: float = 1.2, hostile: bool = True) -> Path:
    """Demo clips as extraction leaves them, some with names that nobody should have."""
    rows = []
    for number, clip in enumerate(demo_clips.plan(0, clips + 40, 40)[:clips]):
        frames, sound = demo_clips.draw(clip, seconds)
        source = HOSTILE[number] if hostile and number < len(HOSTILE) else clip.name
        uid = f"clip-{number:03d}-{hashlib.sha256(source.encode('utf-8', 'surrogateescape')).hexdigest()[:10]}"
        place = clip_folder(folder, uid)
        place.mkdir(parents=True)
        for i, frame in enumerate(frames[:: max(1, len(frames) // 3)][:3]):
            Image.fromarray(frame).save(place / f"{i:02d}.jpg", "JPEG", quality=90)
        times = np.arange(round(seconds * 16000)) / 16000
        samples = np.interp(times, np.arange(len(sound)) / demo_clips.SAMPLE_RATE, sound).astype(np.int16)
        soundfile.write(place / "audio.flac", samples, 16000, subtype="PCM_16")
        label = tuple(demo_clips.COLOURS)[clip.colour]
        rows.append(
            {
                "uid": uid, "source": source, "source_id": f"video-{number}", "start_s": 0.0, "duration_s": seconds,
                "status": "ok", "reason": "", "modalities": ["audio", "video"], "frames": 3,
                "frame_times": [0.0, seconds / 3, 2 * seconds / 3], "audio": "audio.flac", "audio_pad_s": 0.0,
                "width": 128, "height": 128, "rotation": 0, "crop": [0, 0, 128, 128], "labels": [label],
                "split": "test", "decoder": "none", "tool_versions": {}, "sha256": "",
            }
        )  # fmt: skip
    rows.sort(key=lambda row: row["uid"])
    (folder / "manifest.jsonl").write_text("".join(canonical_json(row) + "\n" for row in rows))
    settings = {"frames": 3, "size": 128, "sample_rate": 16000, "clip_seconds": seconds, "audio": "flac"}
    write_json(folder / "done.json", {"settings": settings})
    return folder


def make_shards(folder: Path, **options: Any) -> Path:
    shard.run(make_extraction(folder / "out", **options), folder / "shards", clips_per_shard=10)
    return folder / "shards"


def make_run(root: Path, shards: Path, name: str = "made-s0-abcdef", rows: int = 300, state: str = "done") -> Path:
    """A pre-training run with curves and without evaluations."""
    run = root / name
    run.mkdir(parents=True)
    recipe = recipes.loads(RECIPE, [f"data.shards={shards}"])
    (run / "recipe.toml").write_text(recipes.to_toml(recipe))
    digest = shard_index.read(shards).digest
    about = {"kind": "pretrain", "keys": {}, "data_digest": digest, "recipe_digest": "r" * 64, "kdctool": "0.1.0"}
    write_json(run / "run.json", about)
    rng = np.random.default_rng(1)
    lines = []
    for n in range(rows):
        fall = math.exp(-n / 60)
        row: dict[str, Any] = {
            "step": n * 5, "epoch": n // 15, "lr": 1e-3 * (0.5 + 0.5 * math.cos(math.pi * n / rows)),
            "loss": 6 + 9 * fall + rng.normal(0, 0.2), "reconstruction_audio": 1.1 + 2 * fall + rng.normal(0, 0.05),
            "reconstruction_video": 0.8 + 1.5 * fall + rng.normal(0, 0.05),
            "contrastive": 3 + 4 * fall + rng.normal(0, 0.2),
            "contrastive_accuracy": min(1.0, 0.9 - 0.8 * fall + rng.normal(0, 0.03)),
            "self_distillation": 0.002 * fall + 1e-4, "grad_norm": 60.0 if n == 0 else 1 + abs(rng.normal(0, 0.3)),
            "clips_per_s": 44.0 + rng.normal(0, 1), "data_wait": 0.06,
        }  # fmt: skip
        if n % 10 == 0:
            row |= {"rank/audio": 4 + n / 20, "rank/video": 5 + n / 25}
        lines.append(json.dumps(row) + "\n")
    (run / "metrics.jsonl").write_text("".join(lines))
    write_status(run, state, rows * 5, 0, "", f"kdctool eval {run} --task retrieval")
    return run


def metric(value: float, low: float, high: float, chance: float | None) -> dict[str, float | None]:
    return {"value": value, "low": low, "high": high, "chance": chance}


def write_eval(
    run: Path,
    task: str,
    metrics: dict[str, Any],
    shards: Path,
    details: dict[str, Any] | None = None,
    assets: dict[str, Any] | None = None,
    notes: tuple[str, ...] = (),
    n: tuple[int, int] = (24, 26),
) -> Path:
    """RUN/eval/TASK as the evaluate stage writes it."""
    folder = run / "eval" / task
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "task": task, "protocol": f"{task}/frame-mid@1", "metrics": metrics, "n_scored": n[0], "n_total": n[1],
        "missing": {"no_audio": n[1] - n[0]} if n[1] > n[0] else {}, "recipe_digest": "r" * 64,
        "data_digest": shard_index.read(shards).digest, "weights_sha256": "w" * 64,
    }  # fmt: skip
    write_json(folder / "results.json", results)
    about = {
        "notes": list(notes), "options": {}, "details": details or {}, "device": "cpu",
        "model": {"path": str(run), "kind": "pretrain", "step": 1500}, "data": {"shards": str(shards), "split": "test"},
        "versions": {},
    }  # fmt: skip
    write_json(folder / "details.json", about)
    if assets:
        np.savez_compressed(folder / "assets.npz", **assets)
    return folder


def uids_of(shards: Path) -> list[str]:
    split = shard_index.read(shards).split("test")
    return [split.key(i) for i in range(len(split))]


def add_retrieval(run: Path, shards: Path, collapsed: bool = False, queries: int = 24) -> None:
    uids = uids_of(shards)
    num = len(uids)
    rng = np.random.default_rng(2)
    likeness = np.zeros((num, num)) if collapsed else np.eye(num) * 0.5 + rng.normal(0, 0.25, (num, num))
    assets: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    for way, matrix in (("a2v", likeness), ("v2a", likeness.T)):
        order = np.argsort(-matrix, axis=1, kind="stable")[:queries, :5]
        own = matrix.diagonal()[:, None]
        ranks = (matrix > own).sum(1) + ((matrix == own).sum(1) + 1) / 2
        assets[f"gallery.query_{way}"] = np.array(uids[:queries])
        assets[f"gallery.top_{way}"] = np.array(uids)[order]
        assets[f"gallery.score_{way}"] = np.take_along_axis(matrix[:queries], order, 1)
        assets[f"gallery.rank_{way}"] = ranks[:queries]
        for k in (1, 5, 10):
            share = k / num if collapsed else float((ranks <= k).mean())
            metrics[f"{way}_r{k}"] = metric(share, max(0, share - 0.15), min(1, share + 0.15), k / num)
        for name in ("median", "mean"):
            at = float(np.median(ranks) if name == "median" else ranks.mean())
            metrics[f"{way}_{name}_rank"] = metric(at, at * 0.8, at * 1.2, (num + 1) / 2)
    write_eval(run, "retrieval", metrics, shards, assets=assets, n=(num, num + 2), notes=("<script>alert(3)</script>",))


def add_localization(run: Path, shards: Path, frames: np.ndarray, clips: int = 8) -> None:
    rng = np.random.default_rng(3)
    height, width = frames.shape[1:3]
    y, x = np.mgrid[:height, :width] / height
    maps, boxes, silent, scores = [], [], [], []
    for n in range(clips):
        cx, cy = rng.uniform(0.3, 0.7, 2)
        found = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 0.03) + 0.12 * rng.random((height, width)) ** 4
        maps.append((found - found.min()) / (found.max() - found.min()))
        box = [cx - 0.18, cy - 0.18, cx + 0.18, cy + 0.18]
        boxes.append([box, [np.nan] * 4])
        silent.append([[0.05, 0.05, 0.25, 0.25] if n % 2 else [np.nan] * 4])
        scores.append(rng.uniform(0.2, 0.9))
    assets = {
        "uids": np.array(uids_of(shards)[:clips]), "frame": frames[:clips], "map": np.array(maps, dtype=np.float16),
        "boxes": np.array(boxes), "silent": np.array(silent), "score": np.array(scores),
    }  # fmt: skip
    metrics = {
        "ciou_top50": metric(0.51, 0.4, 0.62, 0.33),
        "ciou_top50_centre": metric(0.33, 0.25, 0.41, 0.33),
        "ciou_top50_shuffled": metric(0.35, 0.27, 0.43, 0.33),
        "pointing": metric(0.62, 0.5, 0.74, 0.14),
    }
    write_eval(run, "localization", metrics, shards, assets=assets)


def add_inpainting(run: Path, shards: Path, frames: np.ndarray, sounds: list[np.ndarray], clips: int = 6) -> None:
    rng = np.random.default_rng(4)
    fbanks = np.stack([log_mel(centre(torch.from_numpy(s))[None], 16000, 64)[0].numpy() for s in sounds[:clips]])
    fbanks = fbanks[:, : fbanks.shape[1] // 16 * 16]
    removed = rng.random((clips, fbanks.shape[1] // 16, 4)).repeat(16, 1).repeat(16, 2) < 0.75
    blurred = (fbanks + np.roll(fbanks, 3, 1) + np.roll(fbanks, -3, 1)) / 3
    hidden = rng.random((clips, 8, 8)).repeat(16, 1).repeat(16, 2) < 0.75
    soft = np.stack([np.asarray(Image.fromarray(f).resize((16, 16)).resize((128, 128))) for f in frames[:clips]])
    uids = np.array(uids_of(shards)[:clips])
    assets = {
        "audio.uids": uids, "audio.original": fbanks.astype(np.float16),
        "audio.masked": np.where(removed, np.nan, fbanks).astype(np.float16),
        "audio.filled": np.where(removed, blurred, fbanks).astype(np.float16), "video.uids": uids,
        "video.original": frames[:clips],
        "video.masked": np.where(hidden[..., None], 128, frames[:clips]).astype(np.uint8),
        "video.filled": np.where(hidden[..., None], soft, frames[:clips]).astype(np.uint8), "video.removed": hidden,
    }  # fmt: skip
    metrics = {"audio_gain": metric(0.035, 0.017, 0.055, 0.0), "video_psnr": metric(21.4, 20.9, 21.8, None)}
    write_eval(run, "inpainting", metrics, shards, assets=assets)


def add_diagnose(run: Path, shards: Path, layers: int = 6, heads: int = 6) -> None:
    rng = np.random.default_rng(5)
    towers = {}
    for tower, depth in (("audio", layers - 1), ("video", layers - 1), ("joint", 1)):
        rows: list[dict[str, Any]] = []
        for layer in range(1, depth + 1):
            spread = rng.normal(0, 0.9, heads) * (1 - layer / layers * 0.7)
            distance = (4 + 2.5 * math.tanh(layer / 4) + spread).tolist()
            nmi = np.clip(0.5 - 0.03 * layer + spread / 12, 0, 1).tolist()
            rows.append(
                {
                    "layer": layer, "ahd_heads": distance, "ahd_mean": float(np.mean(distance)),
                    "ahd_std": float(np.std(distance)), "nmi_heads": nmi, "nmi_mean": float(np.mean(nmi)),
                    "entropy_mean": 3 + layer / 12,
                }
            )  # fmt: skip
        towers[tower] = rows
    details = {"towers": towers, "uniform_ahd": {"audio": 6.9, "video": 7.2, "joint": 9.1}}
    write_eval(run, "diagnose", {"audio_ahd": metric(5.9, 5.7, 6.1, None)}, shards, details)


def add_classification(run: Path, shards: Path, labels: list[str] | None = None) -> None:
    labels = labels or [*tuple(demo_clips.COLOURS)[:-1], "white <script>alert(4)</script>"]
    rng = np.random.default_rng(6)
    counts = np.eye(len(labels), dtype=int) * 9 + (rng.random((len(labels),) * 2) < 0.15)
    per_class = [
        {"label": label, "positives": int(row.sum()), "ap": float(rng.uniform(0.3, 1)),
         "auc": float(rng.uniform(0.6, 1)),
         "recall": float(row[n] / row.sum())}
        for n, (label, row) in enumerate(zip(labels, counts, strict=True))
    ]  # fmt: skip
    per_class[0]["auc"] = None
    details = {"confusion": {"labels": labels, "counts": counts.tolist()}, "per_class": per_class}
    metrics = {"top1": metric(0.81, 0.7, 0.9, 0.125), "map": metric(0.77, 0.7, 0.84, 0.125)}
    write_eval(run, "classification", metrics, shards, details)


def clips_of(extraction: Path, uids: list[str]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Middle frames (N, H, W, 3) and sounds of clips of an extraction."""
    places = [clip_folder(extraction, uid) for uid in uids]
    frames = np.stack([np.asarray(Image.open(place / "01.jpg")) for place in places])
    return frames, [soundfile.read(place / "audio.flac", dtype="int16")[0] for place in places]


def make_full(root: Path, **options: Any) -> Path:
    """A run with all five evaluations; its shards lie beside it."""
    shards = make_shards(root, **options)
    run = make_run(root / "runs", shards)
    frames, sounds = clips_of(root / "out", uids_of(shards))
    add_retrieval(run, shards)
    add_localization(run, shards, frames)
    add_inpainting(run, shards, frames, sounds)
    add_classification(run, shards)
    add_diagnose(run, shards)
    return run
