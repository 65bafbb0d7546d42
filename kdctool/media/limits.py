"""Fences around decoders: memory, time and file-size limits, and an end that comes with the parent's end."""

import ctypes
import fcntl
import math
import os
import resource
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from kdctool.media.quarantine import Rejected

_PR_SET_PDEATHSIG = 1
_CHUNK = 1 << 20
"""Bytes that a pipe holds where the system allows it: with few of them both sides wait for each other often."""
_STDERR_KEPT = 4096

_libc = ctypes.CDLL(None, use_errno=True)  # Loaded here: nothing may be loaded between fork and exec.


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when `parent`, which started it, is gone (Linux; elsewhere pipes close)."""
    if hasattr(_libc, "prctl"):
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def fence(memory_bytes: int, file_bytes: int, cpu_s: float | None = None, process: int = 0) -> None:
    """Limit a process (0: this one) for good: address space, size of a written file, open files, core dumps, CPU time.

    Another process than this one can be limited on Linux only.
    """
    wanted = [
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ]
    if cpu_s is not None:
        wanted.append((resource.RLIMIT_CPU, math.ceil(cpu_s)))
    for kind, value in wanted:
        hard = (resource.prlimit(process, kind) if process else resource.getrlimit(kind))[1]
        limit = value if hard == resource.RLIM_INFINITY else min(value, hard)
        # The soft CPU limit says its name (SIGXCPU); the hard one, a little later, only kills.
        later = limit + 5 if kind == resource.RLIMIT_CPU and hard == resource.RLIM_INFINITY else limit
        if process:
            resource.prlimit(process, kind, (limit, later))
        else:
            resource.setrlimit(kind, (limit, later))


def run(
    command: Callable[[Sequence[int]], list[str]], most: Sequence[int], timeout_s: float, memory_bytes: int
) -> tuple[int, list[memoryview], str]:
    """Run a program that writes to several pipes; return its exit status, what came out of each, and its stderr.

    `command` gets one file descriptor per entry of `most`, the bytes that each pipe may deliver. The program
    may write no file, and is killed with all its children when time is up or a pipe delivers more.
    """
    pipes = [_pipe() for _ in most]
    fences: dict[str, Any] = {"memory_bytes": memory_bytes, "file_bytes": 0, "cpu_s": timeout_s + 1}
    # From outside where that goes, and before the program has found its input: a function to call between fork and
    # exec makes Python copy this process's page tables, a twentieth of what a short clip costs. A child that
    # outlives us has no reader; its next write ends it, or its CPU time.
    outside = hasattr(resource, "prlimit")
    try:
        process = subprocess.Popen(
            command([write for _, write in pipes]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[write for _, write in pipes],
            start_new_session=True,
            preexec_fn=None if outside else lambda: fence(**fences),
        )
    except BaseException:
        for read, _ in pipes:
            os.close(read)
        raise
    finally:
        for _, write in pipes:
            os.close(write)
    assert process.stderr is not None
    try:
        if outside:
            with suppress(ProcessLookupError):
                fence(**fences, process=process.pid)
        outputs, errors = _drain(
            process.stderr.fileno(), [read for read, _ in pipes], most, time.monotonic() + timeout_s
        )
        process.wait(timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise Rejected("timeout", f"ffmpeg did not end in {timeout_s:.0f} s") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stderr.close()
        for read, _ in pipes:
            os.close(read)
    return process.returncode, outputs, errors


def _pipe() -> tuple[int, int]:
    read, write = os.pipe()
    if hasattr(fcntl, "F_SETPIPE_SZ"):
        with suppress(OSError):  # The user's share of pipe memory is used up: a small pipe does, too.
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, _CHUNK)
    return read, write


class _Output:
    """What comes out of a pipe, up to `most` bytes, read into its place at once."""

    def __init__(self, most: int) -> None:
        self.held = bytearray(most + 1)
        self.size = 0

    def read(self, handle: int) -> bool:
        """Read what is there; False at the end. Rejected when there is too much."""
        count = os.readv(handle, [memoryview(self.held)[self.size :]])
        self.size += count
        if self.size == len(self.held):
            raise Rejected("decode_error", "ffmpeg delivered more than was asked for")
        return count > 0


def _drain(stderr: int, reads: Sequence[int], most: Sequence[int], deadline: float) -> tuple[list[memoryview], str]:
    outputs = {read: _Output(limit) for read, limit in zip(reads, most, strict=True)}
    errors = b""
    with selectors.DefaultSelector() as selector:
        for handle in (stderr, *reads):
            selector.register(handle, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(deadline - time.monotonic(), 0))
            if not ready:
                raise Rejected("timeout", "ffmpeg did not end in time")
            for key, _ in ready:
                if key.fd == stderr:
                    chunk = os.read(stderr, _STDERR_KEPT)
                    errors += chunk[: _STDERR_KEPT - len(errors)]
                    is_open = bool(chunk)
                else:
                    is_open = outputs[key.fd].read(key.fd)
                if not is_open:
                    selector.unregister(key.fd)
    return [memoryview(found.held)[: found.size] for found in outputs.values()], errors.decode(errors="replace")
