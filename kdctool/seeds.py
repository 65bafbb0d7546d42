"""Randomness as a function of what it is for. No rank, worker or micro batch ever enters a seed."""

import hashlib


def fold(seed: int, *parts: int | str) -> int:
    """A 63-bit seed from a run's seed and what the draw is for, e.g. fold(seed, "mask", step).

    The same on every machine and Python version; different parts give independent streams.
    """
    text = ":".join([str(seed), *(f"{type(part).__name__}={part}" for part in parts)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1
