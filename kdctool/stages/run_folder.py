"""A run's folder: where it lies, what guards a resume, and which run is the newest."""

import platform
from pathlib import Path
from typing import Any

from kdctool import __version__
from kdctool.errors import UsageFault, VerificationFault
from kdctool.files import digest, read_json, write_bytes, write_json
from kdctool.progress import say
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
        before = _before(path)
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
        return before
    write_bytes(run / RECIPE_FILE, to_toml(recipe).encode())
    about.update(about_run or {})
    about["platform"] = {"python": platform.python_version(), "machine": platform.machine()}
    write_json(path, about)
    return about


def _before(path: Path) -> dict[str, Any]:
    """The run.json of a run that is gone on with; VerificationFault when it is damaged."""
    try:
        before = dict(read_json(path))
        _ = before["keys"], before["kind"], before["data_digest"]
    except (ValueError, KeyError, TypeError) as error:
        raise VerificationFault(f"{path} is damaged: {error}", "--overwrite starts the run over") from error
    return before


def read_about(run: Path) -> dict[str, Any]:
    """run.json of a run that is opened; VerificationFault names the file when it is damaged."""
    path = run / RUN_FILE
    try:
        found = dict(read_json(path))
        _ = found["kind"], found["data_digest"], found["recipe_digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VerificationFault(
            f"{path} is damaged: {type(error).__name__}: {' '.join(str(error).split())[:120]}",
            "put back a copy of the file; the run itself starts over with --overwrite",
        ) from error
    return found


def newest(root: Path = RUNS, kinds: tuple[str, ...] = ("pretrain", "finetune")) -> Path:
    """The run that finished last; UsageFault when there is none."""
    runs = finished(root, kinds)
    if not runs:
        raise UsageFault(f"no finished run in {root}/", "name one, or make one: kdctool pretrain recipes/small.toml")
    return runs[0]


def finished(root: Path = RUNS, kinds: tuple[str, ...] = ("pretrain", "finetune")) -> list[Path]:
    """The runs that are done, the one that finished last first."""
    found = [
        (status.stat().st_mtime_ns, status.parent)
        for status in root.glob(f"*/{STATUS}")
        if _is_finished(status.parent, kinds)
    ]
    return [run for _, run in sorted(found, reverse=True)]


def _is_finished(run: Path, kinds: tuple[str, ...]) -> bool:
    """Whether a run is done and of one of `kinds`; one that cannot be read is told and is not."""
    try:
        return read_json(run / STATUS)["state"] == "done" and read_json(run / RUN_FILE)["kind"] in kinds
    except (OSError, ValueError, KeyError, TypeError) as error:
        say(f"{run} is not looked at: {type(error).__name__} in its {STATUS} or {RUN_FILE}")
        return False
