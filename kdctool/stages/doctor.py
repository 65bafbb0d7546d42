"""What this machine has, what would fail on it, and the fix: one row per check, nothing is changed."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdctool import __version__
from kdctool.stages import doctor_machine as machine
from kdctool.stages import doctor_software as software
from kdctool.stages.doctor_software import Row, Status


@dataclass(frozen=True)
class Report:
    """All findings; `status` is the worst of them."""

    rows: tuple[Row, ...]

    @property
    def status(self) -> Status:
        order: tuple[Status, ...] = ("OK", "WARN", "FAIL")
        return max((row.status for row in self.rows), key=order.index)

    def payload(self) -> dict[str, Any]:
        return {"kdctool": __version__, "status": self.status, "rows": [asdict(row) for row in self.rows]}


def run(folder: Path = Path()) -> Report:
    """Examine the machine; `folder` is where output would be written."""
    checks: dict[str, Callable[[], Iterator[Row]]] = {
        "python": software.python,
        "packages": software.packages,
        "torch": software.torch_itself,
        "torchvision": software.torch_family,
        "ffmpeg": software.ffmpeg,
        "PyAV": software.av_codecs,
        "FLAC": software.sound,
        "GPU": machine.gpu,
        "bf16": machine.half_precision,
        "memory": machine.cores_and_memory,
        "shared memory": machine.shared_memory,
        "open files": machine.open_files,
        "disk": lambda: machine.disk(folder),
        "writing": lambda: machine.writing(folder),
        "several processes": machine.gloo,
    }
    return Report(tuple(row for name, check in checks.items() for row in _complete(name, check)))


def _complete(name: str, check: Callable[[], Iterator[Row]]) -> list[Row]:
    """A check that breaks is a finding, too: doctor is run on machines where things are broken."""
    try:
        return list(check())
    except Exception as error:
        found = f"the check itself failed: {type(error).__name__}: {software.first_line(error)}"
        return [Row(name, "WARN", found, "not known", "report it, with this row")]
