"""What the mask of Hybrid Distill saves: a training step with K = 30 % (and 10 %) beside one that masks nothing.

python benchmarks/distill.py [--quick] [--batch N] [--rounds N] [--out FILE]

A ViT-B student, a ViT-B teacher for features and another for relations, all random: weights change no cost. CPU only.
Variants take turns; wall and CPU seconds of the same steps, and multiply-adds counted by torch beside the formula's.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import Result, cpu_seconds, finish, hardware, report, result, say

VARIANTS = {"none": 0.0, "k10": 0.1, "k30": 0.3}
"""Share of the tokens that falls at each of the three layers."""
FULL = ("vit_base_patch16_224", 224)
QUICK = ("vit_tiny_patch16_224", 224)
PACKAGES = ("torch", "timm")


@dataclass(frozen=True)
class Variant:
    """A step that can be run again and again, and what it costs on paper."""

    step: Callable[[], Any]
    tokens: tuple[int, int]
    """Shown to the student, and all."""
    counted: float
    """Billions of multiply-adds per picture, by torch's counter."""
    by_formula: float


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=2, help="pictures per step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="ViT-Ti: another model, so other ratios")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    args = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(args.threads)
    variants = {name: make(drop, args) for name, drop in VARIANTS.items()}
    for variant in variants.values():
        variant.step()
    finish(summary(args, variants, measure(variants, args.rounds)), args.out)
    return 0


def make(drop: float, args: argparse.Namespace) -> Variant:
    """A step of the paper's losses; `drop` = 0 is without a mask."""
    import torch

    from kdctool.models.student import make_encoder
    from kdctool.models.teachers import from_timm
    from kdctool.objectives import build
    from kdctool.objectives.distill_cost import bill
    from kdctool.recipe import validate
    from kdctool.train import optim
    from kdctool.train.flops import per_clip
    from kdctool.train.step import Trainer, train_step

    arch, side = QUICK if args.quick else FULL
    mask = {"policy": "redundancy", "teacher": "m", "drop": drop} if drop else {"policy": "none"}
    losses = [{"kind": "feature", "teacher": "c"}, {"kind": "relation", "teacher": "m"}]
    section = {
        "teachers": {name: {"id": arch, "path": "random weights"} for name in "cm"},
        "student": {"arch": arch},
        "mask": mask,
        "losses": losses,
    }
    recipe = validate(
        {
            "name": "cost",
            "model": {"image_size": side},
            "objective": {"name": "hybrid_distill", "distill": section},
            "optim": {"name": "adamw", "lr": 1e-4},
        }
    )
    torch.manual_seed(0)
    teachers = {name: from_timm(name, arch, None, "random weights", "", recipe.data, image_size=side) for name in "cm"}
    objective = build(recipe, make_encoder(recipe), teachers=teachers).train()
    trainer = Trainer(
        objective=objective,
        module=objective,
        optimizer=optim.build(objective, recipe.optim),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        device=torch.device("cpu"),
        autocast=None,
        global_batch=args.batch,
        grad_clip=0.0,
        seed=0,
    )
    rows = torch.arange(args.batch)
    frame = torch.randn(args.batch, 3, side, side, generator=torch.Generator().manual_seed(1))
    batch = {"clip": rows, "row": rows, "frame": frame}
    cost = bill(objective)
    return Variant(
        step=lambda: float(train_step(trainer, [batch], 0)["loss"]),
        tokens=cost.tokens["video"],
        counted=per_clip(objective, {"frame": (3, side, side)}) / 2e9,
        by_formula=cost.step,
    )


def measure(variants: dict[str, Variant], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Wall and CPU seconds of one step each, in turn."""
    seen: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in variants}
    for number in range(rounds):
        for name, variant in variants.items():
            wall, cpu = time.perf_counter(), cpu_seconds()
            variant.step()
            seen[name]["wall"].append(time.perf_counter() - wall)
            seen[name]["cpu"].append(cpu_seconds() - cpu)
        last = ", ".join(f"{name} {clocks['cpu'][-1]:.3g} CPU s" for name, clocks in seen.items())
        say(f"round {number + 1} of {rounds}: {last}")
    return seen


def summary(
    args: argparse.Namespace, variants: dict[str, Variant], measured: dict[str, dict[str, list[float]]]
) -> dict[str, Any]:
    """Seconds and multiply-adds of each variant, and how much less the masked ones take."""
    results: list[Result] = []
    for name, variant in variants.items():
        results += [result(f"{name}_step_{clock}", values, f"{clock} s") for clock, values in measured[name].items()]
        results.append(result(f"{name}_counted", [variant.counted], "G multiply-adds per picture"))
        results.append(result(f"{name}_by_formula", [variant.by_formula], "G multiply-adds per picture"))
    found = {item.name: item.value for item in results}
    ratios = {
        f"{what}_saving_{name}": found[f"none_{what}"] / found[f"{name}_{what}"]
        for name in variants
        if name != "none"
        for what in ("step_wall", "step_cpu", "counted", "by_formula")
    }
    return report(
        "distill_quick" if args.quick else "distill",
        hardware(),
        PACKAGES,
        results,
        ratios,
        settings={
            "model": (QUICK if args.quick else FULL)[0],
            "batch": args.batch,
            "threads": args.threads,
            "rounds": args.rounds,
            "tokens": {name: list(variant.tokens) for name, variant in variants.items()},
        },
    )


if __name__ == "__main__":
    sys.exit(main())
