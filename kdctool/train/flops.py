"""FLOPs of a clip, counted and not estimated, and the share of a device's peak that a rate of clips means.

A multiply-add counts 2; matrix products, convolutions and attention are counted, element-wise work is not.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

PEAK_BF16_TFLOPS = {
    "B200": 2250.0,
    "H200": 989.0,
    "GH200": 989.0,
    "H100": 989.0,
    "H100 NVL": 835.0,
    "H100 PCIe": 756.0,
    "A100": 312.0,
    "A30": 165.0,
    "A40": 149.7,
    "A10G": 70.0,
    "L40S": 362.0,
    "L4": 121.0,
    "RTX 6000 Ada": 364.2,
    "RTX A6000": 154.8,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}
"""Dense bf16 tensor rate with fp32 accumulation, from the vendor's data sheets, by a part of the device's name.

The longest part that occurs counts. No card sustains it: benchmarks/step.py measures the card at hand.
"""


def peak_tflops(device_name: str) -> float | None:
    """Peak dense bf16 TFLOP/s of a device by its name; None where the table does not know it."""
    words = f" {device_name.lower().replace('-', ' ')} "
    known = [key for key in PEAK_BF16_TFLOPS if f" {key.lower()} " in words]
    return PEAK_BF16_TFLOPS[max(known, key=len)] if known else None


def mfu(clips_per_s: float, flops_per_clip: float, device_name: str) -> float | None:
    """Share of one device's peak that `clips_per_s` on it makes use of; None for a device the table lacks."""
    peak = peak_tflops(device_name)
    return None if peak is None else clips_per_s * flops_per_clip / (peak * 1e12)


def per_clip(objective: Any, shapes: Mapping[str, tuple[int, ...]], clips: int = 2) -> float:
    """FLOPs of one clip's share of a forward and backward pass of `objective`, which is not touched.

    `shapes` gives the shape of a clip's entry of the batch by its name, for example fbank: (1024, 128). Counted on
    fake tensors: no memory, no arithmetic. The similarity matrix of a contrastive loss grows with the batch and is
    counted for `clips` clips; it stays below 0.1 % for any batch that fits on a device.
    """
    # Fake tensors claim to lie on a CPU: the meta device knows no autocast, which losses switch off.
    with FakeTensorMode():
        memo: dict[int, Any] = {id(p): _fake(p) for p in objective.parameters()}
        memo |= {id(buffer): _fake(buffer) for buffer in objective.buffers()}
        shadow = copy.deepcopy(objective, memo).train()
        batch: dict[str, Tensor] = {name: torch.empty(clips, *shape) for name, shape in shapes.items()}
        batch |= {"clip": torch.arange(clips), "row": torch.arange(clips)}
        # The fused attention of a CPU is unknown to the counter; written out, it is plain matrix products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            shadow(batch, torch.Generator(), clips).total.backward()
    return counter.get_total_flops() / clips


def _fake(tensor: Tensor) -> Tensor:
    shape = torch.empty(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(shape, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else shape
