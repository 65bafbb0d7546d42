"""A golden case on disk, and the record of what was compared with it."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

OUTPUT = 1e-5
"""Absolute tolerance of model outputs and losses; the noise floor of float32 is about 3e-6."""
GRAD_NORM = 1e-4
"""Relative tolerance of gradient norms, and of gradients relative to their largest element."""
METRIC = 1e-9
"""Absolute tolerance of metrics in double precision."""
IMAGE = 2e-6
"""Absolute tolerance of transformed images; Pillow's resize is exact."""


@dataclass(frozen=True)
class Row:
    """One comparison."""

    tensor: str
    max_abs_diff: float
    tolerance: float

    @property
    def holds(self) -> bool:
        return self.max_abs_diff <= self.tolerance  # False for NaN

    @property
    def strain(self) -> float:
        """Difference over tolerance; the row with the largest is the worst."""
        if self.tolerance > 0:
            return math.inf if math.isnan(self.max_abs_diff) else self.max_abs_diff / self.tolerance
        return 0.0 if self.max_abs_diff == 0 else math.inf


@dataclass
class Case:
    """Description and tensors of one case; remembers which were looked at."""

    folder: Path
    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)
    seen: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.tensors = load_file(self.folder / self.about["tensors_file"])
        self.config: dict[str, Any] = self.about["config"]
        self.scalars: dict[str, float] = {name: s["value"] for name, s in self.about.get("scalars", {}).items()}

    def other(self, name: str) -> "Case":
        """Another case of the same folder."""
        return read_case(self.folder / f"{name}.json")

    def weights(self) -> dict[str, Tensor]:
        """The weights that the case was made with."""
        return load_file(self.folder / self.config["weights_file"])

    def input(self, name: str) -> Tensor:
        """A stored tensor that goes into the computation."""
        self.seen.add(name)
        return self.tensors[name]

    def row(self, name: str, difference: float, tolerance: float) -> None:
        """Record a comparison."""
        self.rows.append(Row(name, difference, tolerance))
        self.seen.add(name)

    def close(self, name: str, got: Any, want: Any, tolerance: float) -> None:
        """Record the largest absolute difference between two tensors, arrays or numbers; another shape never holds."""
        ours, theirs = as_float64(got), as_float64(want)
        if ours.shape != theirs.shape:
            self.row(f"{name} (shape {tuple(ours.shape)} instead of {tuple(theirs.shape)})", math.inf, tolerance)
            self.seen.add(name)
            return
        self.row(name, float((ours - theirs).abs().max()) if ours.numel() else 0.0, tolerance)

    def all_close(self, ours: Mapping[str, Any], tolerance: float, prefix: str = "") -> None:
        """Compare everything in `ours` that the case stores, tensor or scalar, under `prefix` + its name."""
        for name, got in ours.items():
            key = prefix + name
            if key in self.tensors:
                want = self.tensors[key]
                self.close(key, got, want, tolerance if want.is_floating_point() else 0.0)
            elif key in self.scalars:
                self.close(key, got, self.scalars[key], tolerance)

    def gradients(self, named: Mapping[str, Tensor | None]) -> None:
        """Compare the stored gradients and the norms of all of them; null means that there must be none."""
        for name, want in self.about.get("grad_l2_norm", {}).items():
            grad = named.get(name)
            if want is None or grad is None:
                self.row(f"grad_l2_norm.{name}", 0.0 if (want is None) == (grad is None) else math.inf, 0.0)
            else:
                self.close(f"grad_l2_norm.{name}", grad.double().norm(), want, GRAD_NORM * abs(want))
        for key in (key for key in self.tensors if key.startswith("grad.")):
            want = self.tensors[key]
            got = named.get(key.removeprefix("grad."))
            tolerance = max(OUTPUT, GRAD_NORM * float(want.abs().max()))
            self.close(key, torch.empty(0) if got is None else got, want, tolerance)

    def leftover(self) -> list[str]:
        """Stored numbers that nothing was compared with."""
        return sorted((self.tensors.keys() | self.scalars.keys()) - self.seen)

    def verdict(self) -> dict[str, Any]:
        """What a program reads."""
        worst = max(self.rows, key=lambda row: row.strain, default=Row("nothing was compared", math.inf, 0.0))
        holds = bool(self.rows) and all(row.holds for row in self.rows)
        return {
            "status": "holds" if holds else "fails",
            "compared": len(self.rows),
            "worst": {
                "tensor": worst.tensor,
                "max_abs_diff": finite(worst.max_abs_diff),
                "tolerance": worst.tolerance,
            },
        }


def read_case(path: Path) -> Case:
    """Open the case described by a JSON file."""
    return Case(path.parent, json.loads(path.read_text(encoding="utf-8")))


def as_float64(value: Any) -> Tensor:
    """A tensor, array or number as float64 tensor."""
    if isinstance(value, Tensor):
        return value.detach().double()
    return torch.from_numpy(np.asarray(value, dtype=np.float64))


def finite(value: float) -> float:
    """JSON has no infinity."""
    return value if math.isfinite(value) else sys.float_info.max
