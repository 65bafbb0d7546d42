"""A ViT of timm as a stream of tokens, with timm's numbers to the last bit of its own forward pass."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdctool.batch import Batch
from kdctool.errors import UsageFault
from kdctool.models.streams import Audible, Heard, Qkv, Stream, Wanted, audible, pick, split_qkv

VIDEO = "video"
BEFORE_BLOCKS = ("patch_embed", "cls_token", "reg_token", "pos_embed", "norm_pre", "shared_rel_pos")
PLAIN = "take a plain ViT, for example vit_base_patch16_224.mae"


class BlockList(nn.ModuleList):
    """Blocks that timm can call like its nn.Sequential, and that the trainer knows as blocks."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, N, D) -> (B, N, D)."""
        for block in self:
            x = block(x)
        return x


class VitStreams:
    """What `vit` does with frames; see `kdctool.models.streams.Streams`."""

    def __init__(self, vit: Any, who: str) -> None:
        refuse_strange(vit, who)
        self.vit = vit
        if isinstance(vit.blocks, nn.Sequential):
            vit.blocks = BlockList(vit.blocks)
        first, embed = vit.blocks[0], vit.patch_embed
        patch = embed.patch_size[0]
        self.side = int(embed.img_size[0])
        self.stream = Stream(
            grid=tuple(embed.grid_size),
            width=vit.embed_dim,
            heads=first.attn.num_heads,
            layers=len(vit.blocks),
            prefix=int(vit.num_prefix_tokens),
            has_class=vit.cls_token is not None,
            mlp_ratio=first.mlp.fc1.out_features / vit.embed_dim,
            patch_inputs=3 * patch * patch,
        )
        self.streams = {VIDEO: self.stream}
        self.wanted = Wanted()
        self.ears: dict[int, Audible] = {}

    def listen(self, wanted: Mapping[str, Wanted]) -> None:
        """See `Streams`."""
        self.wanted = wanted.get(VIDEO, Wanted())
        for layer in sorted(self.wanted.qkv):
            self.ears[layer] = audible(self.vit.blocks[layer - 1].attn.qkv)

    def run(self, batch: Batch, keep: Mapping[str, Tensor], mask_token: Tensor | None = None) -> dict[str, Heard]:
        """See `Streams`; reads batch["frame"] alone."""
        x = self.embed(batch["frame"], keep.get(VIDEO), mask_token)
        heard = Heard({0: x} if 0 in self.wanted.outputs else {})
        shared = getattr(self.vit, "shared_rel_pos", None)
        more = {} if shared is None else {"shared_rel_pos": shared.get_bias()}
        for layer in range(1, self.wanted.last + 1):
            block = self.vit.blocks[layer - 1]
            x = block(x, **more)
            if layer in self.wanted.outputs:
                heard.outputs[layer] = x
            if layer in self.wanted.qkv:
                heard.qkv[layer] = self._qkv(layer)
        if self.wanted.final:
            heard.final = self.vit.norm(x)
        return {VIDEO: heard}

    def embed(self, frame: Tensor, keep: Tensor | None = None, mask_token: Tensor | None = None) -> Tensor:
        """Tokens that go into the first block: (B, C, H, W) -> (B, prefix + K, D)."""
        vit = self.vit
        x = vit.patch_embed(frame)  # (B, L, D), or (B, rows, columns, D) where timm leaves the size open
        x = x.flatten(1, -2)
        if keep is not None and mask_token is not None:
            seen = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device).scatter(1, keep, True)
            x = torch.where(seen.unsqueeze(-1), x, mask_token.to(x.dtype))
        prefix = [token for token in (vit.cls_token, getattr(vit, "reg_token", None)) if token is not None]
        before = torch.cat(prefix, dim=1) if prefix else x.new_zeros(1, 0, x.shape[-1])  # (1, prefix, D)
        table = getattr(vit, "pos_embed", None)
        if table is not None:
            with_prefix = not vit.no_embed_class
            x = x + (table[:, self.stream.prefix :] if with_prefix else table)
            before = before + table[:, : self.stream.prefix] if with_prefix else before
        if keep is not None and mask_token is None:
            x = pick(x, keep)
        x = torch.cat((before.to(x.dtype).expand(x.shape[0], -1, -1), x), dim=1)  # len() would fix the batch in a graph
        return vit.norm_pre(x) if hasattr(vit, "norm_pre") else x

    def last(self, name: str) -> int:
        """See `Streams`."""
        return self.wanted.last

    def reached(self) -> set[str]:
        """See `Streams`. Frozen positions count: whether a table learns is not decided here."""
        tokens = max(self.wanted.outputs, default=0)
        last = self.wanted.last
        found = set()
        for name, _ in self.vit.named_parameters():
            top, _, rest = name.partition(".")
            if top == "blocks":
                number, _, leaf = rest.partition(".")
                layer = int(number) + 1
                half = layer == last and leaf.startswith(("norm1.", "attn.qkv.", "attn.q_norm.", "attn.k_norm."))
                if layer < last or layer <= tokens or half:
                    found.add(name)
            elif top in BEFORE_BLOCKS or (top == "norm" and self.wanted.final):
                found.add(name)
        return found

    def _qkv(self, layer: int) -> Qkv:
        attn = self.vit.blocks[layer - 1].attn
        q, k, v = split_qkv(self.ears[layer].take(), self.stream.heads)
        return Qkv(attn.q_norm(q), attn.k_norm(k), v)


def refuse_strange(vit: Any, who: str) -> None:
    """UsageFault for a model whose blocks are not a chain of plain attention blocks with a `qkv` layer each."""
    parts = ("blocks", "patch_embed", "num_prefix_tokens", "norm")
    missing = [part for part in parts if not hasattr(vit, part)]
    if missing:
        raise UsageFault(f"{who} is a {type(vit).__name__} without {', '.join(missing)}: not a ViT", PLAIN)
    for number, block in enumerate(vit.blocks, start=1):
        attn = getattr(block, "attn", None)
        if not isinstance(getattr(attn, "qkv", None), nn.Linear):
            raise UsageFault(
                f"{who}: block {number} of its {type(vit).__name__} has no attn.qkv layer to read queries from",
                PLAIN,
            )
        if not hasattr(getattr(block, "mlp", None), "fc1"):
            raise UsageFault(f"{who}: block {number} of its {type(vit).__name__} has no plain mlp", PLAIN)
    for part in ("rope", "patch_drop", "pos_drop"):
        module = getattr(vit, part, None)
        idle = isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and module.p == 0)
        if module is not None and not idle:
            raise UsageFault(f"{who}: its {type(vit).__name__} has {part}, which is not followed here", PLAIN)
    if isinstance(vit.norm, nn.Identity):
        raise UsageFault(f"{who}: its {type(vit).__name__} has no final norm over tokens, it pools before", PLAIN)
