"""What Hybrid Distill and its relatives compare: features of tokens, and relations between tokens. All in float32."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from kdctool.models.streams import Qkv, pick
from kdctool.recipe.distill_loss import DistillLoss

EPSILON = 1e-6
"""Added to the variance where targets are whitened."""


def whiten(target: Tensor) -> Tensor:
    """Each token (last axis) minus its mean, over its standard deviation; nothing is learned."""
    return F.layer_norm(target, target.shape[-1:], eps=EPSILON)


def smooth_l1(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Mean of e^2 / (2 beta) where the error e is below beta, and of e - beta / 2 beyond."""
    return F.smooth_l1_loss(student, teacher, beta=beta)


def mse(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(student, teacher)


def cos(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Mean of 1 - cosine over tokens."""
    return 1 - F.cosine_similarity(student, teacher, dim=-1).mean()


def kl(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """KL(teacher || student) of log-probabilities: summed over the last axis, mean over all others."""
    return (teacher.exp() * (teacher - student)).sum(dim=-1).mean()


METRICS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "smooth_l1": smooth_l1, "mse": mse, "cos": cos, "kl": kl,
}  # fmt: skip


def feature_loss(student: Tensor, teacher: Tensor, options: DistillLoss) -> Tensor:
    """Features (B, N, E) of the same tokens; those of the teacher come normalised."""
    return METRICS[options.metric](student, teacher, options.beta)


def relation_loss(student: Tensor, teacher: Tensor, options: DistillLoss) -> Tensor:
    """Relations (B, heads, N, M) of the same tokens: before the softmax over M, unless the recipe wants it."""
    if options.softmax:
        student, teacher = student.log_softmax(dim=-1), teacher.log_softmax(dim=-1)
        if options.metric != "kl":
            student, teacher = student.exp(), teacher.exp()
    return METRICS[options.metric](student, teacher, options.beta)


def relation(qkv: Qkv, kind: str, options: DistillLoss, rows: Tensor | None, columns: Tensor | None = None) -> Tensor:
    """Products of queries with keys ("qk"), or of values with values ("vv"): (B, heads, N, M) in float32.

    rows (B, N) and columns (B, M) choose tokens, which gives the rows and columns of the whole matrix: products know
    no context. None takes all; columns are rows where they are not given.
    """
    of, with_ = (qkv.v, qkv.v) if kind == "vv" else (qkv.q, qkv.k)
    left = _heads(of, rows, options.relation_heads)
    right = _heads(with_, rows if columns is None else columns, options.relation_heads)
    product = left @ right.transpose(-2, -1)
    return product * left.shape[-1] ** -0.5 if options.scale == "sqrt_head_dim" else product


def _heads(x: Tensor, ids: Tensor | None, heads: int) -> Tensor:
    """(B, heads, N, d) at ids -> (B, `heads` or the same, K, ...), float32."""
    whole = x.float().transpose(1, 2).flatten(2)  # (B, N, D)
    whole = whole if ids is None else pick(whole, ids)
    return whole.unflatten(-1, (heads or x.shape[1], -1)).transpose(1, 2)


def over_layers(losses: list[Tensor], how: str) -> Tensor:
    """The mean or the sum of the losses of several blocks."""
    together = torch.stack(losses)
    return together.sum() if how == "sum" else together.mean()
