"""The whole way on clips made here: a few minutes from nothing to a trained, measured, exported model."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kdctool import recipe as recipes
from kdctool.errors import UsageFault, quoted
from kdctool.media.settings import Settings
from kdctool.progress import bar, say
from kdctool.recipe import Recipe
from kdctool.stages import demo_clips, evaluate, export, extract, finetune, pretrain, report, shard
from kdctool.stages.sections import Section
from kdctool.tasks import Metric, Result

CLIPS, HELD_OUT, SECONDS = 160, 40, 2.0
STEPS = ("clips", "extract", "shard", "pretrain", "retrieval", "finetune", "classification", "export", "report")
MARK = ".kdctool-demo"


@dataclass(frozen=True)
class Demo:
    """What the demo shows at its end."""

    tables: list[Section]
    places: list[tuple[str, str]]
    next_step: str
    payload: dict[str, Any]


def run(out: Path, *, seed: int = 0, overrides: list[str] | None = None, overwrite: bool = False) -> Demo:
    """Make clips in `out`, run every command on them, and compare with chance and with the untrained model."""
    recipe = _recipe(out, seed, overrides)
    _clear(out, overwrite)
    seconds: dict[str, float] = {}
    with bar("demo", len(STEPS), "steps") as progress:

        def step(name: str, work: Any) -> Any:
            say(f"--- {name}")
            start = time.monotonic()
            result = work()
            seconds[name] = round(time.monotonic() - start, 1)
            progress.advance(1, name)
            return result

        labels = step("clips", lambda: demo_clips.make_clips(out / "videos", seed, CLIPS, HELD_OUT, SECONDS))
        step("extract", lambda: extract.run(out / "videos", out / "extracted", Settings(size=recipe.model.image_size)))
        step("shard", lambda: shard.run(out / "extracted", out / "shards", labels=labels, clips_per_shard=40))
        untrained = _untrained(recipe, out / "shards")
        step("pretrain", lambda: pretrain.run(recipe, out=out / "runs" / "pretrain", device_name="cpu"))
        trained = step("retrieval", lambda: _score(out / "runs" / "pretrain", "retrieval"))
        step(
            "finetune",
            lambda: finetune.run(out / "runs" / "pretrain", out=out / "runs" / "finetune", device_name="cpu"),
        )
        classified = step("classification", lambda: _score(out / "runs" / "finetune", "classification"))
        step("export", lambda: export.run(out / "runs" / "finetune", out=out / "export"))
        step("report", lambda: [report.run(out / "runs" / name) for name in ("pretrain", "finetune")])
    return _report(out, trained, untrained, classified, seconds)


def _recipe(out: Path, seed: int, overrides: list[str] | None) -> Recipe:
    change = [f"seed={seed}", f"data.shards={out / 'shards'}", *(overrides or [])]
    return recipes.load(recipes.shipped("demo.toml"), change)


def _clear(out: Path, overwrite: bool) -> None:
    """An earlier demo goes; a folder that holds anything else stays untouched."""
    if not out.exists():
        out.mkdir(parents=True)
    elif any(out.iterdir()) and not (out / MARK).exists():
        raise UsageFault(f"{out} is not empty and not a demo", "choose another --out")
    elif overwrite:
        shutil.rmtree(out)
        out.mkdir()
    (out / MARK).touch()


def _untrained(recipe: Recipe, shards: Path) -> Result:
    encoder = pretrain.build_objective(recipe).encoder
    assert isinstance(encoder, torch.nn.Module)
    return evaluate.score(encoder, "retrieval", recipe, shards)


def _score(run_folder: Path, task: str) -> Result:
    return evaluate.run(run_folder, task=task, device_name="cpu").result


def _report(out: Path, trained: Result, untrained: Result, classified: Result, seconds: dict[str, float]) -> Demo:
    rows = []
    for name, title in {
        "a2v_r1": "sound finds its video, R@1",
        "a2v_r5": "sound finds its video, R@5",
        "v2a_r1": "video finds its sound, R@1",
        "v2a_r5": "video finds its sound, R@5",
    }.items():
        metric = trained.metrics[name]
        rows.append([title, *_cells(metric), f"{untrained.metrics[name].value:.1%}"])
    rows.append(["accuracy", *_cells(classified.metrics["top1"]), "-"])
    title = f"{trained.n_scored} held-out clips: trained, beside chance and the same model untrained"
    columns = ["", "value", "95 % interval", "chance", "untrained"]
    places = [
        (name, str(out / folder))
        for name, folder in {
            "videos": "videos",
            "frames and audio": "extracted",
            "shards": "shards",
            "runs": "runs",
            "page of the pre-training": f"runs/pretrain/{report.NAME}",
            "page of the classifier": f"runs/finetune/{report.NAME}",
            "exported model": "export",
        }.items()
    ]
    total = sum(seconds.values())
    places.append(("seconds", f"{total:.0f} = " + " + ".join(f"{name} {value:.0f}" for name, value in seconds.items())))
    payload = {
        "trained": _values(trained),
        "untrained": _values(untrained),
        "classification": _values(classified),
        "n_scored": trained.n_scored,
        "seconds": seconds,
        "out": str(out),
        "reports": [str(out / "runs" / name / report.NAME) for name in ("pretrain", "finetune")],
    }
    page = out / "runs" / "finetune" / report.NAME
    next_step = f"open {quoted(page)} in a browser; with your own videos: kdctool extract YOUR_VIDEOS/ out/"
    return Demo([Section(title, columns, rows)], places, next_step, payload)


def _cells(metric: Metric) -> list[str]:
    return [f"{metric.value:.1%}", f"{metric.low:.1%} - {metric.high:.1%}", f"{metric.chance:.1%}"]


def _values(result: Result) -> dict[str, dict[str, float]]:
    return {
        name: {"value": m.value, "low": m.low, "high": m.high, "chance": m.chance} for name, m in result.metrics.items()
    }
