"""A folder or an object in an object store (s3://, gs://), through fsspec.

An object appears whole or not at all. Every failure is told as a fault of ours that names the place: nothing is there,
it is not allowed, or it cannot be reached.
"""

import errno
import importlib
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from kdctool.errors import EnvironmentFault, UsageFault
from kdctool.files import disk_faults

PACKAGES = {"s3": "s3fs", "gs": "gcsfs"}
"""Protocol -> the package that speaks it; the extra of kdctool is called as the protocol."""
_FIRST_ANSWER_S = 45.0
_THREADS = 16
_LOCAL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_SPEAKERS = (
    "aiobotocore",
    "aiohttp",
    "botocore",
    "fsspec",
    "gcsfs",
    "google",
    "oauthlib",
    "requests",
    "s3fs",
    "urllib3",
)
_NO_CREDENTIALS = ("Credential", "SSOToken", "UnauthorizedSSO", "ProfileNotFound", "RefreshError", "TokenRetrieval")
_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; AWS_ENDPOINT_URL for a store not of AWS",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or `gcloud auth application-default login`",
}
_AGAIN = "is the network up, is the endpoint right? The same command goes on where it stopped"
In = TypeVar("In")
Out = TypeVar("Out")


class Missing(UsageFault):
    """There is nothing at this place."""


class Refused(EnvironmentFault):
    """The store says that this may not be read or written."""


class Unreachable(EnvironmentFault):
    """The store does not answer, or fails."""


@dataclass(frozen=True)
class Stored:
    """What a listing says of an object or a folder."""

    size: int
    stamp: str
    """Changes when the content does; empty for folders."""
    is_folder: bool = False
    modified: Any = None
    """Time by the clock of the store, where it says one."""


@dataclass(frozen=True)
class Remote:
    """A place in a store. Small: it is sent to workers."""

    protocol: str
    key: str
    """Bucket and path, without a slash at the end."""

    def __str__(self) -> str:
        return f"{self.protocol}://{self.key}"

    def __truediv__(self, name: str) -> "Remote":
        return Remote(self.protocol, f"{self.key}/{name}")

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> "Remote":
        """The folder above; a bucket is its own."""
        return Remote(self.protocol, self.key.rpartition("/")[0] or self.key)

    @property
    def bucket(self) -> "Remote":
        return Remote(self.protocol, self.key.partition("/")[0])

    def check_package(self) -> None:
        """EnvironmentFault when the package that speaks the protocol is not installed."""
        package = PACKAGES[self.protocol]
        if importlib.util.find_spec("fsspec") is None or importlib.util.find_spec(package) is None:
            raise EnvironmentFault(
                f"{self}: the package {package} is not installed", f"pip install 'kdctool[{self.protocol}]'"
            )

    def _store(self) -> Any:
        self.check_package()
        # Listings that are remembered would hide what other machines write.
        return importlib.import_module("fsspec").filesystem(self.protocol, use_listings_cache=False)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise Missing(f"there is nothing at {self}", "is the bucket right, and the name in it?") from error
        except PermissionError as error:
            raise Refused(f"not allowed: {self} ({_line(error)})", f"may you? {_CREDENTIALS[self.protocol]}") from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _LOCAL_DISK:
                raise
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in _SPEAKERS:
                raise
            if any(word in type(error).__name__ for word in _NO_CREDENTIALS):
                raise Refused(f"no credentials for {self} ({_line(error)})", _CREDENTIALS[self.protocol]) from error
            raise Unreachable(f"cannot reach {self}: {_line(error)}", _AGAIN) from error

    def kind(self) -> str:
        """'file', 'folder' or, where nothing is there, ''. Ends within a minute, whatever the network does."""
        with self._faults():
            store = self._store()
            sync = importlib.import_module("fsspec.asyn").sync
            try:
                found = sync(store.loop, store._info, self.key, timeout=_FIRST_ANSWER_S)
            except FileNotFoundError:
                return ""
        return "file" if found["type"] == "file" else "folder"

    def size(self) -> int:
        """Bytes of an object; Missing where there is none."""
        with self._faults():
            found = self._store().info(self.key)
            if found["type"] != "file":
                raise FileNotFoundError
            return int(found["size"])

    def children(self) -> dict[str, Stored]:
        """What lies in this folder, by name; empty where there is no such folder."""
        with self._faults():
            try:
                listed = self._store().ls(self.key, detail=True)
            except FileNotFoundError:
                return {}
        names = ((entry["name"].rstrip("/").removeprefix(self.key + "/"), entry) for entry in listed)
        return {name: _stored(entry) for name, entry in names if name and name != self.key}

    def files(self) -> dict[str, Stored]:
        """Every object below this folder, by its path in it. One listing, however deep."""
        with self._faults():
            found = self._store().find(self.key, detail=True)
        start = len(self.key) + 1
        return {
            name[start:]: _stored(entry)
            for name, entry in found.items()
            if name[start:].rstrip("/") == name[start:] != ""
        }

    def read(self, start: int | None = None, end: int | None = None) -> bytes:
        """An object's bytes, or those from `start` on and before `end`; negative values count from its end."""
        with self._faults():
            return bytes(self._store().cat_file(self.key, start=start, end=end))

    def write(self, data: bytes) -> None:
        """Put an object."""
        with self._faults():
            self._store().pipe_file(self.key, data)

    def write_all(self, objects: dict[str, bytes]) -> None:
        """Put several objects into this folder at the same time."""
        with self._faults():
            self._store().pipe({f"{self.key}/{name}": data for name, data in objects.items()})

    def create(self, data: bytes) -> bool:
        """Put an object unless there is one; False when there is. A store that cannot tell replaces it."""
        with self._faults():
            store = self._store()
            try:
                store.pipe_file(self.key, data, mode="create")
            except FileExistsError:
                return False
            except Exception as error:
                if _says(error) == "PreconditionFailed":  # s3fs knows it only where the answer names the condition.
                    return False
                if not _cannot_be_exclusive(error):
                    raise
                store.pipe_file(self.key, data)
        return True

    def download(self, path: Path, heard: Callable[[], None] = lambda: None) -> None:
        """Copy an object into a local file; Unreachable when it came short. `heard` is told that bytes come."""
        with disk_faults(path), self._faults():
            progress = _callback(heard)
            self._store().get_file(self.key, str(path), callback=progress)
            if not path.is_file():
                raise FileNotFoundError
            if progress.size is not None and path.stat().st_size != progress.size:
                raise OSError(errno.EIO, f"{path.stat().st_size} of {progress.size} bytes came")

    def upload(self, path: Path) -> None:
        """Put a local file, of any size."""
        with self._faults():
            store = self._store()
            store.put_file(str(path), self.key)
            size = int(store.info(self.key)["size"])
            if size != path.stat().st_size:
                raise OSError(errno.EIO, f"{size} of {path.stat().st_size} bytes arrived")

    def remove(self, names: Iterable[str]) -> None:
        """Delete objects of this folder; those that are not there are no fault."""
        keys = [f"{self.key}/{name}" for name in names]
        if not keys:
            return
        with self._faults():
            try:
                self._store().rm(keys)
            except FileNotFoundError:
                return

    def remove_tree(self) -> None:
        """Delete everything below this folder."""
        self.remove(self.files())


