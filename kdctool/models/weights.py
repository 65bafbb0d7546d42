"""State dicts in and out under the names of the released CAV-MAE. Nothing is ever loaded by half."""

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdctool.errors import UsageFault, VerificationFault

State = dict[str, Tensor]

_SHOWN = 5
"""Keys that an error message names before it says how many more there are."""


def count(module: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters. Published counts of CAV-MAE call everything trainable but the position tables."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def load_state(path: Path | str) -> State:
    """Tensors of a .safetensors or a .pth / .pt file, on the CPU, a leading `module.` taken off the names.

    Pickles are read with `weights_only=True`: one that holds code is refused, not run. A trainer's checkpoint
    that wraps the weights under `model` or `state_dict` is unwrapped.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageFault(f"there are no weights at {path}", "give a .safetensors, .pth or .pt file")
    if path.suffix == ".safetensors":
        try:
            state: object = load_file(path)
        except (SafetensorError, OSError) as error:
            raise VerificationFault(f"{path} is not a sound safetensors file: {error}", "copy it again") from error
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UsageFault(
                f"{path} holds more than tensors, or is damaged, and is not loaded: {cause}",
                "save its state dict alone, best as .safetensors",
            ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UsageFault(f"{path} is not a state dict of tensors", "save the model's state dict alone")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def split_state(state: Mapping[str, Tensor]) -> tuple[State, State, State]:
    """Encoder, decoder and head of an official state dict; names of the head lose `mlp_head.`.

    What is neither decoder nor head counts as encoder, so a foreign key is caught when the encoder is loaded.
    """
    encoder: State = {}
    decoder: State = {}
    head: State = {}
    for name, value in state.items():
        if name.startswith("mlp_head."):
            head[name.removeprefix("mlp_head.")] = value
        elif name.startswith("decoder_") or name == "mask_token":
            decoder[name] = value
        else:
            encoder[name] = value
    return encoder, decoder, head


def merge_state(encoder: nn.Module, decoder: nn.Module | None = None, head: nn.Module | None = None) -> State:
    """One state dict under official names: `split_state` backwards. The tensors are the modules' own."""
    merged = dict(encoder.state_dict())
    if decoder is not None:
        merged.update(decoder.state_dict())
    if head is not None:
        merged.update({f"mlp_head.{name}": value for name, value in head.state_dict().items()})
    return merged


def load_encoder(encoder: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the encoder's part of `state`; decoder and head in it are left alone. See `load_strict`."""
    load_strict(encoder, split_state(state)[0], "encoder")


def load_strict(module: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Load every tensor of `module` from `state`, or none.

    UsageFault names keys that are missing or unknown and shapes that differ; VerificationFault names tensors
    with values that are not finite.
    """
    own = module.state_dict()
    missing = [name for name in own if name not in state]
    unknown = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the recipe makes it {tuple(value.shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]
    faults = [
        f"{len(names)} {fault}: {', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
        for fault, names in (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise UsageFault(
            f"these weights do not fit the {what} ({len(own)} tensors): {'; '.join(faults)}",
            "set the sizes in [model] (width, depth, heads, patches, audio_frames, image_size) to those of the weights",
        )
    broken = [name for name in own if not torch.isfinite(state[name]).all()]
    if broken:
        more = " ..." if len(broken) > _SHOWN else ""
        raise VerificationFault(
            f"{len(broken)} tensors of the {what} hold values that are not finite: {', '.join(broken[:_SHOWN])}{more}",
            "these weights are damaged: use an earlier checkpoint",
        )
    module.load_state_dict({name: state[name] for name in own}, strict=True)
