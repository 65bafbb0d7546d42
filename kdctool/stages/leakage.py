"""Whether clips that are scored occur in training: by uid, by content, or through their source video."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from kdctool.data.decode import AUDIO
from kdctool.errors import DataFault, KdctoolError
from kdctool.progress import bar
from kdctool.shards import index as shard_index
from kdctool.shards.index import Index, Split
from kdctool.stages.eval_data import described, source_of
from kdctool.stages.load import Opened

Content = tuple[tuple[int, int], ...]
"""Length and crc32 of a clip's sound and first frame."""


def check(
    scored: Split, uids: Sequence[str], sources: Sequence[str], opened: Opened, index: Index, allow: bool
) -> tuple[str, ...]:
    """What there is to say about clips that are in training too; DataFault where there are some, unless `allow`.

    `uids` and `sources` are the scored clips of the split `scored` of `index`. The training splits of `index` and of
    the shards that the model was trained on are looked through.
    """
    if scored.name == opened.recipe.data.train_split and index.digest == opened.data_digest:
        return (f"all clips are training clips: split '{scored.name}' was asked for",)
    learned, notes = _training(scored, opened, index)
    wanted, videos = set(uids), set(sources)
    contents: dict[Content, list[str]] = {}
    for place in range(len(scored)):
        if scored.key(place) in wanted:
            contents.setdefault(_content(scored, place), []).append(scored.key(place))
    by_uid: set[str] = set()
    by_content: set[str] = set()
    by_video: set[str] = set()
    for split in learned:
        for key, source, content in _walk(split):
            by_uid |= {key} & wanted
            by_content.update(contents.get(content, ()))
            by_video |= {source} & videos
    from_video = {uid for uid, source in zip(uids, sources, strict=True) if source in by_video}
    seen = by_uid | by_content | from_video
    if not seen:
        return notes
    told = (
        f"{len(seen)} of {len(uids)} clips occur in training (same uid {len(by_uid)}, same content {len(by_content)}, "
        f"same source video {len(from_video)})"
    )
    if not allow:
        raise DataFault(
            f"{told}; the first is {min(seen)}",
            "kdctool shard keeps the clips of a video in one split; --allow-overlap scores them all the same",
        )
    return (*notes, told)


def _training(scored: Split, opened: Opened, index: Index) -> tuple[list[Split], tuple[str, ...]]:
    """Training splits to look through, and what could not be looked through."""
    name = opened.recipe.data.train_split
    here = [index.split(name)] if name in index.splits and name != scored.name else []
    if index.digest == opened.data_digest:
        return here, ()
    folder = Path(opened.train_shards or opened.recipe.data.shards)
    try:
        own = shard_index.load(folder, index_foreign=False)
    except KdctoolError as error:
        return here, (f"not compared with the clips the model was trained on: {error.cause}",)
    if own.digest != opened.data_digest:
        return here, (f"not compared with the clips the model was trained on: {folder} holds other shards now",)
    return [*here, own.split(name)], ()


def _walk(split: Split) -> Iterator[tuple[str, str, Content]]:
    with bar("comparing with training", len(split)) as progress:
        for place, about in enumerate(described(split)):
            key = split.key(place)
            yield key, source_of(about, key), _content(split, place)
            progress.advance()


def _content(split: Split, place: int) -> Content:
    suffixes = split.suffixes(place)
    sound = [name for name in suffixes if name in AUDIO][:1]
    frame = sorted((name for name in suffixes if name.endswith(".jpg")), key=lambda name: int(name.split(".")[0]))[:1]
    return tuple((length, crc) for _, _, length, crc in split.places(place, (*sound, *frame)))
