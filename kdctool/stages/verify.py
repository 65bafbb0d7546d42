"""`kdctool verify`: recomputes every hash of a folder that kdctool wrote, and says where it is damaged, and how."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from kdctool.errors import KdctoolError, UsageFault, VerificationFault
from kdctool.files import read_json, sha256_file, size_text
from kdctool.progress import Bar, bar, say
from kdctool.shards import foreign, index, tar
from kdctool.shards.entry import Entry
from kdctool.shards.extraction import (
    DONE,
    MANIFEST,
    USABLE,
    clip_files,
    clip_folder,
    content_digest,
    open_extraction,
    stated_digests,
)

FILES, QUARANTINE = "manifest.json", "quarantine.jsonl"
_SHOWN = 20


@dataclass(frozen=True)
class Damage:
    """One thing that is wrong. `offset` is in bytes from the start of `file`, -1 where it does not apply."""

    kind: str
    """short, long, missing, extra, header, bit flip, refused, index or content."""
    file: str
    text: str
    member: str = ""
    offset: int = -1

    def __str__(self) -> str:
        member = f" member {self.member}" if self.member else ""
        offset = f" at offset {self.offset}" if self.offset >= 0 else ""
        return f"{self.file}:{member}{offset} {self.text} ({self.kind})"


@dataclass
class Report:
    """What was checked, and what is wrong."""

    folder: str
    kind: str
    """shards, extraction or files."""
    num_files: int = 0
    num_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    damages: list[Damage] = field(default_factory=list)

    def payload(self) -> dict[str, Any]:
        """The report as plain values."""
        return asdict(self)


def run(path: Path) -> Report:
    """Check everything below `path`; VerificationFault names the first damage and counts the rest."""
    report = check(path)
    for damage in report.damages[:_SHOWN]:
        say(f"damaged: {damage}")
    if report.damages:
        more = f"; {len(report.damages)} damages in all" if len(report.damages) > 1 else ""
        raise VerificationFault(f"{path}: {report.damages[0]}{more}", _ADVICE[report.kind])
    return report


def check(path: Path) -> Report:
    """Like `run`, but damages are returned instead of raised."""
    path = Path(path)
    if not path.is_dir():
        raise UsageFault(
            f"{path} is not a folder", "kdctool verify takes a folder of shards, clips, a run or an export"
        )
    if (path / index.INDEX).is_file() or (path / index.BUILDING).is_dir() or foreign.tars(path):
        return _shards(path)
    if (path / MANIFEST).is_file() or (path / DONE).is_file():
        return _extraction(path)
    manifests = (
        [path / FILES]
        if (path / FILES).is_file()
        else sorted({*path.glob(f"*/{FILES}"), *path.glob(f"checkpoints/*/{FILES}")})
    )
    if manifests:
        return _files(path, manifests)
    raise UsageFault(
        f"{path} holds nothing that can be verified", "it looks for index.json, *.tar, manifest.jsonl, or manifest.json"
    )


_ADVICE = {
    "shards": "delete the damaged shard and run the same kdctool shard command again: it writes only what is missing",
    "extraction": "delete the damaged clips and run the same kdctool extract command again",
    "files": "go back to another checkpoint, or make the folder again",
}


def _shards(folder: Path) -> Report:
    report = Report(str(folder), "shards")
    if not (folder / index.INDEX).is_file():
        if (folder / index.BUILDING).is_dir():
            report.damages.append(Damage("missing", index.INDEX, "kdctool shard was stopped before the end"))
            return report
        return _foreign_tars(folder, report)
    try:
        made = index.read(folder)
    except KdctoolError as error:
        report.damages.append(Damage("index", index.INDEX, error.cause))
        return report
    there = {path.name for path in foreign.tars(folder)}
    with bar("verifying shards", len(made.entries), "tars") as progress:
        for entry in made.entries:
            report.damages += _tar(folder / entry.name, entry)
            _count(report, folder / entry.name, progress)
    for name in sorted(there - {entry.name for entry in made.entries}):
        report.damages.append(Damage("extra", name, "is not in the index"))
    return report


def _foreign_tars(folder: Path, report: Report) -> Report:
    report.notes.append(
        "there is no index.json: only the structure of the tars was checked, there is nothing to compare with"
    )
    paths = foreign.tars(folder)
    with bar("verifying shards", len(paths), "tars") as progress:
        for path in paths:
            report.damages += _structure(path)
            _count(report, path, progress)
    return report


def _tar(path: Path, entry: Entry) -> list[Damage]:
    """Damages of one shard: its size, its headers, every member's checksum, and the hash of the whole."""
    if not path.is_file():
        return [Damage("missing", path.name, f"{len(entry)} clips are in it")]
    size = path.stat().st_size
    names = entry.member_names()
    members = [tar.Member(*place) for place in zip(names, entry.offsets.tolist(), entry.lengths.tolist(), strict=True)]
    whole = [member for member in members if member.offset + member.length <= size]
    found = _structure(path)
    if size < entry.bytes:
        first = members[len(whole)] if len(whole) < len(members) else None
        lost = (
            f"{len(members) - len(whole)} of {len(members)} members are lost" if first else "the closing blocks are cut"
        )
        text = f"has {size} of {entry.bytes} bytes, {lost}"
        short = Damage("short", path.name, text, first.name if first else "", first.offset if first else size)
        found = [short, *found]
    elif size > entry.bytes:
        found.append(Damage("long", path.name, f"has {size} bytes instead of {entry.bytes}", offset=entry.bytes))
    sha256, sums = tar.hashes(path, whole)
    for member, crc, expected in zip(whole, sums, entry.crc.tolist(), strict=False):
        if crc != expected:
            text = f"does not match its checksum ({member.length} bytes)"
            found.append(Damage("bit flip", path.name, text, member.name, member.offset))
    if not found:
        found += _names(path, members)
    if not found and sha256 != entry.sha256:
        found.append(Damage("bit flip", path.name, "bytes outside of the members changed (headers or padding)"))
    return found


