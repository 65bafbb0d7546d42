"""What travels between the rooms, and the one legend of shape letters.

B  clips on this rank          J  views of a clip            R  ranks
G  clips of the global batch   N  frames of a clip           C  channels
H, W  pixels                   T  frames of the filter bank  F  mel bins
L  tokens of a modality        K  tokens that are kept       D  width
P  side of a patch             S  samples of a waveform
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]
"""clip (B,) int64, row (B,) int64 (place in the global batch), fbank (B, T, F), frame (B, C, H, W), label (B, K)."""


@dataclass(frozen=True)
class Clip:
    """A row of the manifest, as far as a stage after extraction needs it."""

    uid: str
    source: str
    start_s: float
    duration_s: float
    labels: tuple[str, ...] = ()
    status: str = "ok"
    reason: str = ""


@dataclass
class Sample:
    """A decoded clip before batching. Nothing here was invented: what could not be read raised."""

    uid: str
    waveform: Any
    """int16 (S,), mono, at the shards' sample rate."""
    frames: Any
    """uint8 (N, C, H, W): the frames that were asked for."""
    label: Any = None
    """float32 (classes,), or None in unlabelled data."""
    extra: dict[str, Any] = field(default_factory=dict)
