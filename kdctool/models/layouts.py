"""How others name and shape the weights of an audio-visual encoder, translated to the released names of CAV-MAE.

A layout says which sizes a file has, and what of it goes where. Everything is accounted for: a tensor of the file
is used or unused with a reason, a tensor of the model is filled or fresh with a reason; the rest is an error.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.recipe import Model

State = dict[str, Tensor]

HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16}
"""Attention heads of published vision transformers by width; shapes do not show them."""
NAMES = ("cav-mae", "kdc-mae", "cav-mae-sync", "cav-mae-finetuned", "imagenet-mae", "timm")


@dataclass(frozen=True)
class Sizes:
    """Keys of a recipe that the shapes of a file decide."""

    model: dict[str, Any]
    """Of [model]."""
    decoder: dict[str, Any] = field(default_factory=dict)
    """Of [objective.decoder]; empty when the file has no decoder."""
    classes: int = 0
    heads_are_sure: bool = False
    """The heads are known from the architecture, not only usual for the width."""


@dataclass(frozen=True)
class Mapped:
    """A file's tensors under released names, and an account of every name."""

    state: State
    used: dict[str, tuple[str, ...]]
    """Name in the file -> names in the model."""
    unused: dict[str, str]
    """Name in the file -> why it is left out."""
    fresh: dict[str, str] = field(default_factory=dict)
    """Regular expression of names in the model that this layout never fills -> why."""
    notes: tuple[str, ...] = ()


class Layout(Protocol):
    """A published way to store weights."""

    @property
    def preset(self) -> str:
        """objective.name of models that come this way."""
        ...

    @property
    def licence(self) -> str:
        """What is known of the terms of the published files."""
        ...

    def sizes(self, state: State) -> Sizes:
        """What the shapes say; UsageFault when this is another layout."""
        ...

    def translate(self, state: State, model: Model) -> Mapped:
        """The tensors for `model`; shapes are not checked here."""
        ...


class Plan:
    """Collects where tensors go while a layout is translated."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        self.source = state
        self.state: State = {}
        self.used: dict[str, tuple[str, ...]] = {}

    def put(self, name: str, *targets: str, value: Tensor | None = None) -> None:
        """Use a tensor of the file, as it is or as `value`, under each of `targets`."""
        for target in targets:
            self.state[target] = self.source[name] if value is None else value
        self.used[name] = (*self.used.get(name, ()), *targets)

    def done(self, unused: dict[str, str], fresh: dict[str, str], notes: Iterable[str] = ()) -> Mapped:
        return Mapped(self.state, self.used, unused, fresh, tuple(notes))


def detect(state: Mapping[str, Tensor]) -> str:
    """The layout that names look like, empty when none; `timm` is never guessed, as it needs a model's name."""
    from kdctool.models.released import KDC_EXTRAS, SYNC_EXTRAS

    if "modality_a" in state:
        if any(name.startswith("mlp_head.") for name in state):
            return "cav-mae-finetuned"
        if any(SYNC_EXTRAS.fullmatch(name) for name in state):
            return "cav-mae-sync"
        return "kdc-mae" if any(KDC_EXTRAS.fullmatch(name) for name in state) else "cav-mae"
    return "imagenet-mae" if {"cls_token", "pos_embed", "blocks.0.norm1.weight"} <= state.keys() else ""


def layout(name: str, *, timm_model: str = "", tower: str = "both") -> Layout:
    """The layout called `name`."""
    from kdctool.models.imagenet_mae import ImageNetMae
    from kdctool.models.released import RELEASED
    from kdctool.models.timm_vit import TimmVit

    if name not in NAMES:
        raise UsageFault(f"--as {name} is not known", f"one of: {', '.join(NAMES)}")
    if name == "timm":
        return TimmVit(timm_model, tower)
    if timm_model or tower != "both":
        raise UsageFault(f"--model and --tower mean nothing to --as {name}", "they are for --as timm")
    return ImageNetMae() if name == "imagenet-mae" else RELEASED[name]


def require(state: Mapping[str, Tensor], names: Iterable[str], what: str) -> None:
    """UsageFault when a name without which sizes cannot be read is missing; tells what the file looks like instead."""
    missing = [name for name in names if name not in state]
    if missing:
        like = detect(state)
        first = ", ".join(list(state)[:3]) or "nothing"
        raise UsageFault(
            f"these weights are not {what}: {', '.join(missing[:5])} missing (the file begins with {first})",
            f"they look like --as {like}" if like else f"--as must be one of: {', '.join(NAMES)}",
        )


def heads_of(width: int) -> dict[str, int]:
    """The usual number of heads for a width, as keys of [model]; empty when there is no usual one."""
    if width in HEADS:
        return {"heads": HEADS[width]}
    return {"heads": width // 64} if width % 64 == 0 else {}


def decoder_heads(width: int) -> dict[str, int]:
    """Heads of 32 channels, which all published decoders have."""
    return {"heads": max(1, width // 32)}


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many blocks are called PREFIX.0, PREFIX.1, ..."""
    return len({name.split(".")[1] for name in state if name.startswith(f"{prefix}.")})
