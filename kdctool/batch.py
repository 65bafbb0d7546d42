"""What travels between the rooms, and the one legend of shape letters.

B  clips on this rank          J  views of a clip            R  ranks
G  clips of the global batch   N  frames of a clip           C  channels
H, W  pixels                   T  frames of the filter bank  F  mel bins
L  tokens of a modality        K  tokens that are kept       D  width
P  side of a patch             S  samples of a waveform
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

Batch = dict[str, "Tensor"]
"""clip (B,) int64, row (B,) int64 (place in the global batch), fbank (B, T, F), frame (B, C, H, W), label (B, K)."""
