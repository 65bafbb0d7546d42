"""The parts of a vision transformer, with the names and numbers of the released CAV-MAE weights."""

import faulthandler
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Modality = Literal["a", "v"]

LAYER_NORM_EPS = 1e-5
"""CAV-MAE uses nn.LayerNorm's default, not the 1e-6 of the image MAE."""

SCORES = 1 << 23
"""Attention scores that are held at once where attention is written out: 16 MB, about what a CPU's cache keeps."""
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Whether this build of torch brings oneDNN's float32 linear layer."""

if HAS_ONEDNN and not faulthandler.is_enabled():
    # oneDNN's AVX-512 product keeps values where the frame of a signal is written (Ctrl-C, Slurm's USR1, the end of a
    # reading process): the heap is corrupted then. With faulthandler signals have a stack of their own.
    faulthandler.enable(file=2)


def layer_norm(width: int) -> nn.LayerNorm:
    """LayerNorm with the epsilon of the released weights."""
    return nn.LayerNorm(width, eps=LAYER_NORM_EPS)


class Linear(nn.Linear):
    """nn.Linear, whose float32 product on a CPU is oneDNN's.

    torch hands it to MKL, which leaves AVX-512 unused on processors that are not Intel's: half the speed on an AMD
    EPYC. Autocast, compilation and export take the usual way.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out)."""
        plain = type(x) is Tensor and x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32
        if not plain or not HAS_ONEDNN or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return F.linear(x, self.weight, self.bias)
        return _OneDnnLinear.apply(x, self.weight, self.bias)


class _OneDnnLinear(torch.autograd.Function):
    """x @ weight.T + bias and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows, inputs = grad.flatten(0, -2), x.flatten(0, -2)
        return _product(grad, weight.t()), _product(rows.t(), inputs.t()), rows.sum(dim=0)


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias, in float32 on the CPU."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class Attention(nn.Module):
    """Multi-head self-attention; q, k and v are stacked in this order in `qkv`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, L, D) -> (B, L, D)."""
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, L, D / heads) each
        if q.dtype == torch.bfloat16 and q.device.type == "cpu" and not torch.compiler.is_compiling():
            x = _written_out(q, k, v)
        else:
            x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, tokens, width))


def _written_out(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for (B, heads, L, d), some clips at a time.

    In bfloat16 on a CPU two to five times faster than fused attention, whose backward pass is slow there.
    """
    clips = max(1, SCORES // (q.shape[1] * q.shape[2] ** 2))
    parts = zip(*(x.contiguous().split(clips) for x in (q * q.shape[-1] ** -0.5, k, v)), strict=True)
    return torch.cat([(a @ b.transpose(-2, -1)).softmax(dim=-1) @ c for a, b, c in parts])


class Mlp(nn.Module):
    """Two layers with the exact (erf) GELU between them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(width, hidden)
        self.fc2 = Linear(hidden, width)

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
