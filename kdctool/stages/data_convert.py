"""`kdctool data convert`: clips in the lists and folders of another code base.

`cavmae` writes OUT.json (all clips), OUT_<split>.json where there are several splits, OUT_labels.csv, and beside them
the folder OUT/ with audio/<uid>.flac and video/frame_<i>/<uid>.jpg, as the CAV-MAE loader expects them. Files of an
extraction are hard-linked where the disk allows it.
"""

import csv
import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from kdctool.errors import DataFault, UsageFault, quoted
from kdctool.files import disk_faults, write_bytes
from kdctool.progress import bar, say
from kdctool.shards import index
from kdctool.shards.extraction import USABLE, clip_files, open_extraction
from kdctool.shards.labels import check_known, read_class_names
from kdctool.shards.read import ShardReader
from kdctool.shards.stock import is_extraction

Media = list[tuple[str, Path | bytes]]


@dataclass(frozen=True)
class Converted:
    """What was written."""

    num_rows: int
    num_clips: int
    left_out: dict[str, int]
    """Reason -> clips that the other code base cannot use."""
    lists: dict[str, int]
    """Path of a list -> its clips."""
    label_csv: str
    num_labels: int
    unlabelled: int
    media_folder: str
    """Empty when only the lists were written."""
    next_step: str

    def payload(self) -> dict[str, Any]:
        """The summary as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Clip:
    uid: str
    labels: tuple[str, ...]
    split: str
    suffixes: tuple[str, ...]
    """What there is: flac or wav, 0.jpg, 1.jpg ..."""
    media: Callable[[], Media]


def run(
    clips: Path,
    target: Path,
    *,
    to: str = "cavmae",
    class_names: Path | None = None,
    media: bool = True,
    overwrite: bool = False,
) -> Converted:
    """Write the lists `target` and, with `media`, the files they name."""
    clips, target = Path(clips), Path(target)
    if to not in CONVERTERS:
        raise UsageFault(f"--to {to}: no such format", f"there are: {', '.join(CONVERTERS)}")
    if target.suffix.lower() != ".json":
        raise UsageFault(f"{target} is no .json", f"kdctool data convert {quoted(clips)} {quoted(f'{target}.json')}")
    if target.exists() and not overwrite:
        raise UsageFault(f"{target} exists", "name another file, or say --overwrite")
    if not clips.is_dir():
        raise UsageFault(f"there is no folder {clips}", f"kdctool extract VIDEOS {quoted(clips)}")
    left_out: Counter[str] = Counter()
    if is_extraction(clips):
        found = list(_extracted(clips, left_out))
        labels: tuple[str, ...] = tuple(sorted({label for clip in found for label in clip.labels}))
    else:
        opened = index.load(clips)
        labels = opened.labels
        found = list(_sharded(opened))
    return CONVERTERS[to](sorted(found, key=lambda clip: clip.uid), labels, left_out, target, class_names, media)


def _to_cavmae(
    found: list[_Clip],
    labels: tuple[str, ...],
    left_out: Counter[str],
    target: Path,
    class_names: Path | None,
    media: bool,
) -> Converted:
    kept = []
    for clip in found:
        lacks = [name for name, there in (("no_video", "0.jpg"), ("no_audio", None)) if _lacks(clip, there)]
        if lacks:
            left_out[lacks[0]] += 1
        else:
            kept.append(clip)
    if not kept:
        raise DataFault("no clip has both audio and frames", "the CAV-MAE loader needs both; see the manifest")
    if class_names is not None:
        classes = read_class_names(class_names)
        named = ((label, f"clip {clip.uid}") for clip in kept for label in clip.labels)
        check_known(named, classes.names, str(class_names))
        mids = {name: mid for mid, name in classes.by_id.items()}
        labels = classes.names
    else:
        mids = {name: f"label_{place}" for place, name in enumerate(labels)}
    folder = target.absolute().with_suffix("")
    if media:
        _write_media(folder, kept)
    rows = [_row(clip, folder, mids) for clip in kept]
    lists = {str(target): rows}
    splits = sorted({clip.split for clip in kept if clip.split})
    if len(splits) > 1:
        for split in splits:
            lists[str(target.with_name(f"{target.stem}_{split}.json"))] = [r for r in rows if r["split"] == split]
    label_csv = target.with_name(f"{target.stem}_labels.csv")
    write_bytes(label_csv, _label_csv(labels, mids).encode("utf-8", "surrogateescape"))
    for path, part in reversed(lists.items()):
        write_bytes(Path(path), (json.dumps({"data": part}, indent=1) + "\n").encode())
    unlabelled = sum(not clip.labels for clip in kept)
    if unlabelled:
        say(f"{unlabelled} clips have no label; the CAV-MAE loader stops at the first of them")
    return Converted(
        num_rows=len(found) + sum(left_out.values()) - (len(found) - len(kept)),
        num_clips=len(kept),
        left_out=dict(left_out.most_common()),
        lists={path: len(part) for path, part in lists.items()},
        label_csv=str(label_csv),
        num_labels=len(labels),
        unlabelled=unlabelled,
        media_folder=str(folder) if media else "",
        next_step=f"--data-train {target} --label-csv {label_csv} in the CAV-MAE scripts",
    )


CONVERTERS: dict[str, Callable[..., Converted]] = {"cavmae": _to_cavmae}
"""Name in `--to` -> writer."""


def _lacks(clip: _Clip, suffix: str | None) -> bool:
    return suffix not in clip.suffixes if suffix else _audio(clip) is None


def _audio(clip: _Clip) -> str | None:
    return next((suffix for suffix in clip.suffixes if not suffix.endswith(".jpg")), None)


def _row(clip: _Clip, folder: Path, mids: dict[str, str]) -> dict[str, str]:
    return {
        "video_id": clip.uid,
        "wav": str(folder / "audio" / f"{clip.uid}.{_audio(clip)}"),
        "video_path": str(folder / "video"),
        "labels": ",".join(mids[label] for label in clip.labels),
        "split": clip.split,
    }


def _label_csv(labels: Iterable[str], mids: dict[str, str]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    text.write("index,mid,display_name\n")
    for place, label in enumerate(labels):
        writer.writerow([place, mids[label], label])
    return text.getvalue()


def _write_media(folder: Path, clips: list[_Clip]) -> None:
    with disk_faults(folder), bar("writing media", len(clips)) as progress:
        for clip in clips:
            for suffix, content in clip.media():
                if suffix.endswith(".jpg"):
                    path = folder / "video" / f"frame_{suffix.partition('.')[0]}" / f"{clip.uid}.jpg"
                else:
                    path = folder / "audio" / f"{clip.uid}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                if isinstance(content, bytes):
                    path.write_bytes(content)
                else:
                    _link(content, path)
            progress.advance()


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except OSError:  # another disk, or one without hard links
        shutil.copyfile(source, path)


def _extracted(out: Path, left_out: Counter[str]) -> Iterator[_Clip]:
    for _, _, row in open_extraction(out).rows():
        if row["status"] not in USABLE:
            left_out[str(row.get("reason") or row["status"])] += 1
            continue
        files = clip_files(out, row)
        labels = tuple(dict.fromkeys(map(str, row["labels"])))
        suffixes = tuple(suffix for suffix, _ in files)

        yield _Clip(row["uid"], labels, str(row.get("split") or ""), suffixes, partial(list, files))


def _sharded(opened: index.Index) -> Iterator[_Clip]:
    for name in opened.splits:
        split = opened.split(name)
        reader = ShardReader(split)
        for i in range(len(split)):
            members = split.members(i)
            wanted = tuple(suffix for suffix in members if suffix in ("flac", "wav") or suffix.endswith(".jpg"))
            try:
                about = json.loads(reader.read(i, ["json"])["json"]) if "json" in members else {}
                labels = tuple(dict.fromkeys(map(str, about.get("labels") or ())))
            except (ValueError, AttributeError, TypeError) as error:
                raise DataFault(f"{split.path(i)}: the json of {split.key(i)} is damaged: {error}") from error

            def media(reader: ShardReader = reader, i: int = i, wanted: tuple[str, ...] = wanted) -> Media:
                return list(reader.read(i, wanted).items())

            yield _Clip(split.key(i), labels, name, wanted, media)
