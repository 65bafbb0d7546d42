"""What every benchmark shares: medians of interleaved runs, the machine it ran on, and the one JSON line at the end.

Scripts here measure the checkout they lie in, whatever else is installed.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


@dataclass(frozen=True)
class Result:
    """One measured number: the median of its runs, and how far they lie apart."""

    name: str
    value: float
    unit: str
    spread: float
    """(largest - smallest) / median of the runs; 0 for a single run."""
    runs: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": _rounded(self.value),
            "unit": self.unit,
            "spread": _rounded(self.spread),
            "runs": self.runs,
        }


def result(name: str, values: Iterable[float], unit: str) -> Result:
    """Median and spread of the runs of one variant."""
    runs = list(values)
    middle = statistics.median(runs)
    return Result(name, middle, unit, (max(runs) - min(runs)) / abs(middle) if middle else 0.0, len(runs))


def interleaved(variants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Run every variant once per round, in turn, so that a change of the machine's load meets all of them alike."""
    seen: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            seen[name].append(run())
    return seen


def cpu_seconds() -> float:
    """CPU time of this process, all threads, user and system: what a busy machine does not distort."""
    times = os.times()
    return times.user + times.system


def timed(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that one call takes by `clock`."""
    start = clock()
    work()
    return clock() - start


def hardware(device: str = "cpu") -> dict[str, Any]:
    """Processor, cores and memory; and the GPU when `device` is one."""
    about: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load": round(os.getloadavg()[0], 2),
    }
    if device.startswith("cuda"):
        import torch

        properties = torch.cuda.get_device_properties(0)
        about["gpu"] = properties.name
        about["gpu_memory_gb"] = round(properties.total_memory / 2**30, 1)
    return about


def versions(*packages: str) -> dict[str, str]:
    """Python and the named distributions; "absent" where one is not installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def commit() -> str:
    """The checkout's commit, "+" after it when files differ from it, "unknown" outside git."""
    try:
        head = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run(
            ["git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+" if changed else "")


def report(
    benchmark: str,
    about: Mapping[str, Any],
    packages: Iterable[str],
    results: Iterable[Result],
    ratios: Mapping[str, float],
    **more: Any,
) -> dict[str, Any]:
    """The object of the last line: what was measured, where, with which versions."""
    return {
        "benchmark": benchmark,
        "hardware": dict(about),
        "versions": versions(*packages),
        "commit": commit(),
        "results": [item.as_dict() for item in results],
        "ratios": {name: _rounded(value) for name, value in ratios.items()},
        **more,
    }


def finish(value: Mapping[str, Any], out: Path | None = None) -> None:
    """Print the report as the last line of stdout, and write it to `out`, indented, when that is given."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(value, indent=1, sort_keys=False) + "\n", encoding="utf-8")
    print(json.dumps(value), flush=True)


def say(line: str) -> None:
    """Progress, on stderr: stdout belongs to the result."""
    print(line, file=sys.stderr, flush=True)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
