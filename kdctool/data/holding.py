"""Whether the clips of a training can be kept decoded, where, and what that takes: known before any is decoded."""

from dataclasses import dataclass
from pathlib import Path

import torch

from kdctool.data.clips import Clips, kinds
from kdctool.errors import EnvironmentFault, KdctoolError, UsageFault
from kdctool.files import size_text

SHARE, AUTO_SHARE = 0.9, 0.5
"""Of the free memory that may be taken where the recipe says so, and where it leaves the choice to us."""
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Extent:
    """What the decoded clips of a split are, by the index alone."""

    counts: list[int]
    """Frames of each clip that are kept."""
    side: int
    """Pixels; half of the model's for the tiles of a collage."""
    samples: int
    """Of each clip's sound, padded; 0 where it is not heard."""
    classes: int

    @classmethod
    def of(cls, clips: Clips) -> "Extent":
        """The extent of all clips of the split."""
        split, data, size = clips.split, clips.recipe.data, clips.recipe.model.image_size
        counts = [len(kinds(split.suffixes(i))[0]) if clips.seen else 0 for i in range(len(split))]
        side = size // 2 if data.tiling else size
        return cls(counts, side, clips.samples if clips.heard else 0, len(clips.labels or ()))

    @property
    def clips(self) -> int:
        return len(self.counts)

    @property
    def bytes(self) -> int:
        """Memory of all of it; 12 bytes of a clip are the length and the mean of its sound."""
        return 3 * self.side**2 * sum(self.counts) + self.clips * (2 * self.samples + 12 + self.classes)

    def said(self) -> str:
        """In words."""
        frames, seconds = sum(self.counts), self.samples / 16000
        seen = f"{frames:,} frames of {self.side} x {self.side}" if frames else ""
        heard = f"{self.clips:,} x {seconds:.1f} s of sound" if self.samples else ""
        return " and ".join(part for part in (seen, heard) if part)


@dataclass(frozen=True)
class Holding:
    """Where the clips are kept, decoded; None reads them anew every epoch."""

    where: torch.device | None
    row: tuple[str, str]
    """For the screen."""


def obstacle(clips: Clips) -> KdctoolError | None:
    """What of the recipe changes frames before they have the model's size or on the processor, so that none is kept."""
    if clips.seen and clips.recipe.data.crop == "random":
        return UsageFault(
            "data.hold keeps frames at the model's size; data.crop = 'random' cuts from them as they are stored",
            "--set data.hold=none, or data.crop = 'center'",
        )
    if clips.seen and clips.finetune.rand_augment:
        return UsageFault(
            "data.hold keeps frames as they are shown; finetune.rand_augment redraws them one by one on the processor",
            "--set data.hold=none, or leave finetune.rand_augment out",
        )
    return None


def choose(clips: Clips, device: torch.device, processes: int) -> Holding | None:
    """Where `data.hold` puts the clips, with `processes` of this training on the machine; None for "none".

    UsageFault where the recipe rules it out, EnvironmentFault where memory does not suffice; auto then reads instead.
    """
    asked = clips.recipe.data.hold
    if asked == "none":
        return None
    fault = obstacle(clips)
    if fault is None:
        extent = Extent.of(clips)
        main = torch.device("cpu")
        found = [_fits(extent, place, processes, asked) for place in _candidates(asked, device, main)]
        for where, cause in found:
            if not cause:
                return Holding(where, ("held clips", _row(extent, where, processes)))
        fault = EnvironmentFault(
            f"data.hold = '{asked}': " + "; ".join(cause for _, cause in found),
            "--set data.hold=none reads the clips in every epoch" + _other(asked, device),
        )
    if asked == "auto":
        return Holding(None, ("held clips", f"none, they are read in every epoch: {fault.cause}"))
    raise fault


def _candidates(asked: str, device: torch.device, main: torch.device) -> list[torch.device]:
    if asked == "memory" or device.type == "cpu":
        return [main]
    return [device] if asked == "device" else [device, main]


def _fits(extent: Extent, place: torch.device, processes: int, asked: str) -> tuple[torch.device, str]:
    """The place, and why the clips do not fit there, or nothing."""
    share = AUTO_SHARE if asked == "auto" else SHARE
    needed, free = extent.bytes * (1 if place.type == "cuda" else processes), free_memory(place)
    if needed <= share * free:
        return place, ""
    each = f" ({processes} processes keep {size_text(extent.bytes)} each)" if needed > extent.bytes else ""
    return place, (
        f"{extent.said()} take {size_text(needed)} of {_name(place)}{each}, {share:.0%} of the free "
        f"{size_text(free)} is {size_text(share * free)}"
    )


def _row(extent: Extent, where: torch.device, processes: int) -> str:
    each = f" in each of {processes} processes" if processes > 1 else ""
    return f"{size_text(extent.bytes)} of {_name(where)}{each}: {extent.said()}; {size_text(free_memory(where))} free"


def _other(asked: str, device: torch.device) -> str:
    return ", data.hold=memory keeps them in main memory" if asked == "device" and device.type == "cuda" else ""


def _name(place: torch.device) -> str:
    return "GPU memory" if place.type == "cuda" else "main memory"


def free_memory(place: torch.device) -> int:
    """Bytes that a process could still take there, within its container's limit."""
    if place.type == "cuda":
        return int(torch.cuda.mem_get_info(place)[0])
    import psutil  # What only reads shards must not need it.

    return min(int(psutil.virtual_memory().available), _left_in_container())


def _left_in_container() -> int:
    """Bytes below the limit of the control group; the page cache gives way. Unlimited where there is none."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return 1 << 62
    if not limit.isdigit():
        return 1 << 62
    return max(0, int(limit) - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
