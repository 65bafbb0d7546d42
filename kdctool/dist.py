"""The process group: started so that restarts work, one gather with the exact gradient, and who is main."""

import datetime
import os

import torch
import torch.distributed as dist
from torch import Tensor


def init(device: torch.device, timeout_s: float = 600.0) -> None:
    """Join the process group that torchrun describes; nothing to do in a single process.

    The store carries the restart count: with one store for all attempts a restarted rank can read addresses of
    the attempt before and fail to connect (seen in most restarts with gloo).
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return
    rank, ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    timeout = datetime.timedelta(seconds=timeout_s)
    store = _connect(rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True", timeout)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=timeout)


def side_store() -> "dist.Store | None":
    """A connection of its own to the job's store, for a thread that must not wait behind collectives."""
    if world()[1] == 1:
        return None
    return dist.PrefixStore("side", _connect(is_master=False, timeout=datetime.timedelta(seconds=30)))


def _connect(is_master: bool, timeout: datetime.timedelta) -> "dist.Store":
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    ranks = int(os.environ["WORLD_SIZE"])
    store = dist.TCPStore(address, port, ranks, is_master=is_master, timeout=timeout, wait_for_workers=False)
    return dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def shutdown() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def world() -> tuple[int, int]:
    """(this rank, number of ranks); (0, 1) without a process group."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def is_main() -> bool:
    """Whether this process writes logs and checkpoints."""
    return world()[0] == 0


class _Gather(torch.autograd.Function):
    """All-gather whose backward adds up what every rank's loss says about this rank's rows."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        _, ranks = world()
        x = x.contiguous()  # NCCL refuses other layouts, also to receive into.
        parts = [torch.empty_like(x) for _ in range(ranks)]
        dist.all_gather(parts, x)
        return torch.stack(parts)  # (R, ...)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        rank, _ = world()
        grad = grad.contiguous()
        dist.all_reduce(grad)
        return grad[rank]


def gather(x: Tensor, dim: int = 0) -> Tensor:
    """Concatenate `x` of all ranks along `dim`, with the exact gradient; `x` itself on one process.

    Every rank computes the same loss from the result, so the gradient that arrives is R times that of one
    process and the mean over ranks (as DDP takes it) is exact. Equal sizes on all ranks.
    """
    if world()[1] == 1:
        return x
    return torch.cat(list(_Gather.apply(x).unbind(0)), dim=dim)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (M, ...) of all ranks, one rank's after another's; each rank may have another number of them."""
    if world()[1] == 1:
        return rows
    counts = gather(torch.tensor([len(rows)])).tolist()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = gather(padded[None])  # (R, M, ...)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def mean_over_ranks(values: Tensor) -> Tensor:
    """Element-wise mean of a tensor over ranks, without gradient."""
    _, ranks = world()
    if ranks == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / ranks


def any_rank(*flags: bool) -> list[bool]:
    """For each flag, whether it is set on any rank; one small exchange on the CPU, the same answer everywhere."""
    if world()[1] == 1:
        return list(flags)
    found = torch.tensor([float(flag) for flag in flags])
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return [value > 0 for value in found.tolist()]


def barrier() -> None:
    """Wait for all ranks."""
    if world()[1] > 1:
        dist.barrier()
