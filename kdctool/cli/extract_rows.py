"""What `kdctool extract` prints at its end."""

from typing import TYPE_CHECKING, Any

from kdctool.errors import quoted

if TYPE_CHECKING:
    from kdctool.stages.extract_summary import Summary


def following(done: "Summary") -> str:
    """What to do next."""
    if done.is_dry_run:
        return "the same command without --dry-run"
    if done.is_merged:
        return f"kdctool shard {quoted(done.out)} shards/"
    others = ", ".join(map(str, done.waiting_for[:20])) + (", ..." if len(done.waiting_for) > 20 else "")
    return f"the other parts ({others})" if others else "the same command with --merge in place of --part"


def rows_of(done: "Summary") -> list[tuple[str, str]]:
    """The table."""
    from kdctool.files import size_text

    state = "" if done.is_dry_run else ", all are done and merged" if done.is_merged else ", not merged yet"
    rows = [("part", done.part + state)] if done.part else []
    rows += [("videos", str(done.num_inputs))]
    if done.is_dry_run:
        rows += [("done already", str(done.num_inputs - done.num_todo))]
        rows += [("to do", f"{done.num_todo} ({size_text(done.num_bytes)} in these files)")]
        rows += _told(done)
    else:
        total = sum(done.counts.values())
        rows += [("clips", f"{total - done.counts.get('quarantined', 0)} of {total} usable")]
        rows += [(status, str(done.counts.get(status, 0))) for status in ("ok", "flagged")]
        rows += [(f"  {flag}", str(count)) for flag, count in done.flags.items()]
        rows += [(lack, str(count)) for lack, count in sorted(done.lacking.items())]
        rows += [("quarantined", str(done.counts.get("quarantined", 0)))]
        rows += [(f"  {reason}", str(count)) for reason, count in done.reasons.items()]
        rows += [("  why, for each", str(done.out / "quarantine.jsonl"))] if done.reasons and done.is_merged else []
        rows += [("  to keep them", hint)] if (hint := done.keeping()) else []
    rows += [("other files, ignored", str(done.num_ignored))]
    rows += [("named twice", str(done.num_duplicates))] if done.num_duplicates else []
    if done.num_same_bytes or done.num_look_alike:
        told = f"{done.num_same_bytes} copies to the byte, {done.num_look_alike} groups that look alike"
        rows += [("duplicates", f"{told} (duplicates.json)")]
    rows += [("kept of videos not given now", str(done.num_absent))] if done.num_absent else []
    if not done.is_dry_run:
        rows += [("made now", f"{done.num_made} in {done.seconds:.1f} s, {done.clips_per_s:.1f} clips/s")]
    return [*rows, ("folder", str(done.out))]


def _told(done: "Summary") -> list[tuple[str, str]]:
    """What a dry run found out by trying a few inputs."""
    from kdctool.files import size_text

    told = done.estimate
    if told is None:
        return []
    return [
        ("tried", f"{told.num_sampled} of them, {told.usable:.0%} of their clips usable"),
        ("clips, about", f"{told.num_clips:.0f}"),
        ("time, about", _time_text(told.seconds)),
        ("disk, about", f"{size_text(told.loose_bytes)} here, {size_text(told.tar_bytes)} more as shards"),
        (
            "  with --to-shards",
            f"{size_text(told.peak_bytes())} while it works, {size_text(told.tar_bytes)} at the end",
        ),
    ]


def _time_text(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def payload_of(done: "Summary") -> dict[str, Any]:
    """The same for --format json."""
    from dataclasses import asdict

    return asdict(done) | {
        "out": str(done.out),
        "clips_per_s": round(done.clips_per_s, 3),
        "seconds": round(done.seconds, 3),
    }
