"""What is asked of every clip, and who is asked for it: the settings of an extraction and its work items."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal, get_args

from kdctool.errors import UsageFault

SAMPLE_RATE = 16000

DecoderName = Literal["auto", "ffmpeg", "pyav"]


@dataclass(frozen=True)
class Settings:
    """Everything that changes what is written. One output folder holds clips of one setting only."""

    frames: int = 10
    size: int = 224
    jpeg_quality: int = 92
    window_s: float = 10.0
    stride_s: float | None = None
    audio: str = "flac"
    decoder: DecoderName = "auto"

    def check(self) -> None:
        """UsageFault for values that make no sense."""
        limits = {
            "frames": (1, 1000),
            "size": (16, 2048),
            "jpeg_quality": (1, 100),
            "window_s": (0.1, 3600),
            "stride_s": (0.1, 86400),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                raise UsageFault(f"{FLAG_OF_KEY[name]} = {value} is not between {least} and {most}")
        if self.audio != "flac":
            raise UsageFault(f"--audio = '{self.audio}' is not known", "the sound is written as flac")
        if self.decoder not in get_args(DecoderName):
            raise UsageFault(
                f"--decoder = '{self.decoder}' is not known", f"there are: {', '.join(get_args(DecoderName))}"
            )

    def record(self) -> dict[str, Any]:
        """The settings as they stand in done.json; equal records give equal bytes."""
        return {
            "audio": self.audio,
            "decoder": self.decoder,
            "frames": self.frames,
            "jpeg_quality": self.jpeg_quality,
            "sample_rate": SAMPLE_RATE,
            "size": self.size,
            "stride_s": self.stride_s,
            "window_s": self.window_s,
        }


FLAG_OF_KEY = {
    "audio": "--audio",
    "decoder": "--decoder",
    "frames": "--frames",
    "jpeg_quality": "--jpeg-quality",
    "size": "--size",
    "stride_s": "--stride",
    "window_s": "--clip-seconds",
}
"""Which option of `kdctool extract` sets a key of the record."""


@dataclass(frozen=True)
class Tools:
    """What a worker needs to know about the machine; never part of the result's identity."""

    ffmpeg: str = ""
    """Path of the binary; empty where none is needed."""
    ffmpeg_version: str = ""
    clip_timeout_s: float = 120.0
    """Wall time for one clip, and for reading one file's packets."""
    memory_bytes: int = 4 << 30
    """Address space of a worker and of an ffmpeg process."""


@dataclass(frozen=True)
class Segment:
    """A part of a video, in milliseconds after its first frame; to the end where no length is given."""

    start_ms: int
    length_ms: int | None = None


@dataclass(frozen=True)
class Item:
    """One input: a file, or a segment of it, with what a list said about it."""

    path: str
    """Absolute, decoded as `os.fsdecode` does: names that are not UTF-8 survive."""
    source: str
    """The name in the manifest, relative to the folder or the list."""
    segment: Segment | None = None
    labels: tuple[str, ...] = ()
    split: str = ""

    @property
    def key(self) -> str:
        """One text per input of an output folder."""
        if self.segment is None:
            return self.source
        return f"{self.source}\0{self.segment.start_ms}\0{self.segment.length_ms}"

    @property
    def start_ms(self) -> int:
        return self.segment.start_ms if self.segment else 0


@dataclass(frozen=True)
class Window:
    """A clip's place in its video, exact: seconds after the first frame."""

    start_ms: int
    length: Fraction

    @property
    def start(self) -> Fraction:
        return Fraction(self.start_ms, 1000)

    @property
    def num_samples(self) -> int:
        return round(self.length * SAMPLE_RATE)
