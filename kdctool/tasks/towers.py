"""The stacks of blocks whose attention `diagnose` looks at, and hooks that measure them while the model runs.

q and k are taken where they leave `attn.qkv`, so fused attention stays on and the model computes what it always does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.models.vit_streams import PLAIN, refuse_strange
from kdctool.tasks import EvalData
from kdctool.tasks import attention as maps
from kdctool.tasks.metrics import finite
from kdctool.tasks.representation import spectrum

_SCORES = 1 << 24
"""Attention weights that are looked at at once: 64 MB, several times over."""
FRAME_MS = 10.0
"""Time between two frames of the filter bank."""


@dataclass(frozen=True)
class Axis:
    """A way of measuring how far tokens lie apart."""

    name: str
    unit: str
    steps: tuple[float, float]
    """Distance between two rows and between two columns of the grid."""


@dataclass(frozen=True)
class Tower:
    """Blocks that run one after the other on the same tokens."""

    name: str
    blocks: list[tuple[str, nn.Module]]
    """Name in the model and module, in the order in which they run."""
    run: Callable[[Batch], Any]
    """Runs the model on a batch so that each block runs exactly once."""
    grid: tuple[int, int] = (0, 0)
    axes: tuple[Axis, ...] = ()
    """The first is the head distance, others are told beside it. None where tokens have no common plane."""
    prefix: int = 0
    """Class and register tokens before the patches."""
    num_audio: int = 0
    num_tokens: int = 0
    """Of a joint tower: how many of the first tokens are audio, and how many there are."""

    def uniform_distance(self) -> dict[str, float]:
        """Per axis: the head distance of attention that is equal everywhere."""
        return {axis.name: float(maps.token_distance(self.grid, *axis.steps).mean()) for axis in self.axes}


def towers_of(model: Any, data: EvalData) -> list[Tower]:
    """The towers of an audio-visual encoder (layers counted through the joint block) or of a plain ViT of timm."""
    if hasattr(model, "blocks_a") and hasattr(model, "blocks_v"):
        return _audio_visual(model)
    if hasattr(model, "blocks") and hasattr(model, "patch_embed") and hasattr(model.blocks[0], "attn"):
        return [_plain(model, data)]
    raise UsageFault(f"{type(model).__name__} has no blocks whose attention is known", "an AVEncoder or a ViT of timm")


def _audio_visual(model: Any) -> list[Tower]:
    options = model.options
    joint = [(f"blocks_u.{i}", block) for i, block in enumerate(model.blocks_u)]
    audio = [(f"blocks_a.{i}", block) for i, block in enumerate(model.blocks_a)]
    video = [(f"blocks_v.{i}", block) for i, block in enumerate(model.blocks_v)]
    a, v = float(options.audio_patch), float(options.video_patch)
    # The filter bank has one frame every 10 ms; its rows are mel bins.
    sound = (
        Axis("ahd", "fbank cells", (a, a)),
        Axis("time", "ms", (0.0, a * FRAME_MS)),
        Axis("frequency", "mel bins", (a, 0.0)),
    )
    picture = (Axis("ahd", "pixels", (v, v)),)
    return [
        Tower("audio", audio + joint, lambda batch: model.embed_audio(batch["fbank"]), options.audio_grid, sound),
        Tower("video", video + joint, lambda batch: model.embed_video(batch["frame"]), options.video_grid, picture),
        Tower(
            "joint",
            joint,
            lambda batch: model(batch["fbank"], batch["frame"], single=False),
            num_audio=options.audio_tokens,
            num_tokens=options.audio_tokens + options.video_tokens,
        ),
    ]


def _plain(model: Any, data: EvalData) -> Tower:
    refuse_strange(model, "the model")
    if getattr(model, "shared_rel_pos", None) is not None or hasattr(model.blocks[0].attn, "rel_pos"):
        raise UsageFault("the ViT adds relative positions to its attention, which q and k alone do not tell", PLAIN)
    embed = model.patch_embed
    about = getattr(model, "pretrained_cfg", None) or {}
    mean, std = about.get("mean") or data.input_mean, about.get("std") or data.input_std

    def run(batch: Batch) -> Any:
        frame = batch["frame"]
        expected = tuple(embed.img_size or frame.shape[2:])
        if tuple(frame.shape[2:]) != expected:
            raise UsageFault(
                f"the ViT takes {expected[0]}x{expected[1]} px, the frames are {frame.shape[2]}x{frame.shape[3]} px",
                "create it with the frames' img_size",
            )
        return model.forward_features(_renormalised(frame, data, mean, std))

    blocks = [(f"blocks.{i}", block) for i, block in enumerate(model.blocks)]
    row, column = (float(side) for side in embed.patch_size)
    axes = (Axis("ahd", "pixels", (row, column)),)
    return Tower("video", blocks, run, tuple(embed.grid_size), axes, int(getattr(model, "num_prefix_tokens", 0)))


def _renormalised(frame: Tensor, data: EvalData, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """Frames with the mean and deviation that this model was trained with."""

    def channels(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values, device=frame.device, dtype=frame.dtype)[:, None, None]

    return (frame * channels(data.input_std) + channels(data.input_mean) - channels(mean)) / channels(std)


class Watch:
    """Collects per clip what a tower's layers do: pooled tokens always, attention and spectra unless `pooled_only`."""

    def __init__(self, tower: Tower, *, renormalise: bool = True, pooled_only: bool = False) -> None:
        self.tower, self.renormalise, self.pooled_only = tower, renormalise, pooled_only
        self.layers: list[dict[str, list[Tensor]]] = [{} for _ in tower.blocks]
        self._distance = {axis.name: maps.token_distance(tower.grid, *axis.steps).float() for axis in tower.axes}

    def see(self, batch: Batch) -> None:
        """Run the tower on a batch."""
        with self._hooked():
            self.tower.run(batch)

    def values(self, layer: int, name: str) -> Tensor:
        """(N, ...) what was measured at a layer (from 0), clips in the order in which they were seen."""
        return torch.cat(self.layers[layer][name])

    def measured(self, layer: int) -> list[str]:
        """Names of what was measured at a layer."""
        return list(self.layers[layer])

    @contextmanager
    def _hooked(self) -> Iterator[None]:
        handles = []
        for place, (_, block) in enumerate(self.tower.blocks):
            found = self.layers[place]
            handles.append(block.register_forward_hook(lambda _m, _i, out, found=found: self._tokens(found, out)))
            if not self.pooled_only:
                attn: Any = block.attn
                see = lambda _m, _i, out, found=found, attn=attn: self._attention(found, out, attn)  # noqa: E731
                handles.append(attn.qkv.register_forward_hook(see))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _tokens(self, found: dict[str, list[Tensor]], out: Tensor) -> None:
        tokens = out[:, self.tower.prefix :].detach().float()  # (B, L, D)
        pooled = tokens.mean(1).cpu()
        finite(pooled.numpy(), "token values")
        _keep(found, pooled=pooled)
        if not self.pooled_only:
            top, rank = spectrum(tokens)
            _keep(found, top=top.cpu(), rank=rank.cpu())

    def _attention(self, found: dict[str, list[Tensor]], qkv: Tensor, attention: Any) -> None:
        clips = max(1, _SCORES // (maps.heads_of(attention) * qkv.shape[1] ** 2))
        for part in qkv.detach().split(clips):
            weights = maps.weights_of(part, attention)
            weights = maps.without_prefix(weights, self.tower.prefix, self.renormalise)
            _keep(found, nmi=maps.normalised_mutual_information(weights).cpu())
            _keep(found, entropy=maps.entropy_share(weights).cpu())
            for name, distance in self._distance.items():
                _keep(found, **{name: maps.head_distance(weights, distance.to(weights.device)).cpu()})
            if self.tower.num_audio:
                for name, block in maps.modality_blocks(weights, self.tower.num_audio).items():
                    _keep(found, **{f"mass_{name}": maps.block_mass(block).cpu()})
                    _keep(found, **{f"nmi_{name}": maps.block_information(block).cpu()})


def _keep(found: dict[str, list[Tensor]], **values: Tensor) -> None:
    for name, value in values.items():
        found.setdefault(name, []).append(value)
