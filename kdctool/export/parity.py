"""Does what was written compute what the model computes? ONNX graphs against eager, files against tensors."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from kdctool.errors import EnvironmentFault, VerificationFault
from kdctool.export import Check, Package, Probes
from kdctool.recipe import Model
from kdctool.seeds import fold

LIMIT = 1e-4
"""Largest absolute difference in float32 that an export may show."""
BATCH_SIZES = (1, 2, 5)
CLIPS = 8
"""Clips, or inputs of noise, that are compared: each batch size once."""


def noise(model: Model) -> Probes:
    """Seeded standard normal inputs, which is what normalised filter banks and frames are on average."""
    rng = torch.Generator().manual_seed(fold(0, "export parity"))
    fbank = torch.randn(CLIPS, model.audio_frames, model.mel_bins, generator=rng)
    frame = torch.randn(CLIPS, 3, model.image_size, model.image_size, generator=rng)
    return Probes(fbank, frame, f"{CLIPS} inputs of seeded noise")


def batches(total: int) -> Iterator[slice]:
    """Slices of 1, 2, 5, 5, ... that cover `total` probes."""
    first, turn = 0, 0
    while first < total:
        size = BATCH_SIZES[min(turn, len(BATCH_SIZES) - 1)]
        yield slice(first, min(first + size, total))
        first, turn = first + size, turn + 1


def graph_difference(path: Path, module: nn.Module, inputs: dict[str, Tensor]) -> float:
    """Largest absolute difference between an ONNX graph under onnxruntime (CPU) and `module`, over all batch sizes.

    inputs: name -> (M, ...). NaN anywhere counts as infinite.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise EnvironmentFault(f"ONNX graphs cannot be checked: {error}", "pip install onnxruntime") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    worst = 0.0
    for rows in batches(len(next(iter(inputs.values())))):
        with torch.inference_mode():
            eager = module(*(inputs[name][rows] for name in names))
        graph = torch.from_numpy(session.run(None, {name: inputs[name][rows].numpy() for name in names})[0])
        if graph.shape != eager.shape:
            raise VerificationFault(
                f"{path.name} gives {tuple(graph.shape)} where the model gives {tuple(eager.shape)}"
            )
        difference = float((graph - eager).abs().max())
        worst = max(worst, math.inf if math.isnan(difference) else difference)
    return worst


def tensor_difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """0 when both hold the same names, shapes and bits; otherwise the largest difference, infinite without one."""
    if ours.keys() != theirs.keys():
        return math.inf
    worst = 0.0
    for name, tensor in ours.items():
        other = theirs[name]
        if tensor.shape != other.shape or tensor.dtype != other.dtype:
            return math.inf
        if not torch.equal(tensor, other):
            difference = float((tensor.double() - other.double()).abs().max())
            worst = max(worst, difference if difference > 0 else math.inf)
    return worst


def gate(checks: list[Check]) -> None:
    """VerificationFault (exit 5) that names every check above its limit."""
    failed = [check for check in checks if not check.difference <= check.limit]
    if failed:
        told = "; ".join(f"{check.name} differs by {check.difference:.3g} (limit {check.limit:g})" for check in failed)
        raise VerificationFault(
            f"the export does not compute what the model computes: {told}",
            "nothing was written; please report it with the versions that kdctool doctor prints",
        )


def refuse_broken_weights(package: Package) -> None:
    """VerificationFault when a weight is NaN or infinite: safetensors would carry it along silently."""
    model = package.classifier or package.encoder
    broken = [name for name, tensor in model.state_dict().items() if not torch.isfinite(tensor).all()]
    if broken:
        raise VerificationFault(
            f"{package.source}: {len(broken)} weight tensors are not finite, first {broken[0]}",
            "export an earlier checkpoint; metrics.jsonl shows where the loss broke",
        )
