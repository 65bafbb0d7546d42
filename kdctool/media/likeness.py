"""What a clip looks like, in 192 bits: equal or nearly equal for copies that were scaled or compressed anew."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 192
_FLAT = 4.0
"""Grey levels: a picture that varies less says nothing."""
_CLEARLY = 2
"""Grey levels: between cells that are as good as equal, the noise of compression would decide."""


def frame_hash(frames: list[NDArray[np.uint8]]) -> str:
    """48 hex digits from the first, the middle and the last frame (H, W, 3); empty where all three are flat.

    A difference hash: a frame is shrunk to 9 x 8 grey cells, and a bit says whether a cell is clearly brighter than
    the one to its left.
    """
    if not frames:
        return ""
    chosen = [frames[place] for place in (0, len(frames) // 2, len(frames) - 1)]
    cells = np.stack(
        [np.asarray(Image.fromarray(frame).convert("L").resize((9, 8), Image.Resampling.BOX)) for frame in chosen]
    )
    if max(float(picture.std()) for picture in cells) < _FLAT:
        return ""
    return np.packbits(np.diff(cells.astype(np.int16), axis=2) > _CLEARLY).tobytes().hex()
