"""Some files of a remote folder as files of a local one: what works on a folder works on that, too."""

import contextlib
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from kdctool.errors import KdctoolError
from kdctool.files import disk_faults, sha256_file
from kdctool.places.remote import Remote, many


class Mirror:
    """`local` holds the files that were pulled; `push` sends back those that changed."""

    def __init__(self, remote: Remote, local: Path) -> None:
        self.remote, self.local = remote, local
        self._known: dict[str, str] = {}
        """sha256 of what lies at the remote place, by name."""

    def clear(self) -> None:
        """Forget what was pulled."""
        shutil.rmtree(self.local, ignore_errors=True)
        with disk_faults(self.local):
            self.local.mkdir(parents=True)
        self._known.clear()

    def pull(self, names: Collection[str]) -> None:
        """Fetch files, which must be there; names may hold folders."""
        for name in names:
            (self.local / name).parent.mkdir(parents=True, exist_ok=True)
        many(lambda name: (self.remote / name).download(self.local / name), names)
        self._known |= {name: sha256_file(self.local / name) for name in names}

    def push(self, *names: str) -> None:
        """Send files in this order, but those that are there already, byte for byte."""
        for name in names:
            digest = sha256_file(self.local / name)
            if self._known.get(name) != digest:
                (self.remote / name).upload(self.local / name)
                self._known[name] = digest

    def drop(self, names: Collection[str]) -> None:
        """Delete files at the remote place."""
        self.remote.remove(names)
        for name in names:
            self._known.pop(name, None)


@contextlib.contextmanager
def spoken_of(local: Path, remote: Remote) -> Iterator[None]:
    """Let errors name the remote place, not the folder that stands for it."""
    try:
        yield
    except KdctoolError as error:
        error.cause = error.cause.replace(str(local), str(remote))
        error.next_step = error.next_step.replace(str(local), str(remote))
        error.args = (error.cause,)
        raise
