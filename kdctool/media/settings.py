"""What is asked of every clip, and who is asked for it: the settings of an extraction and its work items."""

from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any, Literal, get_args

from kdctool.errors import UsageFault

SAMPLE_RATE = 16000

DecoderName = Literal["auto", "ffmpeg", "pyav"]
Fit = Literal["crop", "pad", "squash", "keep"]
AudioFormat = Literal["flac", "wav", "opus"]
Lacking = Literal["none", "audio", "video", "both"]

MAX_FRAMES = 1000
OPUS_RATES = (8000, 12000, 16000, 24000, 48000)


@dataclass(frozen=True)
class Settings:
    """Everything that changes what is written. One output folder holds clips of one setting only."""

    frames: int = 10
    size: int = 224
    jpeg_quality: int = 92
    window_s: float = 10.0
    stride_s: float | None = None
    audio: AudioFormat = "flac"
    decoder: DecoderName = "auto"
    fps: float | None = None
    """Frames per second of a clip; replaces `frames`."""
    fit: Fit = "crop"
    sample_rate: int = SAMPLE_RATE
    video_stream: int | None = None
    """Which of the file's video streams, from 0, cover pictures not counted. None: the best."""
    audio_stream: int | None = None
    allow_missing: Lacking = "none"
    """Which modality a clip may lack and be kept all the same."""
    images: bool = False
    """Inputs are pictures: clips of one frame without sound. fit "keep" leaves their shape as it is."""

    def check(self) -> None:
        """UsageFault for values that make no sense."""
        limits = {
            "frames": (1, 1000),
            "size": (16, 2048),
            "jpeg_quality": (1, 100),
            "window_s": (0.1, 3600),
            "stride_s": (0.1, 86400),
            "fps": (0.01, 240),
            "sample_rate": (4000, 192_000),
            "video_stream": (0, 63),
            "audio_stream": (0, 63),
        }
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                flag = FLAG_OF_KEY[name]
                raise UsageFault(f"{flag} = {value} is not between {least} and {most}", f"give {flag} within these")
        choices = {"audio": AudioFormat, "decoder": DecoderName, "fit": Fit, "allow_missing": Lacking}
        for name, kind in choices.items():
            value, known = getattr(self, name), get_args(kind)
            if value not in known:
                raise UsageFault(f"{FLAG_OF_KEY[name]} = '{value}' is not known", f"there are: {', '.join(known)}")
        if self.images and (self.frames != 1 or self.fps is not None or self.stride_s is not None):
            raise UsageFault("--images: a picture is one frame", "leave --frames, --fps and --stride out")
        if self.fit == "keep" and not self.images:
            raise UsageFault("--fit keep is for --images: the frames of videos are square", "--fit crop, pad or squash")
        if self.fps is not None and len(self.moments(Fraction(self.window_s))) > MAX_FRAMES:
            raise UsageFault(
                f"--fps {self.fps:g} for {self.window_s:g} s is more than {MAX_FRAMES} frames a clip",
                "fewer frames a second, or shorter clips (--clip-seconds) with --stride",
            )
        if self.audio == "opus" and self.sample_rate not in OPUS_RATES:
            raise UsageFault(
                f"opus knows no {self.sample_rate} Hz",
                f"--audio-rate {', '.join(map(str, OPUS_RATES))}, or flac or wav",
            )

    def moments(self, length: Fraction) -> list[Fraction]:
        """When the frames of a clip of `length` seconds are taken, seconds after its start."""
        if self.fps is None:
            return [i * length / self.frames for i in range(self.frames)]
        rate = Fraction(str(self.fps))
        return [i / rate for i in range(max(1, ceil(length * rate)))]

    def may_lack(self, modality: Literal["audio", "video"]) -> bool:
        """Whether a clip without this modality is kept."""
        return self.allow_missing in (modality, "both")

    def record(self) -> dict[str, Any]:
        """The settings as they stand in done.json; equal records give equal bytes."""
        return {
            "allow_missing": self.allow_missing,
            "audio": self.audio,
            "audio_stream": self.audio_stream,
            "decoder": self.decoder,
            "fit": self.fit,
            "fps": self.fps,
            "frames": self.frames if self.fps is None else None,
            "jpeg_quality": self.jpeg_quality,
            "sample_rate": self.sample_rate,
            "size": self.size,
            "stride_s": self.stride_s,
            "video_stream": self.video_stream,
            "window_s": self.window_s,
            **({"images": True} if self.images else {}),
        }


FLAG_OF_KEY = {
    "allow_missing": "--allow-missing",
    "audio": "--audio",
    "audio_stream": "--audio-stream",
    "decoder": "--decoder",
    "fit": "--fit",
    "fps": "--fps",
    "frames": "--frames",
    "images": "--images",
    "jpeg_quality": "--jpeg-quality",
    "sample_rate": "--audio-rate",
    "size": "--size",
    "stride_s": "--stride",
    "video_stream": "--video-stream",
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
    file_bytes: int = 1 << 30
    """The largest file that a worker may write; more where it has to fetch a larger one from a store."""


@dataclass(frozen=True)
class Segment:
    """A part of a video, in milliseconds after its first frame; to the end where no length is given."""

    start_ms: int
    length_ms: int | None = None


@dataclass(frozen=True)
class Item:
    """One input: a file, or a segment of it, with what a list said about it."""

    path: str
    """Absolute, decoded as `os.fsdecode` does: names that are not UTF-8 survive. Or the URL of an object in a store."""
    source: str
    """The name in the manifest, relative to the folder or the list."""
    segment: Segment | None = None
    labels: tuple[str, ...] = ()
    split: str = ""
    furthest_ms: int | None = None
    """Where the last segment of the same file ends (its start, when it has no end); None where there is no other."""
    stored_bytes: int | None = None
    """Of an object in a store, as its listing says, -1 where it is not there; None for a file of this machine."""

    @property
    def key(self) -> str:
        """One text per input of an output folder."""
        if self.segment is None:
            return self.source
        return f"{self.source}\0{self.segment.start_ms}\0{self.segment.length_ms}"

    @property
    def is_remote(self) -> bool:
        """Whether a worker has to fetch it first."""
        return self.stored_bytes is not None

    @property
    def start_ms(self) -> int:
        return self.segment.start_ms if self.segment else 0


@dataclass(frozen=True)
class Window:
    """A clip's place in its video, exact: seconds after the first frame."""

    start_ms: int
    length: Fraction
    sample_rate: int = SAMPLE_RATE

    @property
    def start(self) -> Fraction:
        return Fraction(self.start_ms, 1000)

    @property
    def num_samples(self) -> int:
        return round(self.length * self.sample_rate)
