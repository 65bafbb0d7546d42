"""Frozen networks that a student learns from: plain ViTs of timm and our own encoders, from local weights.

Each sees the clip with its own mean and standard deviation and at its own size. Nothing of a teacher is in a
checkpoint: path and sha256 of its weights say what it was.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.models.streams import Heard, Streams, Wanted
from kdctool.models.student import create, streams_of
from kdctool.models.weights import differences, refuse_broken
from kdctool.recipe import Data

State = dict[str, Tensor]

FRAMES = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
NON_COMMERCIAL = "no commercial use, of what is distilled from it neither"
UNKNOWN_LICENCE = "licence not stated: see where the weights came from"
HEADS = re.compile(r"(head|fc_norm|head_drop|attn_pool|head_dist)\..*|dist_token")
"""What a classifier adds to a ViT; features are taken before it."""
DECODER = re.compile(r"decoder_.*|mask_token")
"""What the full files of MAE carry beside the encoder."""


@dataclass(frozen=True)
class Seen:
    """How an encoder wants its input: frames in 0-1 and the filter bank minus mean, over std."""

    image_mean: tuple[float, ...] = FRAMES[0]
    image_std: tuple[float, ...] = FRAMES[1]
    fbank_mean: float = 0.0
    fbank_std: float = 1.0

    @classmethod
    def of(cls, data: Data) -> "Seen":
        """What the recipe's data section makes of clips."""
        return cls(data.image_mean, data.image_std, data.fbank_mean, data.fbank_std)


@dataclass(frozen=True)
class About:
    """Where a teacher came from, as it stands in the metadata of the run."""

    model: str
    path: str
    sha256: str
    licence: str

    def said(self) -> str:
        """One line."""
        return f"{self.model}, sha256 {self.sha256[:12]}, {self.licence}"