def _structure(path: Path) -> list[Damage]:
    try:
        tar.scan(path)
    except VerificationFault as error:
        offset = re.search(r"at offset (\d+)", error.cause)
        kind = "header" if "header" in error.cause and "cut" not in error.cause else "short"
        kind = "long" if "more data follows" in error.cause else kind
        return [Damage(kind, path.name, error.cause.partition(": ")[2], offset=int(offset[1]) if offset else -1)]
    except KdctoolError as error:
        return [Damage("refused", path.name, error.cause.partition(": ")[2])]
    return []


def _names(path: Path, members: list[tar.Member]) -> Iterator[Damage]:
    """Headers are sound: do they say what the index says?"""
    parts = [(tar.key_and_suffix(member.name), member.offset, member.length) for member in tar.scan(path)]
    real = [(f"{part[0]}.{part[1]}", offset, length) for part, offset, length in parts if part is not None]
    for member, there in zip(members, real, strict=False):
        if tuple(member) != there:
            yield Damage("header", path.name, f"is called {there[0]} in the tar", member.name, member.offset)
            return
    if len(members) != len(real):
        yield Damage("content", path.name, f"holds {len(real)} members, the index has {len(members)}")


def _extraction(folder: Path) -> Report:
    report = Report(str(folder), "extraction")
    try:
        extraction = open_extraction(folder)  # compares the manifest with done.json
        if (expected := stated_digests(extraction.done).get(QUARANTINE)) is not None:
            report.damages += _file(folder, folder / QUARANTINE, expected)
        with bar("verifying clips", None, "rows") as progress:
            for _, _, row in extraction.rows():
                progress.advance()
                if row["status"] in USABLE:
                    report.damages += _clip(folder, row, report)
    except KdctoolError as error:
        report.damages.append(Damage("index", MANIFEST, error.cause))
    return report


def _clip(folder: Path, row: dict[str, Any], report: Report) -> Iterator[Damage]:
    """A clip's files against the hash in its row; where that does not hold, decoding tells which file it is."""
    shown = str(clip_folder(folder, row["uid"]).relative_to(folder))
    try:
        files = clip_files(folder, row)
        contents = [(suffix, path.read_bytes()) for suffix, path in files]
    except KdctoolError as error:
        yield Damage("missing", shown, error.cause)
        return
    except OSError as error:
        yield Damage("missing", shown, f"cannot be read: {error.strerror}")
        return
    report.num_files += len(files)
    report.num_bytes += sum(len(data) for _, data in contents)
    if row.get("sha256") and content_digest(contents) == row["sha256"]:
        return
    found = False
    for _, path in files:
        if (cause := _undecodable(path)) is not None:
            found = True
            yield Damage("content", f"{shown}/{path.name}", f"cannot be decoded: {cause}")
    if row.get("sha256") and not found:
        yield Damage("content", shown, "one of its files changed: their sha256 is not that of the manifest")


def _undecodable(path: Path) -> str | None:
    import soundfile
    from PIL import Image

    try:
        if path.suffix == ".jpg":
            with Image.open(path, formats=["JPEG"]) as image:
                image.load()
        else:
            with soundfile.SoundFile(path) as file:
                for _ in file.blocks(blocksize=1 << 16, dtype="int16"):
                    pass
    except (OSError, RuntimeError, ValueError, Image.DecompressionBombError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _files(folder: Path, manifests: list[Path]) -> Report:
    report = Report(str(folder), "files")
    with bar("verifying files", None, "files") as progress:
        for manifest in manifests:
            shown = manifest.relative_to(folder)
            try:
                files = {str(name): str(expected) for name, expected in read_json(manifest)["files"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                report.damages.append(Damage("index", str(shown), f"cannot be read: {type(error).__name__} {error}"))
                continue
            for name, expected in sorted(files.items()):
                place = PurePosixPath(name)
                if place.is_absolute() or ".." in place.parts:
                    report.damages.append(
                        Damage("refused", str(shown), f"names a file outside of its folder: {name!a}")
                    )
                    continue
                report.damages += _file(folder, manifest.parent / name, expected)
                _count(report, manifest.parent / name, progress)
            others = sum(path.is_file() for path in manifest.parent.iterdir()) - 1 - len(files)
            if others > 0:
                report.notes.append(f"{shown} does not list {others} files beside it; they were not checked")
    return report


def _file(folder: Path, path: Path, expected: str) -> list[Damage]:
    """Damage of one file against its sha256."""
    shown = str(path.relative_to(folder))
    if not path.is_file():
        return [Damage("missing", shown, "is listed, but not there")]
    if sha256_file(path) != expected:
        kind = "short" if not path.stat().st_size else "bit flip"
        return [Damage(kind, shown, f"does not match its sha256 ({size_text(path.stat().st_size)})")]
    return []


def _count(report: Report, path: Path, progress: Bar) -> None:
    report.num_files += 1
    report.num_bytes += path.stat().st_size if path.is_file() else 0
    progress.advance()
