"""The hardware half of `kdctool doctor`: GPU, memory, disk, and whether processes find each other."""

import datetime
import os
import re
import resource
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from kdctool.errors import EnvironmentFault
from kdctool.files import existing_parent, locked, size_text, write_bytes
from kdctool.stages.doctor_software import Row, first_line

GB = 2**30


def gpu() -> Iterator[Row]:
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        available = torch.cuda.is_available()
    driver = Path("/proc/driver/nvidia/version")
    if not available and driver.exists():
        why = first_line(said[0].message) if said else "torch sees no device"
        fix = "a driver for this CUDA, or a torch built for this driver; in a container: --gpus all"
        yield Row("GPU", "WARN", f"a driver is loaded, but {why}", "training on the GPU", fix)
    elif not available:
        fix = "none needed for the demo; a CUDA GPU, or a recipe of `kdctool recipe new` for this machine"
        yield Row("GPU", "WARN", "none: everything runs on the CPU", "base-size recipes in reasonable time", fix)
    for number in range(torch.cuda.device_count() if available else 0):
        card = torch.cuda.get_device_properties(number)
        found = f"{number}: {card.name}, {size_text(card.total_memory)}, sm_{card.major}{card.minor}"
        if arch_served(card.major, card.minor, torch.cuda.get_arch_list()):
            yield Row("GPU", "OK", found)
        else:
            found += f", and this torch is built for {' '.join(torch.cuda.get_arch_list())}"
            yield Row("GPU", "FAIL", found, "training on it", "a torch build for its architecture")


def arch_served(major: int, minor: int, built: list[str]) -> bool:
    """Whether a GPU of compute capability major.minor runs kernels of a torch built for these architectures."""
    for arch in built:
        kind, _, digits = arch.partition("_")
        number = int(re.sub(r"\D", "", digits) or 0)
        theirs = (number // 10, number % 10)
        if kind == "sm" and theirs[0] == major and theirs[1] <= minor:
            return True
        if kind == "compute" and theirs <= (major, minor):
            return True
    return False


def half_precision() -> Iterator[Row]:
    import torch

    if torch.cuda.is_available():
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        found, fix = f"GPU: {'yes' if fast else 'emulated'}", "training.precision = fp16"
    else:
        cpu = Path("/proc/cpuinfo")
        flags = cpu.read_text(errors="replace") if cpu.exists() else ""
        fast = any(flag in flags for flag in ("avx512_bf16", "amx_bf16", " bf16"))
        kind = torch.backends.cpu.get_cpu_capability()
        found, fix = f"CPU ({kind}): {'yes' if fast else 'emulated'}", "training.precision = fp32"
    yield Row("bf16", "OK", found) if fast else Row("bf16", "WARN", found, "speed of bf16 recipes", fix)


def cores_and_memory() -> Iterator[Row]:
    import psutil

    usable, there = len(os.sched_getaffinity(0)), os.cpu_count() or 1
    yield Row("cores", "OK", f"{usable}" + (f" of {there}" if there != usable else ""))
    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit = _cgroup_limit()
    found = f"{size_text(free)} free of {size_text(total)}"
    found += f", container limit {size_text(limit)}" if limit < total else ""
    room = min(free, limit) / GB
    if room < 1:
        yield Row("memory", "FAIL", found, "training", "close something, or raise the container's limit")
    elif room < 4:
        yield Row("memory", "WARN", found, "models above demo size", "a smaller training.micro_batch")
    else:
        yield Row("memory", "OK", found)


def shared_memory() -> Iterator[Row]:
    place = Path("/dev/shm")
    if not place.is_dir():
        yield Row("shared memory", "WARN", "no /dev/shm", "data workers", "--set data.workers=0")
        return
    free = shutil.disk_usage(place).free
    if free < GB:
        fix = "docker run --shm-size 8g (or --ipc host), or --set data.workers=0"
        yield Row("shared memory", "WARN", f"{size_text(free)} free", "data workers die with a bus error", fix)
    else:
        yield Row("shared memory", "OK", f"{size_text(free)} free")


def open_files() -> Iterator[Row]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 1024:
        found = f"limit {soft} (at most {hard})"
        yield Row("open files", "WARN", found, "many workers on many shards", "ulimit -n 4096")
    else:
        yield Row("open files", "OK", f"limit {soft}")


def disk(folder: Path) -> Iterator[Row]:
    place = existing_parent(folder)
    usage = shutil.disk_usage(place)
    inodes = os.statvfs(place)
    found = f"{size_text(usage.free)} free of {size_text(usage.total)} at {place}"
    if inodes.f_files and inodes.f_favail < 10_000:
        few = f"{inodes.f_favail:,} free at {place}"
        yield Row("inodes", "WARN", few, "extract, which writes 11 files per clip", "another disk")
    breaks, fix = (
        "extract, shard and checkpoints (2.3 GB each at base size)",
        "free some space, or --out on another disk",
    )
    if usage.free < GB / 2:
        yield Row("disk", "FAIL", found, breaks, fix)
    elif usage.free < 10 * GB:
        yield Row("disk", "WARN", found, f"on large data sets: {breaks}", fix)
    else:
        yield Row("disk", "OK", found)


def writing(folder: Path) -> Iterator[Row]:
    place = existing_parent(folder)
    probe = place / f".kdctool-probe-{uuid.uuid4().hex}"
    try:
        with locked(probe):
            write_bytes(probe / "file", b"probe")
        yield Row("writing", "OK", f"create, lock, sync and rename work in {place}")
    except (EnvironmentFault, OSError) as error:
        found = f"{place}: {first_line(error)}"
        yield Row("writing", "FAIL", found, "every command that writes there", "choose a writable folder")
    finally:
        shutil.rmtree(probe, ignore_errors=True)


def gloo() -> Iterator[Row]:
    import torch
    import torch.distributed as dist

    limit = datetime.timedelta(seconds=5)
    try:
        store = dist.TCPStore("127.0.0.1", 0, 1, is_master=True, wait_for_workers=False, timeout=limit)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=limit)
    except (RuntimeError, ValueError, OSError) as error:
        fix = "give the host name an address (/etc/hosts), or export GLOO_SOCKET_IFNAME=lo"
        yield Row("several processes", "WARN", f"gloo does not start: {first_line(error)}", "--nproc above 1", fix)
        return
    try:
        total = torch.ones(1)
        dist.all_reduce(total)
    finally:
        dist.destroy_process_group()
    nccl = ", NCCL built in" if dist.is_nccl_available() else ""
    yield Row("several processes", "OK", f"gloo on 127.0.0.1{nccl}")


def _cgroup_limit() -> float:
    """Bytes a container may use; infinite without a limit."""
    try:
        text = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return float("inf")
    return float(text) if text.isdigit() else float("inf")