class Teacher(nn.Module):
    """An encoder that never learns: eval mode, no gradient, its own view of the clip."""

    def __init__(self, encoder: nn.Module, about: About, own: Seen, given: Seen, fbank: bool = False) -> None:
        super().__init__()
        self.encoder = encoder.eval().requires_grad_(False)
        self.streams: Streams = streams_of(encoder, f"teacher {about.model}")
        self.about, self.own = about, own
        scale, shift = _affine(given.image_mean, given.image_std, own.image_mean, own.image_std)
        self.scale: Tensor
        self.shift: Tensor
        self.register_buffer("scale", scale.view(-1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(-1, 1, 1), persistent=False)
        self.same_frames = (own.image_mean, own.image_std) == (given.image_mean, given.image_std)
        self.hears = fbank
        self.fbank_scale = given.fbank_std / own.fbank_std
        self.fbank_shift = (given.fbank_mean - own.fbank_mean) / own.fbank_std

    @torch.no_grad()
    def forward(self, batch: Batch) -> dict[str, Heard]:
        """What `listen` asked for, of the whole clip. batch: frame (B, C, H, W) and fbank (B, T, F)."""
        return self.streams.run(self.view(batch), {})

    def listen(self, wanted: Mapping[str, Wanted]) -> None:
        """See `Streams.listen`."""
        self.streams.listen(wanted)

    def view(self, batch: Batch) -> Batch:
        """The clip as this teacher was trained to see it."""
        seen = {"frame": self.frames(batch["frame"])}
        if self.hears and "fbank" in batch:  # A student that sees frames alone is taught by frames alone.
            fbank = batch["fbank"]
            same = self.fbank_scale == 1 and self.fbank_shift == 0
            seen["fbank"] = fbank if same else fbank * self.fbank_scale + self.fbank_shift
        return seen

    def frames(self, frame: Tensor) -> Tensor:
        """(B, C, H, W) normalised for the student -> normalised and sized for this teacher."""
        if frame.shape[-1] != self.streams.side:
            size = (self.streams.side, self.streams.side)
            frame = F.interpolate(frame, size, mode="bicubic", antialias=True, align_corners=False)
        return frame if self.same_frames else frame * self.scale + self.shift

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode: no dropout, no stochastic depth."""
        return super().train(False)

    def described(self) -> dict[str, Any]:
        """For run.json."""
        return {**asdict(self.about), "side": self.streams.side, **asdict(self.own)}


class Teachers(nn.ModuleDict):
    """Teachers by name, invisible to state dicts: a checkpoint neither holds nor wants them."""

    def by_name(self) -> dict[str, Teacher]:
        """All of them."""
        return {name: teacher for name, teacher in self.items() if isinstance(teacher, Teacher)}

    def state_dict(self, *args: Any, destination: Any = None, **kwargs: Any) -> Any:
        """Nothing."""
        return {} if destination is None else destination


def from_timm(
    name: str, model: str, state: State | None, path: str, sha256: str, data: Data, *,
    image_size: int, mean: tuple[float, ...] = (), std: tuple[float, ...] = (), card: Mapping[str, Any] | None = None,
) -> Teacher:  # fmt: skip
    """The timm ViT called `model` with the weights `state`, in timm's own or their publisher's names.

    `name` is the teacher's in the recipe. `card` overrides what timm knows of the weights (mean, std, license).
    """
    import timm

    known = timm.get_pretrained_cfg(model, allow_unregistered=True)
    card = {**(known.to_dict() if known is not None else {}), **(card or {})}
    refuse_other_activation(model, card, f"objective.distill.teachers.{name}.id")
    vit = create(model, f"objective.distill.teachers.{name}.id", img_size=image_size)
    streams_of(vit, f"teacher {name} ({model})")
    if state is not None:
        fix = f"set objective.distill.teachers.{name}.id to the model that these weights are of"
        fill(vit, state, model, path, f"teacher '{name}'", fix)
    own = Seen(tuple(mean or card.get("mean") or FRAMES[0]), tuple(std or card.get("std") or FRAMES[1]))
    return Teacher(vit, About(model, path, sha256, licence(card.get("license"))), own, Seen.of(data))


def licence(name: str | None) -> str:
    """A licence for the screen; that MAE's weights are non-commercial is easily missed."""
    if not name:
        return UNKNOWN_LICENCE
    return f"{name.upper()}: {NON_COMMERCIAL}" if "-nc" in name.lower() else name


def refuse_other_activation(model: str, card: Mapping[str, Any], key: str) -> None:
    """UsageFault where timm notes that the weights want QuickGELU and `model` computes GELU; `key` named the model."""
    notes = card.get("notes") or ()
    if any("QuickGELU" in note for note in notes) and "quickgelu" not in model:
        right = model.replace("_clip_", "_clip_quickgelu_")
        raise UsageFault(
            f"{key} = '{model}' computes GELU, its weights were trained with QuickGELU: "
            "a frozen teacher would be a slightly different network",
            f"set {key.rpartition('.')[2]} = '{right}'",
        )


def fill(vit: Any, state: State, model: str, path: str, who: str, fix: str) -> None:
    """Load every tensor of `vit` or none; heads and decoders are left out, positions are fitted to the grid.

    Faults say that `path` is not `model`, for whom (`who`), and what to do about it (`fix`).
    """
    from timm.models.vision_transformer import checkpoint_filter_fn

    if "decoder_embed.weight" in state:
        state = {key: value for key, value in state.items() if not DECODER.fullmatch(key)}
    kernel = state.get("patch_embed.proj.weight", state.get("visual.conv1.weight"))
    own = vit.patch_embed.proj.weight
    if kernel is not None and kernel.ndim == 4 and kernel.shape[-1] != own.shape[-1]:
        raise UsageFault(f"{path} has patches of {kernel.shape[-1]} pixels, {model} has {own.shape[-1]}: {who}", fix)
    try:
        fitted: State = checkpoint_filter_fn(dict(state), vit)
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        raise UsageFault(f"{path} does not hold the weights of {model} ({who}): {error}", fix) from error
    wanted = {key: value.shape for key, value in vit.state_dict().items()}
    found = {key: value.float() for key, value in fitted.items() if key in wanted or not HEADS.fullmatch(key)}
    if faults := differences(wanted, found):
        told = "; ".join(faults).replace("the recipe makes it", f"{model} has")
        raise UsageFault(f"{path} does not hold the weights of {model} ({who}): {told}", fix)
    refuse_broken(found, who)
    vit.load_state_dict(found, strict=True)


def _affine(
    mean: tuple[float, ...], std: tuple[float, ...], wanted_mean: tuple[float, ...], wanted_std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """scale and shift that turn (x - mean) / std into (x - wanted_mean) / wanted_std, in float32."""
    m, s, wm, ws = (torch.tensor(values, dtype=torch.float64) for values in (mean, std, wanted_mean, wanted_std))
    return (s / ws).float(), ((m - wm) / ws).float()
