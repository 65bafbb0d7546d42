"""Read somebody else's weights file where it can do no harm: another process with little memory, time and disk.

A pickle is a program. torch's `weights_only` refuses all but tensors, and has had holes; so the file is opened by a
child that may write one safetensors file, and this process only ever reads that.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kdctool.errors import KdctoolError, UsageFault, VerificationFault
from kdctool.media import limits

if TYPE_CHECKING:
    from torch import Tensor

SAFE = ".safetensors"
_ADDRESSES = 16 << 30
"""Address space beside the file: a build of torch with CUDA maps some ten GB of libraries."""
_MEMORY = 3 << 30
"""Private memory beside the file's tensors."""
_SLACK = 64 << 20
_COPIES = 3
"""Times the size of the file that its tensors may take in memory."""
_CPU_S, _CPU_S_PER_GB = 60, 30
_FIX = "it is damaged, or made to do harm: fetch it again from where it was published"


def read_weights(path: Path, scratch: Path | None = None) -> "dict[str, Tensor]":
    """Tensors of a .safetensors, .pth or .pt file; `scratch` is a folder for a copy, gone afterwards.

    UsageFault when it holds code or no state dict, VerificationFault when it is damaged or wants more than it may.
    """
    from kdctool.models.weights import load_state

    if path.suffix == SAFE or not path.is_file():
        return load_state(path)
    with tempfile.TemporaryDirectory(dir=scratch, prefix="weights-") as folder:
        copy = Path(folder) / f"tensors{SAFE}"
        _in_child(path, copy)
        return load_state(copy)


def _in_child(path: Path, copy: Path) -> None:
    size = path.stat().st_size
    seconds = _CPU_S + _CPU_S_PER_GB * size / 2**30
    command = [sys.executable, "-m", "kdctool.stages.read_weights", str(path), str(copy), str(os.getpid())]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=10 * seconds, env=environment,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise VerificationFault(f"{path} was not read in {10 * seconds:.0f} s", "the file is not sound") from error
    lines = done.stdout.splitlines()
    try:
        answer = json.loads(lines[-1]) if lines else {}
    except ValueError:
        answer = {}
    if done.returncode == 0 and answer.get("tensors"):
        return
    if "cause" in answer:
        kind = VerificationFault if answer["kind"] == VerificationFault.__name__ else UsageFault
        raise kind(answer["cause"], answer["next_step"])
    last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    raise VerificationFault(
        f"{path} could not be read within {_memory(size) >> 20} MB of memory and {seconds:.0f} s: {last[:200]}",
        _FIX,
    )


def _memory(size: int) -> int:
    return _MEMORY + _COPIES * size


def main(arguments: list[str]) -> int:
    """In the child: fences first, then torch, then the file; the last line of stdout is the answer."""
    path, copy, parent = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    limits.die_with_parent(parent)
    size = path.stat().st_size
    most = 2 * size + _SLACK
    limits.fence(_ADDRESSES + _COPIES * size, most, _CPU_S + _CPU_S_PER_GB * size / 2**30)
    with contextlib.suppress(ValueError, OSError):  # A lower hard limit that somebody set already serves as well.
        resource.setrlimit(resource.RLIMIT_DATA, (_memory(size), _memory(size)))
    try:
        answer: dict[str, object] = {"tensors": _convert(path, copy, most)}
    except KdctoolError as fault:
        answer = {"kind": type(fault).__name__, "cause": fault.cause, "next_step": fault.next_step}
    except MemoryError:
        answer = {
            "kind": VerificationFault.__name__,
            "cause": f"{path} wants more memory than it may",
            "next_step": _FIX,
        }
    print(json.dumps(answer), file=sys.__stdout__)
    return 0


def _convert(path: Path, copy: Path, most: int) -> int:
    import torch
    from safetensors.torch import save_file

    from kdctool.models.weights import load_state

    state = load_state(path)
    # A view with stride 0 is any size for a few bytes: the file must hold the numbers that it promises.
    if sum(value.numel() * value.element_size() for value in state.values()) + _SLACK // 2 > most:
        raise VerificationFault(f"{path} promises more numbers than it can hold", _FIX)
    # Cloned, as safetensors refuses tensors that share memory, and two names for one tensor are common.
    save_file(
        {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}, copy
    )
    return len(state)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
