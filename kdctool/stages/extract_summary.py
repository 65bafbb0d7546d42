"""What an extraction found, left out and made, and whether that is good enough."""

from collections import Counter
from dataclasses import dataclass, field

from kdctool.errors import DataFault
from kdctool.media.ledger import Ledger
from kdctool.media.sample import Estimate
from kdctool.places import Place
from kdctool.stages.extract_work import Todo, Work

_MODALITIES = {"audio", "video"}


@dataclass(frozen=True)
class Summary:
    """What an extraction found, left out and made."""

    out: Place
    num_inputs: int
    num_bytes: int
    """Of the inputs that are not done."""
    num_todo: int
    """Inputs that were not done when the command began."""
    num_ignored: int
    num_duplicates: int
    num_absent: int = 0
    """Inputs whose clips are in the folder, but which were not given this time."""
    num_made: int = 0
    """Rows made by this command."""
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=dict)
    """Rows of the manifest by status."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Quarantined rows by reason, the most frequent first."""
    flags: dict[str, int] = field(default_factory=dict)
    lacking: dict[str, int] = field(default_factory=dict)
    """Clips that were kept without sound or without picture."""
    num_same_bytes: int = 0
    """Sources that are copies of another one, to the byte."""
    num_look_alike: int = 0
    """Groups of clips of different sources that look alike."""
    part: str = ""
    """Of a part, i/n; the counts are then those of its inputs, until the parts are merged."""
    is_merged: bool = True
    """Whether manifest.jsonl and done.json stand: not before the last part is done."""
    waiting_for: tuple[int, ...] = ()
    """The parts that are not done, as far as this one can see."""
    is_dry_run: bool = False
    estimate: Estimate | None = None
    """Of a dry run: what is to do costs, told from a sample."""

    def keeping(self) -> str:
        """How clips are kept that were quarantined because they lack sound or picture; empty where none were."""
        kinds = [kind for kind in ("audio", "video") if self.reasons.get(f"no_{kind}")]
        if not kinds:
            return ""
        lacking = "both" if len(kinds) == 2 else kinds[0]
        number = sum(self.reasons[f"no_{kind}"] for kind in kinds)
        return f"kdctool extract --allow-missing {lacking}, into another folder, keeps {number} of them"

    @property
    def clips_per_s(self) -> float:
        return self.num_made / self.seconds if self.seconds else 0.0


def summarise(out: Place, work: Work, ledger: Ledger, todo: Todo, num_made: int = 0, seconds: float = 0.0) -> Summary:
    """Count what the folder holds; with the notes of a part, what is there of its inputs."""
    found, sizes = work.found, work.sizes
    given = {item.key for item in found.items}
    here = [name for key, (_, uids) in ledger.finished.items() if key in given for name in uids]
    rows = [ledger.rows[name] for name in here if name in ledger.rows] if ledger.part else list(ledger.rows.values())
    usable = [row for row in rows if row["status"] != "quarantined"]
    return Summary(
        out=out,
        num_inputs=len(found.items),
        num_bytes=sum(max(0, sizes[item.key]) for item, _ in todo),
        num_todo=len(todo),
        num_ignored=found.num_ignored,
        num_duplicates=found.num_duplicates,
        num_absent=0 if ledger.part else sum(key not in given for key in ledger.finished),
        num_made=num_made,
        seconds=seconds,
        counts=dict(Counter(row["status"] for row in rows)),
        reasons=dict(Counter(row["reason"] for row in rows if row["status"] == "quarantined").most_common()),
        flags=dict(Counter(flag for row in rows if row["status"] == "flagged" for flag in row["reason"].split("+"))),
        lacking=dict(Counter(f"without {kind}" for row in usable for kind in _MODALITIES - {*row["modalities"]})),
        num_same_bytes=sum(len(group["sources"]) - 1 for group in ledger.duplicates.get("same_bytes", [])),
        num_look_alike=len(ledger.duplicates.get("look_alike", [])),
    )


def judge(done: Summary, max_bad: float) -> None:
    """DataFault when nothing is usable, or when a larger share than `max_bad` is not."""
    num_bad, num_rows = done.counts.get("quarantined", 0), sum(done.counts.values())
    told = ", ".join(f"{count} {reason}" for reason, count in done.reasons.items())
    look = f"{done.out / 'quarantine.jsonl'} says why for each; kdctool extract --retry-quarantined tries them again"
    if hint := done.keeping():
        look += f"; {hint}"
    if num_bad == num_rows:
        raise DataFault(f"none of {num_rows} clips is usable: {told}", look)
    if num_bad > max_bad * num_rows:
        raise DataFault(f"{num_bad} of {num_rows} clips are quarantined, more than --max-bad {max_bad:g}: {told}", look)