def many(function: Callable[[In], Out], things: Iterable[In]) -> list[Out]:
    """`function` of each thing, several at a time, results in order: most of a request is waiting."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, things))


def _stored(entry: dict[str, Any]) -> Stored:
    if entry["type"] == "directory":
        return Stored(0, "", is_folder=True)
    modified = entry.get("LastModified") or entry.get("mtime") or entry.get("updated")
    stamp = entry.get("ETag") or entry.get("etag") or modified
    return Stored(int(entry["size"] or 0), f"{stamp} {entry['size']}", modified=modified)


def _says(error: BaseException) -> str:
    """The code in an S3 store's answer, which stands in the error that s3fs translated; empty where there is none."""
    answer = getattr(error.__cause__, "response", None) or {}
    return str(answer.get("Error", {}).get("Code", ""))


def _cannot_be_exclusive(error: Exception) -> bool:
    """Whether the store answers that it has no writing of what is not there yet, or botocore is too old to ask."""
    is_unknown_to_botocore = type(error).__name__ == "ParamValidationError" and "IfNoneMatch" in str(error)
    return is_unknown_to_botocore or (isinstance(error, OSError) and error.errno == errno.ENOSYS)


def _callback(heard: Callable[[], None]) -> Any:
    """fsspec's own way to tell of progress; at most once a second."""
    callbacks = importlib.import_module("fsspec.callbacks")

    class Heard(callbacks.Callback):  # type: ignore[name-defined]
        last = time.monotonic()

        def relative_update(self, inc: int = 1) -> None:
            if time.monotonic() - self.last > 1.0:
                self.last = time.monotonic()
                heard()

    return Heard()


def _line(error: BaseException) -> str:
    """The first line of what a library says, with its kind where it says nothing."""
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__
