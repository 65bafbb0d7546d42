"""Pictures and sounds of a page: each is held once, however often it is shown, and all of them fit into a budget."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from kdctool.report.pictures import FULL, SMALL

Kind = Literal["picture", "sound"]
Make = Callable[[int], str]
"""Longest edge in pixels -> data URI. Sounds have one size."""


@dataclass(frozen=True)
class Item:
    """Something that the page may show. Lower `rank` matters more and is left out later."""

    id: str
    kind: Kind
    rank: int
    make: Make


@dataclass(frozen=True)
class Settled:
    """What the page carries."""

    uris: dict[str, str]
    is_small: bool
    """Whether every picture was made half as large."""
    kept: dict[str, int]
    left_out: dict[str, int]
    """Kind -> how many were left out because there was no room."""


@dataclass
class Media:
    """Collects what sections want to show; `settle` decides what there is room for."""

    items: dict[str, Item] = field(default_factory=dict)
    _made: dict[tuple[str, int], str] = field(default_factory=dict)

    def add(self, key: str, kind: Kind, rank: int, make: Make) -> str:
        """Ask for a picture or sound; the same key twice is the same thing, at its better rank. Returns its id."""
        known = self.items.get(key)
        id = known.id if known else f"m{len(self.items)}"
        if known is None or rank < known.rank:
            self.items[key] = Item(id, kind, rank, make)
        return id

    def settle(self, budget: int) -> Settled:
        """Full pictures and all sounds if they fit into `budget` bytes; else small pictures; else the first by rank."""
        items = sorted(self.items.values(), key=lambda item: (item.rank, int(item.id[1:])))
        uris = {item.id: self._uri(item, FULL) for item in items}
        is_small = _size(uris) > budget
        if is_small:
            uris = {item.id: self._uri(item, SMALL) if item.kind == "picture" else uris[item.id] for item in items}
        kept: dict[str, str] = {}
        used = 0
        for item in items:
            cost = _size({item.id: uris[item.id]})
            if used + cost > budget:
                break  # What matters less never takes the room of what matters more.
            kept[item.id] = uris[item.id]
            used += cost
        return Settled(kept, is_small, _counts(items, kept, True), _counts(items, kept, False))

    def _uri(self, item: Item, edge: int) -> str:
        if (item.id, edge) not in self._made:
            self._made[item.id, edge] = item.make(edge)
        return self._made[item.id, edge]


def _size(uris: dict[str, str]) -> int:
    return sum(len(uri) + len(id) + 6 for id, uri in uris.items())  # Quotes, colon, comma.


def _counts(items: list[Item], kept: dict[str, str], wanted: bool) -> dict[str, int]:
    found: dict[str, int] = {}
    for item in items:
        if (item.id in kept) == wanted:
            found[item.kind] = found.get(item.kind, 0) + 1
    return found
