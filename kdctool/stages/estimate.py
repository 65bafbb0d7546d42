"""What a training costs and on what: arithmetic from the recipe alone, said before a run starts and not after a night.

Torch-free, but for looking at a GPU.
"""

import math
import os
from dataclasses import dataclass

from kdctool.errors import UsageFault
from kdctool.progress import say
from kdctool.recipe import Recipe
from kdctool.stages import cost

CPU_GFLOPS_PER_CORE = 30.0
"""What a core sustains in fp32 on these models, roughly: 57-76 was measured at full size, small matrices reach less."""
GPU_TFLOPS = ((13.0, 20.0), (25.0, 50.0), (50.0, 100.0), (math.inf, 250.0))
"""(up to this many GB of memory, sustained bf16 TFLOP/s), a class of card and not a measurement."""
OVERHEAD = 1.3
"""Peak over saved activations: temporary tensors of the backward pass and the allocator."""


@dataclass(frozen=True)
class Estimate:
    """What pre-training with a recipe costs. Arithmetic on matrix products, good to a factor of two."""

    parameters: int
    gflop_per_clip: float
    """Forward and backward of one clip."""
    fixed_gb: float
    """Weights, gradients and both Adam moments in fp32."""
    clip_gb: float
    """Activations that one clip of a micro batch keeps for the backward pass."""

    def memory_gb(self, micro_batch: int) -> float:
        """Peak memory of a step, framework included."""
        return 0.8 + self.fixed_gb + micro_batch * self.clip_gb

    def hours(self, clips: float, hardware: "Hardware") -> float:
        """Time for `clips` forward and backward passes."""
        return self.gflop_per_clip * clips / hardware.gflops / 3600


@dataclass(frozen=True)
class Hardware:
    """The device that a recipe is sized for."""

    kind: str
    """cpu or cuda."""
    name: str
    memory_gb: float
    cores: int

    @property
    def gflops(self) -> float:
        if self.kind == "cpu":
            return self.cores * CPU_GFLOPS_PER_CORE
        return next(tflops for limit, tflops in GPU_TFLOPS if self.memory_gb <= limit) * 1000


def estimate(recipe: Recipe) -> Estimate:
    """Parameters, FLOPs and memory of pre-training, from the recipe alone."""
    count, whole = cost.parameters(recipe), cost.total(cost.parts(recipe))
    # Per token and unit of width a block keeps 16 numbers (18 halves with autocast: the residual stays fp32).
    bytes_kept = 64 if recipe.training.precision == "fp32" else 36
    return Estimate(
        parameters=count.total,
        gflop_per_clip=whole.train,
        fixed_gb=(16 * count.trained + 4 * (count.total - count.trained)) / 2**30,
        clip_gb=OVERHEAD * bytes_kept * whole.kept / 2**30,
    )


def find_hardware(device: str) -> Hardware:
    """The device `auto`, `cpu` or `cuda` means here. Asking for a GPU imports torch."""
    import psutil

    cores = len(os.sched_getaffinity(0))
    cpu = Hardware("cpu", f"CPU, {cores} cores", psutil.virtual_memory().total / 2**30, cores)
    if device == "cpu":
        return cpu
    if device != "auto" and not device.startswith("cuda"):
        raise UsageFault(f"--device {device} is not known", "auto, cpu or cuda")
    import torch

    if not torch.cuda.is_available() and device == "auto":
        return cpu
    if not torch.cuda.is_available():
        raise UsageFault("--device cuda, but torch sees no GPU", "kdctool doctor says why; or --device cpu")
    properties = torch.cuda.get_device_properties(0)
    return Hardware("cuda", properties.name, properties.total_memory / 2**30, cores)


def time_class(hours: float) -> str:
    """Hours in words that are as exact as the estimate."""
    for limit, words in ((1 / 6, "minutes"), (1, "under an hour"), (4, "a few hours"), (16, "most of a day")):
        if hours <= limit:
            return words
    return "days" if hours <= 24 * 8 else "weeks: use a GPU, a smaller model or fewer epochs"


HOPELESS_HOURS = 24.0


def warn_if_hopeless(recipe: Recipe, clips: int) -> None:
    """On a CPU, say the hours and the memory that `clips` steps of one clip take, and where to go when too many."""
    hardware, cost = find_hardware("cpu"), estimate(recipe)
    hours = cost.hours(clips, hardware)
    if hours > HOPELESS_HOURS:
        micro = recipe.training.micro_batch or recipe.training.global_batch
        say(
            f"estimate: about {hours:,.0f} hours and {cost.memory_gb(micro):.0f} GB on this {hardware.name}. "
            "This recipe wants a GPU; recipes/small.toml is for own data on one 8-12 GB GPU, "
            "and `kdctool recipe new --from SHARDS` sizes one for this machine"
        )
