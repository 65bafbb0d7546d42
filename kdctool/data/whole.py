"""Which clips of a split have both modalities; `extract --allow-missing` keeps clips that lack one."""

from kdctool.data.decode import AUDIO
from kdctool.shards.index import Split


def whole(split: Split) -> tuple[Split, dict[str, int]]:
    """The clips that have sound and frames, and how many lack what. The same split where none does."""
    heard = split.having(lambda members: any(name in AUDIO for name in members))
    seen = split.having(lambda members: any(name.endswith(".jpg") for name in members))
    lacking = {"no_audio": int((~heard & seen).sum()), "no_video": int((~seen).sum())}
    if not any(lacking.values()):
        return split, {}
    return split.subset(heard & seen), {reason: count for reason, count in lacking.items() if count}
