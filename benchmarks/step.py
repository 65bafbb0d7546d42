"""Time of a KDC-MAE base training step beside the re-created reference, interleaved in one run.

On a CPU the measure is CPU seconds of all threads, each run in a process of its own (so peak memory is its own too);
on a GPU it is wall time between synchronisations. Full optimiser steps on a synthetic batch, no data loading.

    python benchmarks/step.py                     CPU, full size, batch 4: about 20 minutes and 10 GB
    python benchmarks/step.py --device cuda       GPU, full size, batch 64
    python benchmarks/step.py --quick             in under a minute: 1 + 1 encoder blocks, 1 decoder block
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Threads that spin while they wait burn the CPU seconds that are measured here.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

from harness import ROOT, Result, cpu_seconds, finish, hardware, interleaved, report, result, say, timed

VARIANTS = {
    "cpu": ("reference_fp32", "ours_fp32", "ours_bf16"),
    "cuda": ("reference_fp16", "ours_bf16"),
}
QUICK = ("model.depth=1", "objective.decoder.depth=1")
PACKAGES = ("torch", "numpy", "timm")
SHAPES = {"fbank": (1024, 128), "frame": (3, 224, 224)}


def main(arguments: list[str] | None = None) -> int:
    args = parse(arguments)
    import torch

    torch.set_num_threads(args.threads)
    if args.one:
        print(json.dumps(one(args)))
        return 0
    measured = on_gpu(args) if args.device == "cuda" else on_cpu_quickly(args) if args.quick else on_cpu(args)
    finish(summary(args, measured), args.out)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--batch", type=int, default=0, help="clips per step; default 4 on a CPU, 64 on a GPU, 2 quick")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="fewer blocks: another model, so other ratios")
    parser.add_argument("--out", type=Path, help="also write the JSON there")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    args.batch = args.batch or (64 if args.device == "cuda" else 2 if args.quick else 4)
    return args


def make(variant: str, args: argparse.Namespace) -> Any:
    """The step called `ours_PRECISION` or `reference_PRECISION`."""
    import torch
    from training_step import ours, recipe_of, reference

    who, precision = variant.split("_")
    recipe = recipe_of(*(QUICK if args.quick else ()))
    return (ours if who == "ours" else reference)(recipe, args.batch, torch.device(args.device), precision)


def one(args: argparse.Namespace) -> dict[str, float]:
    """A warm-up step and a timed one, in this process: CPU seconds, peak memory (GB), loss."""
    step = make(args.one, args)
    step()
    seconds = timed(step, cpu_seconds)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "memory": memory, "loss": step.losses[-1]}


def on_cpu(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """A fresh process per run: two models of this size do not fit into memory beside each other."""
    seen: dict[str, dict[str, list[float]]] = {name: {} for name in VARIANTS["cpu"]}
    for number in range(args.rounds):
        for name, columns in seen.items():
            command = [sys.executable, __file__, "--one", name, "--batch", str(args.batch)]
            output = subprocess.run(
                [*command, "--threads", str(args.threads)], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
            ).stdout
            run = json.loads(output.splitlines()[-1])
            say(f"round {number + 1} of {args.rounds}: {name} {run}")
            for key, value in run.items():
                columns.setdefault(key, []).append(value)
    return seen


def on_cpu_quickly(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """All variants in this process, one warm-up step each."""
    steps = {name: make(name, args) for name in VARIANTS["cpu"]}
    for step in steps.values():
        step()
    seconds = interleaved({name: _timer(step, cpu_seconds) for name, step in steps.items()}, args.rounds)
    return {name: {"seconds": seconds[name], "loss": [steps[name].losses[-1]]} for name in steps}


def on_gpu(args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Both variants on one card: wall seconds per step over blocks of 5 steps, peak memory of a step of its own."""
    from gpu_measure import peak_memory_gb, seconds_per_step

    steps = {name: make(name, args) for name in VARIANTS["cuda"]}
    memory = {name: peak_memory_gb(step, step.weights) for name, step in steps.items()}
    for step in steps.values():
        seconds_per_step(step, 3)
    runs: dict[str, Callable[[], float]] = {name: lambda s=s: seconds_per_step(s, 5) for name, s in steps.items()}
    seconds = interleaved(runs, args.rounds)
    return {
        name: {"seconds": seconds[name], "memory": [memory[name]], "loss": [steps[name].losses[-1]]} for name in steps
    }


def _timer(step: Callable[[], float], clock: Callable[[], float]) -> Callable[[], float]:
    return lambda: timed(step, clock)


def matmul_tflops(device: str, size: int, rounds: int) -> list[float]:
    """bf16 matrix rate on random data, per second of wall time (GPU) or of CPU time (CPU)."""
    import torch

    if device == "cuda":
        from gpu_measure import matmul_tflops as on_card

        return [on_card(size) for _ in range(rounds)]
    a, b = (torch.randn(size, size, dtype=torch.bfloat16) for _ in range(2))
    a @ b
    return [2 * size**3 / timed(lambda: a @ b, cpu_seconds) / 1e12 for _ in range(rounds)]


def summary(args: argparse.Namespace, measured: dict[str, dict[str, list[float]]]) -> dict[str, Any]:
    """The report: seconds, clips per second, TFLOP/s and memory of each variant, and the ratios."""
    from training_step import pretraining_objective, recipe_of

    from kdctool.train.flops import per_clip

    recipe = recipe_of(*(QUICK if args.quick else ()))
    flops = per_clip(pretraining_objective(recipe), SHAPES)
    on_cpu = args.device == "cpu"
    per = "CPU second" if on_cpu else "second"
    rate = result("bf16_matmul", matmul_tflops(args.device, 2048 if on_cpu else 8192, args.rounds), f"TFLOP per {per}")
    results: list[Result] = [rate]
    for name, columns in measured.items():
        results.append(result(f"{name}_step", columns["seconds"], f"{per}s"))
        rates = [args.batch * flops / seconds / 1e12 for seconds in columns["seconds"]]
        results.append(result(f"{name}_tflops", rates, f"TFLOP per {per}"))
        results.append(result(f"{name}_clips", [args.batch / s for s in columns["seconds"]], f"clips per {per}"))
        if "memory" in columns:
            results.append(result(f"{name}_peak_memory", columns["memory"], "GB"))
        results.append(result(f"{name}_loss", columns["loss"], "loss of the last step"))
    found = {item.name: item.value for item in results}
    base = VARIANTS[args.device][0]
    ratios = {}
    for name in VARIANTS[args.device][1:]:
        precision = name.split("_")[1]
        ratios[f"step_speedup_over_reference_{precision}"] = found[f"{base}_step"] / found[f"{name}_step"]
        if f"{name}_peak_memory" in found:
            saving = found[f"{base}_peak_memory"] / found[f"{name}_peak_memory"]
            ratios[f"step_memory_saving_over_reference_{precision}"] = saving
    ratios["step_share_of_matmul_rate_bf16"] = found["ours_bf16_tflops"] / rate.value
    return report(
        "step_quick" if args.quick else "step",
        hardware(args.device),
        PACKAGES,
        results,
        ratios,
        settings={
            "model": "1 + 1 encoder blocks and 1 decoder block of KDC-MAE base" if args.quick else "KDC-MAE base",
            "batch": args.batch,
            "threads": args.threads,
            "rounds": args.rounds,
            "gflop_per_clip": round(flops / 1e9, 2),
            "reference": base,
        },
    )


if __name__ == "__main__":
    sys.exit(main())
