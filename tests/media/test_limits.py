"""A decoder that runs away is stopped: time, memory, files, amount."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from kdctool.media import limits
from kdctool.media.quarantine import Rejected

GIB = 1 << 30


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_outputs_arrive_whole_through_several_pipes() -> None:
    def command(pipes: Sequence[int]) -> list[str]:
        first, second = pipes
        return python(
            f"import os, sys\nfor _ in range(50):\n os.write({first}, b'a' * 9999)\n os.write({second}, b'b' * 3)\n"
            "sys.exit('told')"
        )

    status, (first, second), errors = limits.run(command, [10**6, 10**6], 20, 4 * GIB)
    assert (status, first, second) == (1, b"a" * 50 * 9999, b"b" * 150)
    assert errors.strip() == "told"


def test_a_program_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(3); open({str(mark)!r}, 'w')"
    code = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(Rejected) as caught:
        limits.run(lambda pipes: python(code), [10], 1, 4 * GIB)
    assert caught.value.reason == "timeout"
    assert time.monotonic() - began < 5
    time.sleep(2.5)
    assert not mark.exists()


def test_a_program_that_closes_its_pipes_and_hangs_is_killed_too() -> None:
    code = "import os, time; os.closerange(0, 100); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(Rejected) as caught:
        limits.run(lambda pipes: python(code), [10], 1, 4 * GIB)
    assert caught.value.reason == "timeout"
    assert time.monotonic() - began < 5


def test_a_program_that_says_too_much_is_stopped() -> None:
    with pytest.raises(Rejected, match="more than was asked"):
        limits.run(
            lambda pipes: python(f"import os\nwhile True: os.write({pipes[0]}, b'x' * 1000)"), [5000], 20, 4 * GIB
        )


def test_a_program_may_write_no_file_and_take_no_endless_memory(tmp_path: Path) -> None:
    target = tmp_path / "written"
    code = f"import os; os.write(os.open({str(target)!r}, os.O_CREAT | os.O_WRONLY), b'x')"
    status, _, _ = limits.run(lambda pipes: python(code), [10], 20, 4 * GIB)
    assert status != 0
    assert not target.exists() or target.stat().st_size == 0
    status, _, errors = limits.run(lambda pipes: python("bytearray(3 << 30)"), [10], 20, GIB)
    assert status == 1
    assert "MemoryError" in errors
