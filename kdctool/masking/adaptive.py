"""Adaptive masking: a small network learns which tokens to show, from how hard the removed ones are to predict.

The idea is AdaMAE's (Bandara et al., CVPR 2023): tokens are drawn without replacement from a learned distribution, and
the distribution is moved towards tokens that were badly predicted. The KDC-MAE release has such a network but no loss
for it, so there it stays random.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from kdctool.masking import LearnedMasking, maskings
from kdctool.registry import Section

_TINIEST = 1e-20


class AdaptiveOptions(Section):
    """The size of the network, and how fast it learns."""

    width: Annotated[int, Field(gt=0)] = 64
    """Width of the hidden layer that sees a token beside the mean of all tokens."""
    weight: Annotated[float, Field(gt=0)] = 1e-3
    """Weight of the sampling loss. It trains this network alone, so Adam does not mind its size."""
    floor: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the probability that is spread evenly over all tokens, so that none is ever given up."""


@maskings.register("adaptive", AdaptiveOptions)
class AdaptiveMasking(LearnedMasking):
    """Draws visible tokens without replacement with learned probabilities; untrained it is random masking.

    With Gumbel noise g, the largest of log p + g are such a draw (Kool et al., 2019), so one argsort does it.
    """

    def __init__(self, options: AdaptiveOptions, width: int) -> None:
        super().__init__()
        self.weight, self.floor = options.weight, options.floor
        self.norm = nn.LayerNorm(width)
        self.token = nn.Linear(width, options.width)
        self.context = nn.Linear(width, options.width, bias=False)
        self.logit = nn.Linear(options.width, 1, bias=False)
        nn.init.zeros_(self.logit.weight)

    def noise(self, clips: int, grid: tuple[int, int], ratio: float, rng: torch.Generator) -> Tensor:
        """(clips, L) negative Gumbel noise."""
        uniform = torch.rand(clips, grid[0] * grid[1], generator=rng, device=rng.device)
        return uniform.clamp_min(_TINIEST).log().neg().clamp_min(_TINIEST).log()

    def forward(self, tokens: Tensor) -> Tensor:
        """Log-probabilities (B, L) of embedded tokens with positions (B, L, D); no gradient into the tokens."""
        with torch.autocast(tokens.device.type, enabled=False):
            x = self.norm(tokens.detach().float())
            hidden = self.token(x) + self.context(x.mean(dim=1, keepdim=True))  # (B, L, width)
            probability = self.logit(nn.functional.gelu(hidden)).squeeze(-1).softmax(dim=-1)  # (B, L)
            return ((1 - self.floor) * probability + self.floor / probability.shape[1]).log()
