"""What a step of distillation costs: matrix products of student and teachers, from the sizes alone."""

from dataclasses import dataclass

import torch

from kdctool.models.streams import Stream, Streams
from kdctool.objectives.distill_plan import JOINT
from kdctool.objectives.hybrid_distill import HybridDistill

TRAINED = 3
"""Forward and backward against forward alone."""


@dataclass(frozen=True)
class Bill:
    """Billions of multiply-adds per clip; heads and relations are below one per cent and not in it."""

    student: float
    """Forward pass on the tokens it is shown."""
    teachers: dict[str, float]
    """Forward pass up to the last block that is used."""
    tokens: dict[str, tuple[int, int]]
    """Stream -> tokens the student is shown, and all."""

    @property
    def step(self) -> float:
        """A training step: the student forwards and backwards, the teachers forwards."""
        return TRAINED * self.student + sum(self.teachers.values())


def bill(objective: HybridDistill, *, masked: bool = True) -> Bill:
    """The cost of a clip; `masked` = False is the same without a mask, for comparison."""
    tokens = {}
    for name in objective.policies:
        every = objective.streams.streams[name].tokens
        kept = shown(objective, name) if masked and objective.drops else every
        tokens[name] = (kept, every)
    student = _gmacs(objective.streams, {name: kept for name, (kept, _) in tokens.items()})
    teachers = {name: _gmacs(teacher.streams, {}) for name, teacher in objective.teachers.by_name().items()}
    return Bill(student, teachers, tokens)


def shown(objective: HybridDistill, name: str) -> int:
    """Tokens of a stream that the mask leaves."""
    policy, stream, guide = objective.policies[name], objective.streams.streams[name], objective.distill.mask.teacher
    depth = objective.teachers.by_name()[guide].streams.streams[name].layers if guide else 0
    blank = {layer: torch.zeros(1, stream.tokens, 1) for layer in policy.guides(depth)}
    kept = policy.keep(blank, stream.grid, 1, torch.Generator(), torch.zeros(1, dtype=torch.int64))
    return stream.tokens if kept is None else kept.shape[1]


def _gmacs(streams: Streams, tokens: dict[str, int]) -> float:
    """Of all streams up to the last blocks that are listened to, on `tokens` of each or all of them."""
    sizes: dict[str, Stream] = {name: stream for name, stream in streams.streams.items() if name != JOINT}
    numbers = {name: tokens.get(name, stream.tokens) for name, stream in sizes.items()}
    found = sum(stream.gmacs(numbers[name], streams.last(name)) for name, stream in sizes.items() if streams.last(name))
    if JOINT in streams.streams and streams.last(JOINT):
        found += streams.streams[JOINT].gmacs(sum(numbers.values()), streams.last(JOINT))
    return found
