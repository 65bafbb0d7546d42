"""The ways a command can end other than well; each carries the exit code that the shell sees.

A cause is one line that names the thing at fault; `next_step` is what the reader should do about it.
"""

import shlex


def quoted(path: object) -> str:
    """A path as a shell takes it, for next steps that are pasted: quotes where a name has spaces."""
    return shlex.quote(str(path))


class KdctoolError(Exception):
    """A failure at run time: a bug, a non-finite loss, a dead rank."""

    exit_code = 1

    def __init__(self, cause: str, next_step: str = "") -> None:
        super().__init__(cause)
        self.cause = cause
        self.next_step = next_step
        if next_step:
            self.add_note(f"next: {next_step}")  # Python shows it under the traceback; a command prints it itself.


class UsageFault(KdctoolError):
    """The command or the recipe is wrong: nothing was written."""

    exit_code = 2


class DataFault(KdctoolError):
    """The data cannot be used: empty folder, unknown label, nothing decodable."""

    exit_code = 3


class EnvironmentFault(KdctoolError):
    """The machine lacks something: ffmpeg, disk space, write permission."""

    exit_code = 4


class VerificationFault(KdctoolError):
    """A hash, a truncated file, a parity gate or a non-finite embedding."""

    exit_code = 5


class Interrupted(KdctoolError):
    """Stopped by a signal after saving: the same command goes on (75), or Ctrl-C (130)."""

    def __init__(self, cause: str, next_step: str = "", *, ctrl_c: bool = False) -> None:
        super().__init__(cause, next_step)
        self.exit_code = 130 if ctrl_c else 75
