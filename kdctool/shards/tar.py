"""Finds the members of a tar and refuses what a shard must not hold. Nothing is ever extracted to disk.

Other readers take a tar that ends early for a shorter tar. Here a tar ends with its two zero blocks, or it is damaged.
"""

import os
import re
import tarfile
import zlib
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from kdctool.errors import DataFault, VerificationFault

BLOCK = 512
PICKLES = frozenset({"pyd", "pyc", "pickle", "pkl", "pth", "pt", "ckpt", "joblib", "dill"})
"""Suffixes that common readers decode by running code."""
_MAX_EXTENDED = 1 << 20
_MAX_MEMBER = 1 << 32
_CHUNK = 1 << 20
_KEY = re.compile(r"^((?:.*/|)[^.]+)[.]([^/]*)$", re.DOTALL)
_RECORD = re.compile(rb"(\d{1,7}) ([^=]+)=")
_DISTRUST = "do not use this shard; ask whoever made it"
_RENEW = "delete the shard and make or fetch it again"


class Member(NamedTuple):
    """A regular file in a tar: its bytes are `length` bytes from `offset` on."""

    name: str
    offset: int
    length: int


def scan(path: Path) -> list[Member]:
    """The regular files of a tar, in order.

    VerificationFault names the offset where a tar is cut or damaged; DataFault names a member that is refused:
    links, devices, names that leave the folder, pickles.
    """
    with open(path, "rb", buffering=0) as file:
        return _Scan(path.name, file, os.fstat(file.fileno()).st_size).members()


def hashes(path: Path, members: list[Member]) -> tuple[str, list[int]]:
    """sha256 of the whole file and crc32 of every member, in one sequential pass."""
    whole, sums = sha256(), []
    with open(path, "rb") as file:
        for member in members:
            _feed(file, member.offset - file.tell(), whole)
            sums.append(_feed(file, member.length, whole))
        while chunk := file.read(_CHUNK):
            whole.update(chunk)
    return whole.hexdigest(), sums


def key_and_suffix(name: str) -> tuple[str, str] | None:
    """WebDataset's rule: a key ends at the first dot of the file name. None for files without a dot.

    A lone `jpg` or `jpeg` is frame 0 of its clip.
    """
    match = _KEY.match(name)
    if match is None:
        return None
    suffix = match[2].lower()
    return match[1], "0.jpg" if suffix in ("jpg", "jpeg") else suffix


