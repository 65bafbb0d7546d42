"""One extraction on many machines: which inputs a part has, and the notes that it keeps apart from those of others."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

from kdctool.errors import UsageFault
from kdctool.media.inputs import Inputs
from kdctool.media.settings import Item

_NOTES = re.compile(r"\.(ledger|lock)-(\d+)-of-(\d+)(\.jsonl)?")
COMPLETE = b'{"complete":true}\n'
"""The last line of the notes of a part that is done."""


@dataclass(frozen=True)
class Part:
    """Part `number` of `count`, from 1."""

    number: int
    count: int

    @property
    def ledger(self) -> str:
        return f".ledger-{self.number}-of-{self.count}.jsonl"

    @property
    def lock(self) -> str:
        return f".lock-{self.number}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, found: Inputs) -> Inputs:
        """The inputs of this part."""
        return replace(found, items=tuple(item for item in found.items if number_of(item, self.count) == self.number))


def parse(text: str) -> Part:
    """'2/8' as a part; UsageFault for anything else."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageFault(f"--part {text!a} is no part", "write i/n with i from 1 to n, for example --part 2/8")
    return Part(int(match[1]), int(match[2]))


def number_of(item: Item, count: int) -> int:
    """Which of `count` parts an input belongs to, from 1. More files move no input; segments stay with their file."""
    return int.from_bytes(sha256(os.fsencode(item.source)).digest()[:8]) % count + 1


def ledgers(out: Path) -> list[Path]:
    """The notes of all parts in a folder, sorted."""
    names = sorted(os.listdir(out)) if out.is_dir() else []
    return [out / name for name in names if is_part_file(name) and name.endswith(".jsonl")]


def is_part_file(name: str) -> bool:
    """Whether a part wrote this file into the output folder."""
    return _NOTES.fullmatch(name) is not None


def check_count(out: Path, part: Part) -> None:
    """UsageFault when the folder holds an unfinished extraction that was split in another way."""
    for path in ledgers(out):
        match = _NOTES.fullmatch(path.name)
        if match is not None and int(match[3]) != part.count:
            raise UsageFault(
                f"{out} holds parts of {match[3]}, --part {part} is one of {part.count}",
                f"split into {match[3]} again, or let one command without --part do the rest",
            )


def missing(out: Path, items: Iterable[Item], done: Iterable[str], count: int) -> list[int]:
    """The parts that are not complete; `done` are the inputs that were there before the parts began. Looks only."""
    known = set(done)
    wanted = {number_of(item, count) for item in items if item.key not in known}
    there = {Part(number, count).ledger: number for number in range(1, count + 1)}
    begun = {there[path.name]: path for path in ledgers(out) if path.name in there}
    return sorted(number for number in wanted | begun.keys() if number not in begun or not is_complete(begun[number]))


def is_complete(path: Path) -> bool:
    """Whether the last line of a part's notes says that it is done. Notes that are gone were merged."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - len(COMPLETE)))
            return file.read() == COMPLETE
    except FileNotFoundError:
        return True
