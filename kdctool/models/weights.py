"""State dicts in and out under the names of the released CAV-MAE. Nothing is ever loaded by half."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from kdctool.errors import UsageFault, VerificationFault

State = dict[str, Tensor]

WRAPPERS = ("model", "model_state_dict", "state_dict")
"""Under which a training checkpoint keeps the weights; `model_state_dict` is KDC-MAE's."""

_SHOWN = 5
"""Keys that an error message names before it says how many more there are."""


def count(module: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters. Published counts of CAV-MAE call everything trainable but the position tables."""
    parameters = list(module.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def load_state(path: Path | str) -> State:
    """Tensors of a .safetensors or a .pth / .pt file, on the CPU, a leading `module.` taken off the names.

    Pickles are read with `weights_only=True`: one that holds code is refused, not run. A trainer's checkpoint
    that wraps the weights under a name of `WRAPPERS` is unwrapped.
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
            raise _unreadable(path, error) from error
    for wrapper in WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        raise UsageFault(f"{path} is not a state dict of tensors", "save the model's state dict alone")
    if strangers := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise UsageFault(
            f"{path} is not a state dict of tensors: {', '.join(strangers[:_SHOWN])} are none",
            "save the model's state dict alone",
        )
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def _unreadable(path: Path, error: Exception) -> UsageFault:
    """What torch says in a page about unpickling, in a line."""
    if wanted := re.search(r"GLOBAL (\S+)", str(error)):
        return UsageFault(
            f"{path} holds more than tensors and is not loaded: reading it would run {wanted[1]}",
            "where you trust its maker, save its state dict alone (torch.save(checkpoint['model'], 'weights.pth')); "
            "best as .safetensors",
        )
    cause = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
    return UsageFault(f"{path} holds more than tensors, or is damaged, and is not loaded: {cause}",
                      "fetch it again, or save its state dict alone, best as .safetensors")  # fmt: skip


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


def load_strict(module: nn.Module, state: Mapping[str, Tensor], what: str, *, assign: bool = False) -> None:
    """Load every tensor of `module` from `state`, or none; `assign` takes the tensors themselves (for meta modules).

    UsageFault names keys that are missing or unknown and shapes that differ; VerificationFault names tensors
    with values that are not finite.
    """
    own = module.state_dict()
    faults = differences({name: value.shape for name, value in own.items()}, state)
    if faults:
        raise UsageFault(
            f"these weights do not fit the {what} ({len(own)} tensors): {'; '.join(faults)}",
            f"set the sizes in {SECTIONS.get(what, '[model]')} to those of the weights",
        )
    refuse_broken(state, what)
    module.load_state_dict({name: state[name] for name in own}, strict=True, assign=assign)


SECTIONS = {
    "encoder": "[model] (width, depth, heads, patches, audio_frames, image_size)",
    "decoder": "[objective.decoder] (width, depth)",
}
"""Which part of a recipe decides the shapes of a module."""


def differences(wanted: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> list[str]:
    """What keeps `state` from being loaded: missing names, unknown names, other shapes; one phrase each."""
    missing = [name for name in wanted if name not in state]
    unknown = [name for name in state if name not in wanted]
    shapes = [
        f"{name} is {tuple(state[name].shape)}, the recipe makes it {tuple(shape)}"
        for name, shape in wanted.items()
        if name in state and state[name].shape != shape
    ]
    found = (("missing", missing), ("unknown", unknown), ("of another shape", shapes))
    return [f"{len(names)} {fault}: {shown(names)}" for fault, names in found if names]


def refuse_broken(state: Mapping[str, Tensor], what: str) -> None:
    """VerificationFault that names the tensors with values that are not finite."""
    broken = [name for name, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise VerificationFault(
            f"{len(broken)} tensors of the {what} hold values that are not finite: {shown(broken)}",
            "these weights are damaged: use an earlier checkpoint",
        )


def shown(names: list[str]) -> str:
    """The first few of `names`."""
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")
