"""How fast a run is and what it waits for; the first steps of a process pay for start-up and are left out."""

import time

import torch

from kdctool.dist import world
from kdctool.train.flops import mfu

WARMUP_STEPS = 5
STARVED = 0.3
"""Share of time spent waiting for data from which a run is told so."""


class Clock:
    """Clips per second and the share of time spent waiting for data."""

    def __init__(self, global_batch: int, flops_per_clip: float = 0.0) -> None:
        self.global_batch, self.flops_per_clip = global_batch, flops_per_clip
        self.steps = 0
        self.waiting = self.working = 0.0
        self._mark = time.monotonic()

    def before_data(self) -> None:
        self._mark = time.monotonic()

    def before_step(self) -> None:
        now = time.monotonic()
        if self.steps >= WARMUP_STEPS:
            self.waiting += now - self._mark
        self._mark = now

    def after_step(self) -> None:
        if self.steps >= WARMUP_STEPS:
            self.working += time.monotonic() - self._mark
        self.steps += 1

    @property
    def rate(self) -> float:
        """Clips per second over all ranks; 0 until the first counted step."""
        counted = self.steps - WARMUP_STEPS
        return counted * self.global_batch / (self.waiting + self.working) if counted > 0 else 0.0

    @property
    def wait_share(self) -> float:
        total = self.waiting + self.working
        return self.waiting / total if total > 0 else 0.0

    def row(self, device: torch.device) -> dict[str, float]:
        """The meters of a log row."""
        row = {
            "clips_per_s": round(self.rate, 2),
            "clips_per_s_per_rank": round(self.rate / world()[1], 2),
            "data_wait": round(self.wait_share, 4),
        }
        if device.type == "cuda":
            row["gpu_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
        if self.flops_per_clip:
            per_rank = self.rate / world()[1]
            row["tflops_per_rank"] = round(per_rank * self.flops_per_clip / 1e12, 3)
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
            if (share := mfu(per_rank, self.flops_per_clip, name)) is not None:
                row["mfu"] = round(share, 4)
        return row

    def advice(self) -> str:
        """A sentence for a run that waits for its data, or nothing."""
        if self.wait_share < STARVED:
            return ""
        return f"{self.wait_share:.0%} of the time was spent waiting for data: raise data.workers, or set data.hold"
