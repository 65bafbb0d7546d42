"""Time, memory and matrix rate of a device. Written so that a CPU can stand in where a test needs it to."""

import time
from collections.abc import Callable
from typing import Any

import torch

CUDA = torch.cuda.is_available()


def synchronize() -> None:
    """Wait until the device has done what it was given."""
    if CUDA:
        torch.cuda.synchronize()


def seconds_per_step(step: Callable[[], Any], steps: int) -> float:
    """Wall seconds of one of `steps` consecutive steps, from idle device to idle device."""
    synchronize()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize()
    return (time.perf_counter() - start) / steps


def peak_memory_gb(step: Callable[[], Any], weights: int) -> float:
    """Most memory that two steps hold: weights (bytes), gradients, optimiser state and activations; 0 without a GPU.

    The first step makes the optimiser's state, the second has it beside the activations. What else lies on the
    device, other variants for example, is not counted.
    """
    if not CUDA:
        step()
        step()
        return 0.0
    synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    step()
    synchronize()
    return (torch.cuda.max_memory_allocated() - before + weights) / 2**30


def matmul_tflops(size: int, device: str = "cuda", dtype: torch.dtype = torch.bfloat16, products: int = 10) -> float:
    """Rate of a square matrix product on random data (zeros run faster than data does)."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(3):
        a @ b
    return 2 * size**3 / seconds_per_step(lambda: a @ b, products) / 1e12


def copy_tb_per_s(gigabytes: float, device: str = "cuda") -> float:
    """Device memory bandwidth of a copy, bytes read plus bytes written."""
    source = torch.randn(int(gigabytes * 2**30 / 4), device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * source.nbytes / seconds_per_step(lambda: target.copy_(source), 10) / 1e12
