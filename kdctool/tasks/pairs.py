"""Another clip for every clip: what a model makes of the wrong sound or picture is the control of what it makes of the
right one. Which clip is whose partner follows from uids and order alone, never from batches.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Generic, TypeVar

from kdctool.seeds import fold

T = TypeVar("T")

WINDOW = 1024
"""Partners are at most about this many clips apart in the order of the split, so that few must be held at a time.
Splits are sorted by a hash, so neighbours are no more alike than others."""


def partners(uids: Sequence[str], sources: Sequence[str], seed: int) -> list[int] | None:
    """For each clip the index of one of another source video; None when all clips are of one video."""
    if len(set(sources)) < 2:
        return None
    found = [0] * len(uids)
    starts = list(range(0, max(1, len(uids) - WINDOW // 2), WINDOW))
    for first, end in zip(starts, [*starts[1:], len(uids)], strict=True):
        inside = sorted(range(first, end), key=lambda i: (fold(seed, "partner", uids[i]), uids[i]))
        for place, clip in enumerate(inside):
            others = inside[place + 1 :] + inside[:place]
            other = next((i for i in others if sources[i] != sources[clip]), None)
            if other is None:
                other = next(i for i in range(len(uids)) if sources[i] != sources[clip])
            found[clip] = other
    return found


class Pairing(Generic[T]):
    """Brings clips together with their partners while both come by in some order; holds what is still needed."""

    def __init__(self, partner: Mapping[int, int]) -> None:
        self.partner = partner
        self._wanted_by: dict[int, list[int]] = {}
        for clip, other in partner.items():
            self._wanted_by.setdefault(other, []).append(clip)
        self._uses = Counter([*partner, *partner.values()])
        self._held: dict[int, T] = {}

    def add(self, clip: int, item: T) -> Iterator[tuple[int, T, T]]:
        """(clip, its item, its partner's item) of every pair that `clip` completes."""
        self._held[clip] = item
        if self.partner[clip] in self._held:
            yield self._pair(clip)
        for other in self._wanted_by.get(clip, ()):
            if other in self._held and other != clip:
                yield self._pair(other)

    def __len__(self) -> int:
        """Items that are held."""
        return len(self._held)

    def _pair(self, clip: int) -> tuple[int, T, T]:
        other = self.partner[clip]
        pair = clip, self._held[clip], self._held[other]
        for used in (clip, other):
            self._uses[used] -= 1
            if not self._uses[used]:
                del self._held[used]
        return pair
