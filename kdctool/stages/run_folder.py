"""A run's folder: where it lies, what guards a resume, and which run is the newest."""

import platform
from pathlib import Path
from typing import Any

from kdctool import __version__
from kdctool.errors import UsageFault
from kdctool.files import digest, read_json, write_bytes, write_json
from kdctool.recipe import Recipe, changed_keys, result_keys, to_toml
from kdctool.train.log import STATUS

RUNS = Path("runs")
RUN_FILE, RECIPE_FILE = "run.json", "recipe.toml"
SECTIONS = {
    "pretrain": ("name", "seed", "plugins", "data", "model", "masking", "objective", "optim", "training"),
    "finetune": ("name", "seed", "plugins", "data", "model", "finetune"),
}
"""Sections that decide the result of each kind of run."""


def default_folder(recipe: Recipe, kind: str, extra: dict[str, Any]) -> Path:
    """runs/<recipe>-s<seed>-<digest6>, with the kind for anything but pre-training."""
    keys = {**result_keys(recipe, SECTIONS[kind]), **extra}
    suffix = "" if kind == "pretrain" else f"-{kind}"
    return RUNS / f"{recipe.name}{suffix}-s{recipe.seed}-{digest(keys)[:6]}"


def prepare(
    run: Path,
    recipe: Recipe,
    kind: str,
    data_digest: str,
    extra: dict[str, Any],
    about_run: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Create the folder of a run, or check that the one that is there is the same run; returns run.json.

    `extra` holds what decides the result beside the recipe, e.g. the weights a finetuning starts from;
    `about_run` what others need to open the run, e.g. its labels. UsageFault lists every key that differs.
    """
    about: dict[str, Any] = {
        "kind": kind,
        "keys": {**result_keys(recipe, SECTIONS[kind]), **extra},
        "data_digest": data_digest,
        "kdctool": __version__,
    }
    about["recipe_digest"] = digest(about["keys"])
    path = run / RUN_FILE
    if path.exists():
        before = read_json(path)
        differences = changed_keys(before["keys"], about["keys"])
        if before["kind"] != kind:
            differences.insert(0, f"kind: {before['kind']} -> {kind}")
        if before["data_digest"] != data_digest:
            differences.append(f"shards: {before['data_digest'][:12]} -> {data_digest[:12]} (their content changed)")
        if differences:
            raise UsageFault(
                f"{run} was started with other settings:\n  " + "\n  ".join(differences),
                "undo the change, choose another --out, or start over with --overwrite",
            )
        return dict(before)
    write_bytes(run / RECIPE_FILE, to_toml(recipe).encode())
    about.update(about_run or {})
    about["platform"] = {"python": platform.python_version(), "machine": platform.machine()}
    write_json(path, about)
    return about


def newest(root: Path = RUNS, kinds: tuple[str, ...] = ("pretrain", "finetune")) -> Path:
    """The run that finished last; UsageFault when there is none."""
    finished = [
        (status.stat().st_mtime_ns, status.parent)
        for status in root.glob(f"*/{STATUS}")
        if read_json(status)["state"] == "done" and read_json(status.parent / RUN_FILE)["kind"] in kinds
    ]
    if not finished:
        raise UsageFault(f"no finished run in {root}/", "name one, or make one: kdctool pretrain recipes/small.toml")
    return max(finished)[1]
