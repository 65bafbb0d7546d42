"""`--nproc N` starts torchrun itself; its children join through the environment that torchrun sets.

torchrun turns every exit code of a child into 1 and dies of SIGUSR1 without passing it on. So this parent
catches the signals, hands them to the training processes, waits for their save, and takes the exit code from
status.json.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

import psutil

from kdctool.errors import UsageFault
from kdctool.files import read_json
from kdctool.train.log import STATUS


def inside_torchrun() -> bool:
    """Whether this process is one of torchrun's."""
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def check_processes(nproc: int, device_type: str, num_gpus: int) -> None:
    """UsageFault when more processes are asked for than this machine has GPUs or cores."""
    available = num_gpus if device_type == "cuda" else (os.cpu_count() or 1)
    if nproc > available:
        what = "GPUs" if device_type == "cuda" else "cores"
        raise UsageFault(f"--nproc {nproc} is more than the {available} {what} of this machine", f"--nproc {available}")


def torchrun(nproc: int, arguments: list[str], run: Path, max_restarts: int = 0) -> int:
    """Run `kdctool ARGUMENTS` in `nproc` processes and return the exit code of `run`."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"]
    command.append(f"--max-restarts={max_restarts}")
    threads = max(1, (os.cpu_count() or 1) // nproc)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    child = subprocess.Popen(
        [*command, "-m", "kdctool", *arguments], env=environment, start_new_session=True, stdin=subprocess.DEVNULL
    )

    def forward(number: int, _: FrameType | None) -> None:
        for process in _trainers(child.pid):
            process.send_signal(number)

    before = {n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    try:
        while child.poll() is None:
            time.sleep(0.1)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
    return exit_code(run, child.returncode)


def exit_code(run: Path, torchrun_code: int) -> int:
    """The code status.json tells; torchrun's own when the run did not get so far as to write one."""
    path = run / STATUS
    if path.exists():
        code = read_json(path)["exit_code"]
        if isinstance(code, int) and (code != 0 or torchrun_code == 0):
            return code
    return torchrun_code if torchrun_code >= 0 else 128 - torchrun_code


def _trainers(torchrun_pid: int) -> list[psutil.Process]:
    """The training processes: torchrun's direct children, not the data workers below them."""
    try:
        return psutil.Process(torchrun_pid).children()
    except psutil.NoSuchProcess:
        return []
