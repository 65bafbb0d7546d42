"""Made-up recordings and digits: enough to draw clips from, without the two public sources."""

import numpy as np
from avdigits.sources import Recording, Sources

SPEAKERS = ("ann", "bob", "cleo", "dan", "eve", "finn")


def made_up(indices: range = range(12), seed: int = 0) -> Sources:
    """Six speakers x ten digits x `indices` recordings of 0.2-0.9 s, and a thousand images per thousand places."""
    rng = np.random.default_rng(seed)
    recordings = []
    for digit in range(10):
        for speaker in SPEAKERS:
            for index in indices:
                length = int(rng.uniform(0.2, 0.9) * 8000)
                time = np.arange(length) / 8000
                tone = np.sin(2 * np.pi * (200 + 90 * digit) * time) * np.hanning(length) * rng.uniform(0.05, 0.8)
                recordings.append(Recording(f"{digit}_{speaker}_{index}", digit, speaker, index, tone))
    labels = np.tile(np.arange(10, dtype=np.uint8), 1000)
    images = np.zeros((len(labels), 28, 28), np.uint8)
    images[:, 6:22, 9:18] = 255
    images[np.arange(len(labels)), 8 + labels, 12] = 0
    return Sources(tuple(sorted(recordings, key=lambda r: r.name)), images, labels, 0, {"made": "up"})
