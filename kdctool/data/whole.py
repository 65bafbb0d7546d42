"""Which clips of a split have the modalities that are read; `extract --allow-missing` keeps clips that lack one."""

from collections.abc import Collection

from kdctool.data.decode import AUDIO
from kdctool.shards.index import Split

BOTH = ("audio", "video")


def whole(split: Split, parts: Collection[str] = BOTH) -> tuple[Split, dict[str, int]]:
    """The clips that have `parts` of 'audio' and 'video', and how many lack what. The same split where none does."""
    heard = split.having(lambda members: any(name in AUDIO for name in members))
    seen = split.having(lambda members: any(name.endswith(".jpg") for name in members))
    if "audio" not in parts:
        heard[:] = True
    if "video" not in parts:
        seen[:] = True
    lacking = {"no_audio": int((~heard & seen).sum()), "no_video": int((~seen).sum())}
    if not any(lacking.values()):
        return split, {}
    return split.subset(heard & seen), {reason: count for reason, count in lacking.items() if count}
