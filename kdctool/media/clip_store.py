"""Where the clips of an extraction lie, and how one looks for them: in its folder, or in an object store."""

import shutil
from pathlib import Path
from typing import Protocol

from kdctool.media.names import clip_folder
from kdctool.media.rows import Row, is_intact, is_there
from kdctool.places import Remote, many

CLIPS = "clips"


class ClipStore(Protocol):
    """The clips that the rows of a manifest speak of."""

    def has(self, row: Row) -> bool:
        """Whether the clip's folder is there; looks only."""
        ...

    def is_intact(self, row: Row) -> bool:
        """Whether the clip's files hold what the row says."""
        ...

    def sweep(self, wanted: set[str]) -> None:
        """Remove clip folders that are not wanted: half-written ones, and those of inputs that changed."""
        ...

    def forget(self) -> None:
        """Delete all clips."""
        ...


class LocalClips:
    """Clips in folders of this machine."""

    def __init__(self, out: Path) -> None:
        self.out = out

    def has(self, row: Row) -> bool:
        return is_there(self.out, row)

    def is_intact(self, row: Row) -> bool:
        return is_intact(self.out, row)

    def sweep(self, wanted: set[str]) -> None:
        for bucket in sorted((self.out / CLIPS).glob("*")):
            for folder in sorted(bucket.iterdir()):
                if f"{CLIPS}/{bucket.name}/{folder.name}" not in wanted:
                    shutil.rmtree(folder)
            if not any(bucket.iterdir()):
                bucket.rmdir()

    def forget(self) -> None:
        shutil.rmtree(self.out / CLIPS, ignore_errors=True)


class RemoteClips:
    """Clips in a store. What a store has confirmed it keeps: a clip that is there is whole, once it is noted."""

    def __init__(self, out: Remote) -> None:
        self.out = out
        self._listed: set[str] | None = None

    def refresh(self) -> None:
        """Forget what was listed."""
        self._listed = None

    def has(self, row: Row) -> bool:
        if self._listed is None:
            self._listed = self._list()
        return clip_folder(row["uid"]) in self._listed

    def is_intact(self, row: Row) -> bool:
        return True

    def sweep(self, wanted: set[str]) -> None:
        many(lambda name: (self.out / name).remove_tree(), sorted(self._list() - wanted))

    def forget(self) -> None:
        (self.out / CLIPS).remove_tree()
        self.refresh()

    def _list(self) -> set[str]:
        """Folders of clips, by up to 256 listings of folder names: no file is listed."""
        buckets = [f"{CLIPS}/{name}" for name, stored in (self.out / CLIPS).children().items() if stored.is_folder]
        found = many(lambda bucket: (self.out / bucket).children(), buckets)
        return {f"{bucket}/{name}" for bucket, names in zip(buckets, found, strict=True) for name in names}
