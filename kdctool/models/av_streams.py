"""The audio-visual encoder as streams of tokens: audio and video through tower and joint block, and both together.

Blocks count through: of 11 + 1, block 12 is the joint block, which each modality runs through alone with its own
norms. That is the pass that contrast trains. The joint stream begins where the towers end.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from kdctool.batch import Batch
from kdctool.models.av_encoder import AVEncoder, visible
from kdctool.models.layers import Block, Modality
from kdctool.models.streams import Audible, Heard, Stream, Wanted, audible, split_qkv

JOINT = "joint"
SHORT: dict[str, Modality] = {"audio": "a", "video": "v"}


class AVStreams:
    """What `encoder` does with clips; see `kdctool.models.streams.Streams`."""

    def __init__(self, encoder: AVEncoder) -> None:
        self.encoder = encoder
        options = encoder.options
        self.depth = options.depth
        self.side = options.image_size
        self.stream = Stream(
            grid=(0, 0),
            width=options.width,
            heads=options.heads,
            layers=options.depth + options.joint_depth,
            mlp_ratio=options.mlp_ratio,
            first=options.depth + 1,
        )
        self.streams = {
            "audio": replace(self.stream, grid=options.audio_grid, patch_inputs=options.audio_patch**2, first=1),
            "video": replace(self.stream, grid=options.video_grid, patch_inputs=3 * options.video_patch**2, first=1),
            JOINT: self.stream,
        }
        self.wanted: dict[str, Wanted] = {}
        self.ears: dict[tuple[str, int], Audible] = {}

    def listen(self, wanted: Mapping[str, Wanted]) -> None:
        """See `Streams`."""
        self.wanted = dict(wanted)
        for name in wanted:
            for layer in sorted(wanted[name].qkv):  # Streams share the joint block, and take from it after each pass.
                self.ears[name, layer] = audible(self._block(name, layer).attn.qkv)

    def run(self, batch: Batch, keep: Mapping[str, Tensor], mask_token: Tensor | None = None) -> dict[str, Heard]:
        """See `Streams`; each modality reads its own part of the batch."""
        assert mask_token is None, "the towers have no mask token"
        heard: dict[str, Heard] = {}
        ends: dict[str, Tensor] = {}
        for name in SHORT:
            if name in self.wanted or JOINT in self.wanted:
                heard[name], ends[name] = self._single(name, batch, keep.get(name))
        if JOINT in self.wanted:
            wanted = self.wanted[JOINT]
            both = torch.cat((ends["audio"], ends["video"]), dim=1)
            heard[JOINT], x = self._chain(JOINT, both, self.stream.first, wanted.last)
            heard[JOINT].final = self.encoder.norm(x) if wanted.final else None
        for ear in self.ears.values():
            ear.heard = None  # Of a pass through the joint block that nobody listened to.
        return {name: heard[name] for name in self.wanted}

    def last(self, name: str) -> int:
        """See `Streams`."""
        own = self.wanted.get(name, Wanted()).last
        return max(own, self.depth) if JOINT in self.wanted and name != JOINT else own

    def reached(self) -> set[str]:
        """See `Streams`. Positional tables are fixed and not in it."""
        found: set[str] = set()
        for name, wanted in self.wanted.items():
            for short in (SHORT[name],) if name in SHORT else SHORT.values():
                found |= self._reached_single(short, wanted if name in SHORT else Wanted(frozenset({self.depth})))
            if name == JOINT:
                found |= self._reached_joint(wanted, "")
        return found

    def _single(self, name: str, batch: Batch, keep: Tensor | None) -> tuple[Heard, Tensor]:
        """One modality up to the last block that is wanted, and its tokens at the end of its tower."""
        wanted = self.wanted.get(name, Wanted())
        x = self._embed(name, batch)
        x = x if keep is None else visible(x, keep.unsqueeze(0))
        heard, end = self._chain(name, x, 1, min(self.depth, self.last(name)))
        if 0 in wanted.outputs:
            heard.outputs[0] = x
        more, last = self._chain(name, end, self.depth + 1, wanted.last)
        heard.outputs |= more.outputs
        heard.qkv |= more.qkv
        if wanted.final:
            heard.final = (self.encoder.norm_a if name == "audio" else self.encoder.norm_v)(last)
        return heard, end

    def _embed(self, name: str, batch: Batch) -> Tensor:
        if name == "audio":
            return self.encoder.audio_tokens(batch["fbank"])
        return self.encoder.video_tokens(batch["frame"])

    def _chain(self, name: str, x: Tensor, first: int, last: int) -> tuple[Heard, Tensor]:
        heard, wanted = Heard(), self.wanted.get(name, Wanted())
        for layer in range(first, last + 1):
            block = self._block(name, layer)
            x = block(x, SHORT.get(name) if layer > self.depth else None)
            if layer in wanted.outputs:
                heard.outputs[layer] = x
            if layer in wanted.qkv:
                heard.qkv[layer] = split_qkv(self.ears[name, layer].take(), self.stream.heads)
        return heard, x

    def _block(self, name: str, layer: int) -> Block:
        tower = self.encoder.blocks_a if name == "audio" else self.encoder.blocks_v
        found = tower[layer - 1] if layer <= self.depth else self.encoder.blocks_u[layer - 1 - self.depth]
        return found  # type: ignore[return-value]

    def _reached_single(self, short: Modality, wanted: Wanted) -> set[str]:
        found = {f"patch_embed_{short}.proj.weight", f"patch_embed_{short}.proj.bias", f"modality_{short}"}
        for layer in range(1, min(self.depth, wanted.last) + 1):
            found |= self._reached_block(f"blocks_{short}.{layer - 1}", "", layer, wanted)
        return found | self._reached_joint(wanted, f"_{short}")

    def _reached_joint(self, wanted: Wanted, norm: str) -> set[str]:
        found = {f"norm{norm}.weight", f"norm{norm}.bias"} if wanted.final else set()
        for layer in range(self.depth + 1, wanted.last + 1):
            found |= self._reached_block(f"blocks_u.{layer - 1 - self.depth}", norm, layer, wanted)
        return found

    def _reached_block(self, block: str, norm: str, layer: int, wanted: Wanted) -> set[str]:
        """A block of which only the queries and keys count ends there."""
        whole = layer < wanted.last or layer <= max(wanted.outputs, default=0)
        parts = [f"norm1{norm}", "attn.qkv", *(["attn.proj", f"norm2{norm}", "mlp.fc1", "mlp.fc2"] if whole else [])]
        return {f"{block}.{part}.{kind}" for part in parts for kind in ("weight", "bias")}
