"""Starting training runs from tests, and reading what they left behind."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from kdctool.errors import KdctoolError
from kdctool.train import loop

NUMBERS = (
    "loss", "reconstruction_audio", "reconstruction_video", "contrastive", "self_distillation", "classification",
    "grad_norm",
)  # fmt: skip


TAUGHT = ("feature_", "relation_")
"""How the terms of distillation begin."""


def numbers(row: dict[str, Any]) -> list[str]:
    """What of a row has to come out again."""
    return [name for name in NUMBERS if name in row] + sorted(name for name in row if name.startswith(TAUGHT))


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(run: Path) -> list[list[float]]:
    return [[row[name] for name in numbers(row)] for row in rows(run)]


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(max((run / "checkpoints").iterdir()) / "model.safetensors")


class PowerCutError(KdctoolError):
    """Stands for the process ending in the middle of a step."""


@contextmanager
def power_cut(at: int) -> Iterator[None]:
    """The training in this block ends when it comes to step `at`."""
    step_as_it_is = loop.train_step

    def cut(trainer: Any, micros: Any, step: int) -> dict[str, float]:
        if step == at:
            raise PowerCutError("power cut")
        return step_as_it_is(trainer, micros, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", cut)
        with pytest.raises(PowerCutError):
            yield


def command(recipe: Path, out: Path, *more: str) -> subprocess.Popen[bytes]:
    """Start `kdctool pretrain RECIPE --out OUT ...` on the CPU."""
    return start("pretrain", str(recipe), "--out", str(out), *more)


def start(*arguments: str) -> subprocess.Popen[bytes]:
    """Start a kdctool command on the CPU, one thread per process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "kdctool", *arguments, "--device", "cpu"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def finish(process: subprocess.Popen[bytes], timeout: float = 120) -> int:
    _, err = process.communicate(timeout=timeout)
    if process.returncode not in (0, 75, 130, -9):
        print(err.decode(errors="replace"))
    return process.returncode


def rows_so_far(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def assert_same_curve(one: Path, two: Path) -> None:
    """Equal to float32 rounding: losses to 1e-5; the gradient norm, which adds up every rounding, to 1e-4."""
    assert len(rows(one)) == len(rows(two)) > 2
    for a, b in zip(rows(one), rows(two), strict=True):
        assert a["step"] == b["step"]
        assert numbers(a) == numbers(b)
        losses = [name for name in numbers(a) if name != "grad_norm"]
        assert [a[n] for n in losses] == pytest.approx([b[n] for n in losses], rel=1e-5, abs=1e-6)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4, abs=1e-6)
