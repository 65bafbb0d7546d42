"""A light decoder: a share of the removed patches is predicted, each from the visible tokens alone.

The joint decoder lets all places of both modalities attend to each other, which is more than half of a training
step. Here a query per predicted patch attends to the encoder's output and to nothing else (CrossMAE, Fu et al. 2024):
queries do not see each other, so leaving some out changes nothing for the others.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdctool.models.layers import Mlp, layer_norm
from kdctool.objectives.reconstruction import PatchDecoder
from kdctool.recipe import Decoder as DecoderOptions
from kdctool.recipe import Model


class CrossAttention(nn.Module):
    """Queries of one sequence look at another."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x: (B, N, D), memory: (B, K, D) -> (B, N, D)."""
        batch, queries, width = x.shape
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, D / heads)
        k, v = self.kv(memory).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(batch, queries, width))


class CrossBlock(nn.Module):
    """Pre-norm block of cross-attention and MLP; the memory comes normalised."""

    def __init__(self, width: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(width)
        self.attn = CrossAttention(width, heads)
        self.norm2 = layer_norm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        """x: (B, N, D), memory: (B, K, D) -> (B, N, D)."""
        x = x + self.attn(self.norm1(x), memory)
        return x + self.mlp(self.norm2(x))


class LightDecoder(PatchDecoder):
    """Predicts the patches it is asked for."""

    def __init__(self, model: Model, options: DecoderOptions) -> None:
        super().__init__(model, options)
        self.decoder_memory_norm = layer_norm(options.width)

    def block(self, options: DecoderOptions, mlp_ratio: float) -> nn.Module:
        """Cross-attention to the visible tokens."""
        return CrossBlock(options.width, options.heads, mlp_ratio)

    def forward(self, joint: Tensor, ids_a: Tensor, ids_v: Tensor) -> tuple[Tensor, Tensor]:
        """Predict the patches at ids_a (B, Na) and ids_v (B, Nv): (B, Na, P * P) and (B, Nv, P * P * 3).

        joint: (B, Ka + Kv, D) of the encoder. Views lie on the batch axis.
        """
        memory = self.decoder_memory_norm(self.decoder_embed(joint))
        a = self.decoder_modality_a + at(self.decoder_pos_embed_a, ids_a)
        v = self.decoder_modality_v + at(self.decoder_pos_embed_v, ids_v)
        x = self.mask_token + torch.cat((a, v), dim=1)  # (B, Na + Nv, D)
        for block in self.decoder_blocks:
            x = block(x, memory)
        x = self.decoder_norm(x)
        queries = ids_a.shape[1]
        return self.decoder_pred_a(x[:, :queries]), self.decoder_pred_v(x[:, queries:])


def at(values: Tensor, ids: Tensor) -> Tensor:
    """values (1 or B, L, E) at ids (B, N) -> (B, N, E)."""
    return values.expand(len(ids), -1, -1).gather(1, ids.unsqueeze(-1).expand(-1, -1, values.shape[-1]))