def refusal(name: str) -> str | None:
    """Why a member of this name is not accepted, or None."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        return "has an absolute name"
    if ".." in re.split(r"[\\/]", name):
        return "has '..' in its name"
    if not name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "has control characters in its name, or none"
    if PICKLES & set(os.path.basename(name).lower().split(".")[1:]):
        return "is a pickle, which can run code"
    return None


def _feed(file: BinaryIO, count: int, whole: Any) -> int:
    crc = 0
    while count > 0:
        chunk = file.read(min(count, _CHUNK))
        if not chunk:
            raise VerificationFault(f"{file.name} became shorter while it was read", _RENEW)
        whole.update(chunk)
        crc = zlib.crc32(chunk, crc)
        count -= len(chunk)
    return crc


class _Scan:
    def __init__(self, shard: str, file: BinaryIO, size: int) -> None:
        self.shard, self.file, self.size = shard, file, size
        self.place = 0
        self.last = "the start"

    def members(self) -> list[Member]:
        found: list[Member] = []
        name, length = "", -1  # from an extended header, for the next member
        while (info := self._header()) is not None:
            if info.type in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME):
                extended = self._extended(info)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    name = extended.rstrip(b"\0").decode("utf-8", "surrogateescape")
                else:
                    records = self._pax(extended)
                    if info.type == tarfile.XGLTYPE and records:
                        raise self._refused(info.name, "sets names or sizes of all members")
                    name = records.get("path", name)
                    length = int(records.get("size", length))
                continue
            member = Member(name or info.name, self.place, info.size if length < 0 else length)
            name, length = "", -1
            if self._accept(member, info.type):
                found.append(member)
                self.place += -(-member.length // BLOCK) * BLOCK
            self.last = f"member {member.name}"
        return found

    def _read(self, count: int) -> bytes:
        data = os.pread(self.file.fileno(), count, self.place)
        self.place += len(data)
        return data

    def _header(self) -> tarfile.TarInfo | None:
        start = self.place
        block = self._read(BLOCK)
        if not block:
            kind = (
                "it is empty (0 bytes)" if not self.size else "cut at a boundary: the closing zero blocks are missing"
            )
            raise self._damaged(start, kind)
        if len(block) < BLOCK:
            raise self._damaged(start, f"cut inside a header: {len(block)} of {BLOCK} bytes are there")
        if not block.strip(b"\0"):
            self._closed(start)
            return None
        try:
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._damaged(start, f"damaged header ({error})") from error

    def _closed(self, start: int) -> None:
        if self.size - start < 2 * BLOCK:
            raise self._damaged(start, "cut at a boundary: one of the two closing zero blocks is missing")
        while chunk := self._read(_CHUNK):
            if chunk.strip(b"\0"):
                raise self._damaged(start, "the tar closes here, but more data follows")

    def _extended(self, info: tarfile.TarInfo) -> bytes:
        if not 0 <= info.size <= _MAX_EXTENDED:
            raise self._refused(info.name, f"is an extended header of {info.size} bytes")
        start = self.place
        data = self._read(-(-info.size // BLOCK) * BLOCK)
        if len(data) < info.size:
            raise self._damaged(start, "cut inside an extended header")
        return data[: info.size]

    def _pax(self, data: bytes) -> dict[str, str]:
        """The records that move a member (path, size); all others are of no interest here."""
        records: dict[str, str] = {}
        place = 0
        while place < len(data):
            match = _RECORD.match(data, place)
            if match is None or int(match[1]) <= match.end() - place or place + int(match[1]) > len(data):
                raise self._damaged(self.place, "damaged extended header")
            key = match[2].decode("utf-8", "replace")
            value = data[match.end() : place + int(match[1]) - 1].decode("utf-8", "surrogateescape")
            if key.startswith("GNU.sparse"):
                raise self._refused(self.last, "is followed by a sparse file")
            if key == "size" and not (value.isascii() and value.isdigit() and len(value) < 20):
                raise self._damaged(self.place, "damaged size in an extended header")
            if key in ("path", "size"):
                records[key] = value
            place += int(match[1])
        return records

    def _accept(self, member: Member, kind: bytes) -> bool:
        if kind in (tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.GNUTYPE_LONGLINK):
            raise self._refused(member.name, "is a link")
        if kind not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.DIRTYPE):
            raise self._refused(member.name, f"is not a plain file (type {kind!r})")
        reason = refusal(member.name)
        if reason is not None:
            raise self._refused(member.name, reason)
        if kind == tarfile.DIRTYPE or (kind == tarfile.AREGTYPE and member.name.endswith("/")):
            return False
        if not 0 <= member.length < _MAX_MEMBER:
            raise self._refused(member.name, f"claims {member.length} bytes")
        if member.offset + member.length > self.size:
            there = max(0, self.size - member.offset)
            self.last = f"member {member.name}"
            raise self._damaged(member.offset, f"cut inside this member: {there} of {member.length} bytes are there")
        return True

    def _damaged(self, offset: int, kind: str) -> VerificationFault:
        return VerificationFault(f"{self.shard}: {kind}, at offset {offset}, {self._after()}", _RENEW)

    def _after(self) -> str:
        return self.last if self.last == "the start" else f"at or after {self.last}"

    def _refused(self, name: str, reason: str) -> DataFault:
        shown = ascii(name)
        return DataFault(
            f"{self.shard}: member {shown} {reason}, at offset {self.place}; the shard is refused", _DISTRUST
        )
