"""Inputs in an object store: the same names, and so the same uids, as if the folder lay on this machine."""

import posixpath
from collections.abc import Callable, Iterable
from dataclasses import replace

from kdctool.errors import EnvironmentFault
from kdctool.media.settings import Item
from kdctool.places import Missing, Place, Refused, Remote, located, many
from kdctool.progress import say

GONE = -1
"""`stored_bytes` of an object that is not there, or may not be seen."""


def objects(folder: Remote, is_media: Callable[[str], bool]) -> tuple[list[Item], int]:
    """The media files below a folder, and how many other ones; hidden folders are left out. Missing when empty."""
    say(f"listing {folder}")
    found = folder.files()
    if not found:
        raise Missing(f"there is nothing at {folder}", "is the bucket right, and the folder in it?")
    items: dict[str, Item] = {}
    num_ignored = 0
    for name, stored in found.items():
        *above, last = name.split("/")
        named_media = next((place for place, part in enumerate(above) if is_media(part)), None)
        if any(part.startswith(".") for part in above[:named_media]):
            continue
        if named_media is not None:  # A folder with the name of a video: one row, as for a folder of this machine.
            source = "/".join(above[: named_media + 1])
            items[source] = Item(str(folder / source), source, stored_bytes=GONE)
        elif is_media(last):
            items[name] = Item(str(folder / name), name, stored_bytes=stored.size)
        else:
            num_ignored += 1
    return list(items.values()), num_ignored


def place_in(folder: Remote, path: str) -> tuple[str, str]:
    """URL and source name of a path in a list that lies in `folder`; below the folder the name is relative to it."""
    key = posixpath.normpath(f"{folder.key}/{path}")
    return f"{folder.protocol}://{key}", posixpath.relpath(key, folder.key)


def url_in(folder: Place, url: str) -> tuple[str, str]:
    """URL and source name of a URL in a list."""
    place = located(url)
    inside = isinstance(folder, Remote) and place.key.startswith(f"{folder.key}/")
    inside = inside and place.protocol == folder.protocol  # type: ignore[union-attr]
    return str(place), place.key.removeprefix(f"{folder.key}/") if inside else str(place)  # type: ignore[union-attr]


def sized(items: Iterable[Item]) -> tuple[Item, ...]:
    """Ask the store for the size of what a list names; an object that is not there has -1."""
    items = tuple(items)
    urls = sorted({item.path for item in items if item.is_remote})
    if not urls:
        return items
    say(f"asking for the sizes of {len(urls)} objects")
    sizes = dict(zip(urls, many(_size, urls), strict=True))
    if all(size is None for size in sizes.values()):
        located(urls[0]).size()  # Says what is not allowed.
    known = {url: GONE if size is None else size for url, size in sizes.items()}
    return tuple(replace(item, stored_bytes=known[item.path]) if item.is_remote else item for item in items)


def _size(url: str) -> int | None:
    try:
        return located(url).size()
    except Missing:
        return GONE
    except Refused:
        return None


def check_reachable(root: Remote | None, item: Item) -> None:
    """EnvironmentFault when not one object is away, but the folder `root` or, of a list's object, its bucket."""
    place = root or located(item.path).bucket
    try:
        if place.kind():
            return
        cause = "nothing is there any more"
    except Refused as error:
        if root is None:  # Who may read an object may not always look into its bucket.
            return
        cause = error.cause
    except EnvironmentFault as error:
        cause = error.cause
    raise EnvironmentFault(f"cannot go on reading {place}: {cause}", "the same command goes on where it stopped")
