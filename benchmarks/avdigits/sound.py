"""What is heard: a recording at its gain, from its onset, in pink noise. And the envelope that the digit follows."""

import numpy as np
from numpy.typing import NDArray

from avdigits.protocol import GAINS_DB, NUM_FRAMES, SECONDS, SOUND_HZ, Clip, Digit
from avdigits.sources import RATE_HZ, Sources

Floats = NDArray[np.float64]

LEVEL = 0.06
"""RMS of a recording at 0 dB; speech peaks at about ten times that."""
STEP = 40
"""Samples at 8 kHz (5 ms) that share a value of the envelope."""
SMOOTH = 16
"""Steps (80 ms, a frame) under the window that smooths it."""
LOWEST_HZ = 40.0


def sound(clip: Clip, sources: Sources) -> NDArray[np.int16]:
    """The clip's sound (S,) at 16 kHz."""
    rng = np.random.default_rng([clip.seed, 1])
    spoken = upsample(sources.named[clip.sounding.recording].sound)
    level = LEVEL * 10 ** (GAINS_DB[clip.sounding.gain] / 20)
    mixed = pink(round(SECONDS * SOUND_HZ), rng) * level * 10 ** (-clip.snr_db / 20)
    first = round(clip.sounding.onset_s * SOUND_HZ)
    mixed[first : first + len(spoken)] += spoken * level / rms(spoken)
    return np.round(32_767 * np.clip(mixed, -1.0, 1.0)).astype(np.int16)


def envelopes(clip: Clip, sources: Sources) -> tuple[Floats, Floats]:
    """How far along its pulse (0-1) each digit is in every frame: (N,) of the sounding, (N,) of the silent one."""
    return _at_frames(clip.sounding, sources), _at_frames(clip.silent, sources)


def envelope(spoken: Floats) -> Floats:
    """Smoothed loudness of a recording at 8 kHz, a value for each 5 ms, the loudest 1."""
    steps = -(-len(spoken) // STEP)
    padded = np.zeros(steps * STEP)
    padded[: len(spoken)] = spoken**2
    window = np.hanning(SMOOTH + 2)[1:-1]
    smooth = np.sqrt(np.convolve(padded.reshape(steps, STEP).mean(1), window / window.sum(), mode="full"))
    return smooth / max(smooth.max(), 1e-12)


def upsample(spoken: Floats) -> Floats:
    """8 kHz to 16 kHz: zeros between samples, then a half-band filter."""
    stuffed = np.zeros(2 * len(spoken))
    stuffed[::2] = spoken
    place = np.arange(-31, 32)
    return np.convolve(stuffed, np.sinc(place / 2) * np.hamming(len(place)), mode="same")


def pink(samples: int, rng: np.random.Generator) -> Floats:
    """Noise whose power falls with frequency as 1 / f from 40 Hz on, RMS 1."""
    spectrum = np.fft.rfft(rng.standard_normal(samples))
    hertz = np.fft.rfftfreq(samples, 1 / SOUND_HZ)
    spectrum *= np.where(hertz >= LOWEST_HZ, 1 / np.sqrt(np.maximum(hertz, LOWEST_HZ)), 0.0)
    noise = np.fft.irfft(spectrum, samples)
    return noise / rms(noise)


def rms(values: Floats) -> float:
    return max(float(np.sqrt(np.mean(values**2))), 1e-9)


def _at_frames(digit: Digit, sources: Sources) -> Floats:
    values = envelope(sources.named[digit.recording].sound)
    # The window reaches half its length to both sides; value i lies in the middle of its step.
    times = digit.onset_s + (np.arange(len(values)) - (SMOOTH - 1) / 2 + 0.5) * STEP / RATE_HZ
    frames = np.arange(NUM_FRAMES) * SECONDS / NUM_FRAMES
    return np.interp(frames, times, values, left=0.0, right=0.0)
