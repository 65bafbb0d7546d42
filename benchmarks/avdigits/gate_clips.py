"""Drawn clips for the cheat gates: one frame of each, or its sound, with the places of both digits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from avdigits import drawing, protocol, sound
from avdigits.sources import Sources
from kdctool.data.fbank import log_mel

EXTRACTED = [int(number * 2.5) for number in range(10)]
"""The frames of 25 that extraction keeps: a model sees one of them."""
MELS = 64
PLANTED = 0.25
"""Of its pulse the sounding digit of a control keeps at rest: 8 % larger, 25 % brighter than a silent one."""


@dataclass(frozen=True, eq=False)
class Drawn:
    """Clips as tensors; entry 0 of every pair is the sounding digit."""

    seen: Tensor
    """Frames uint8 (N, 3, 112, 112), or filter banks (N, T, F)."""
    boxes: Tensor
    """(N, 2, 4) x0, y0, x1, y1 in the frame that is shown."""
    places: Tensor
    """(N, 2, 2) centres in pixels."""


def drawn(sources: Sources, split: str, count: int, seed: int, sense: str, leak: bool) -> Drawn:
    """`count` clips of a split. With `leak` the answer shows: the sounding digit never rests, or tones tell its place.

    A split that enumerates its recordings is drawn again with other seeds until there are enough.
    """
    seen, boxes, places = [], [], []
    for number, clip in enumerate(islice(_clips(sources, split, seed), count)):
        pulses = sound.envelopes(clip, sources)
        if leak and sense == "video":
            pulses = (np.maximum(pulses[0], PLANTED), pulses[1] * 0)
        frame = EXTRACTED[number % len(EXTRACTED)]
        if sense == "video":
            picture = drawing.draw(clip, sources.images, pulses, [frame])[0]
            seen.append(torch.from_numpy(picture).permute(2, 0, 1))
        else:
            seen.append(torch.from_numpy(_heard(clip, sources, leak)))
        digits = (clip.sounding, clip.silent)
        boxes.append([drawing.box(d, float(pulse[frame])) for d, pulse in zip(digits, pulses, strict=True)])
        places.append([(digit.x, digit.y) for digit in digits])
    stacked = torch.stack(seen)
    if sense == "sound":
        stacked = torch.cat([log_mel(part.float() / 32768, num_mel_bins=MELS) for part in stacked.split(64)])
    return Drawn(stacked, torch.tensor(boxes), torch.tensor(places))


def _clips(sources: Sources, name: str, seed: int) -> Iterator[protocol.Clip]:
    split, again = protocol.SPLITS[name], 0
    while True:
        # A seed of its own: the benchmark's clips are not among them.
        first = 7_000_000 + 1000 * seed + again
        yield from protocol.plan_split(sources, split, None if split.enumerates else 2000, first)
        again += 1


def _heard(clip: protocol.Clip, sources: Sources, leak: bool) -> NDArray[np.int16]:
    if not leak:
        return sound.sound(clip, sources)
    times = np.arange(round(protocol.SECONDS * protocol.SOUND_HZ)) / protocol.SOUND_HZ
    x, y = clip.sounding.x / protocol.SIDE, clip.sounding.y / protocol.SIDE
    tones = np.sin(2 * np.pi * (500 + 2500 * x) * times) + np.sin(2 * np.pi * (4000 + 3000 * y) * times)
    heard = sound.sound(replace(clip, snr_db=protocol.SNR_DB[1]), sources)
    return (heard // 2 + 6000 * tones).astype(np.int16)
