"""What stands between a student's features and a teacher's while training, and is thrown away afterwards."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from kdctool.models.layers import Block, init_weights, layer_norm, sincos_2d
from kdctool.models.streams import Stream
from kdctool.recipe.distill import Head


class Projection(nn.Module):
    """Features of each token for itself, through no, one or two layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        init_weights(self)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """x: (B, N, D) -> (B, N, E)."""
        return self.layers(x)


class Asymmetric(nn.Module):
    """A small decoder: mask tokens at the places that the student did not see, then attention over all places.

    The paper shows what it costs: the decoder ends up behaving like the teacher's last layers, and is thrown away.
    """

    def __init__(self, stream: Stream, width: int, options: Head) -> None:
        super().__init__()
        inner = options.width
        self.prefix = stream.prefix
        self.embed = nn.Linear(stream.width, inner)
        self.mask_token = nn.Parameter(torch.empty(1, 1, inner))
        self.pos_embed = nn.Parameter(sincos_2d(inner, stream.grid), requires_grad=False)
        blocks = [Block(inner, options.heads, stream.mlp_ratio) for _ in range(options.depth)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = layer_norm(inner)
        self.project = nn.Linear(inner, width)
        init_weights(self)
        nn.init.normal_(self.mask_token, std=0.02)
        for block in blocks:
            block.freeze_modality_norms()

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        """x: the prefix and the patches at `keep` (B, K), or all of them -> (B, prefix + L, E)."""
        x = self.embed(x)
        before, patches = x[:, : self.prefix], x[:, self.prefix :]
        if keep is not None:
            places = keep.unsqueeze(-1).expand_as(patches)
            empty = self.mask_token.to(x.dtype).expand(len(x), self.pos_embed.shape[1], -1)
            patches = empty.scatter(1, places, patches)
        x = torch.cat((before, patches + self.pos_embed.to(x.dtype)), dim=1)
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x))


Make = Callable[[Stream, int, Head], Projection | Asymmetric]
HEADS: dict[str, Make] = {
    "none": lambda stream, width, options: Projection(),
    "linear": lambda stream, width, options: Projection(nn.Linear(stream.width, width)),
    "mlp": lambda stream, width, options: Projection(
        nn.Linear(stream.width, options.width), nn.GELU(), nn.Linear(options.width, width)
    ),
    "asym": Asymmetric,
}
"""By the names of objective.distill.student.head.kind; the number is the width of the teacher's features."""
