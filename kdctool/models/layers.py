"""The parts of a vision transformer, with the names and numbers of the released CAV-MAE weights."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Modality = Literal["a", "v"]

LAYER_NORM_EPS = 1e-5
"""CAV-MAE uses nn.LayerNorm's default, not the 1e-6 of the image MAE."""


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with the epsilon of the released weights."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


class Attention(nn.Module):
    """Multi-head self-attention; q, k and v are stacked in this order in `qkv`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, D) -> (B, L, D)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, L, D / heads) each
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


class Mlp(nn.Module):
    """Two layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., D) -> (..., D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """Pre-norm transformer block with three pairs of norms around one attention and one MLP.

    The joint encoder uses the pair of the modality it is given, or the plain pair for both together. Towers and
    decoder only ever use the plain pair; theirs of the modalities exist because released weights carry them.
    """

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.norm1_a = layer_norm(width)
        self.norm1_v = layer_norm(width)
        self.attn = Attention(width, heads)
        self.norm2 = layer_norm(width)
        self.norm2_a = layer_norm(width)
        self.norm2_v = layer_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, modality: Modality | None = None) -> Tensor:
        """x: (B, L, D) -> (B, L, D)."""
        if modality == "a":
            norm1, norm2 = self.norm1_a, self.norm2_a
        elif modality == "v":
            norm1, norm2 = self.norm1_v, self.norm2_v
        else:
            norm1, norm2 = self.norm1, self.norm2
        x = x + self.attn(norm1(x))
        return x + self.mlp(norm2(x))

    def freeze_modality_norms(self) -> None:
        """Freeze the norms that a block outside the joint encoder never runs; they stay in the state dict."""
        for norm in (self.norm1_a, self.norm1_v, self.norm2_a, self.norm2_v):
            norm.requires_grad_(False)


class PatchEmbed(nn.Module):
    """Linear projection of square patches, as a convolution with stride = kernel."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, L, D), row-major."""
        return self.proj(x).flatten(2).transpose(1, 2)


def sincos_2d(width: int, grid: tuple[int, int]) -> Tensor:
    """Fixed sine-cosine positions of a grid of (rows, columns), (1, L, D).

    The first half of the channels encodes the column (time), the second the row (frequency). Computed in double
    precision: the tables of released weights were.
    """
    rows, columns = grid
    row = torch.arange(rows, dtype=torch.float64).repeat_interleave(columns)  # (L,)
    column = torch.arange(columns, dtype=torch.float64).repeat(rows)  # (L,)
    quarter = width // 4
    frequency = 10000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)  # (D / 4,)
    angles = [position[:, None] * frequency for position in (column, row)]
    table = torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1)
    return table.float().unsqueeze(0)


def init_weights(module: nn.Module) -> None:
    """CAV-MAE's initialisation: xavier for every linear layer and flattened patch kernel, norms 1 and 0.

    Draws from torch's global generator in the order of construction, so a caller's `torch.manual_seed` decides it.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            nn.init.zeros_(part.bias)
        elif isinstance(part, PatchEmbed):
            # The view writes through to the kernel. The bias keeps nn.Conv2d's own draw, as in the reference.
            nn.init.xavier_uniform_(part.proj.weight.view(part.proj.weight.shape[0], -1))
        elif isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
