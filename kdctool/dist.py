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
    store = dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        ranks,
        is_master=rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
        timeout=timeout,
        wait_for_workers=False,
    )
    attempt = dist.PrefixStore(f"attempt{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=attempt, rank=rank, world_size=ranks, timeout=timeout)


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
        parts = [torch.empty_like(x) for _ in range(ranks)]
        dist.all_gather(parts, x.contiguous())
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


def mean_over_ranks(values: Tensor) -> Tensor:
    """Element-wise mean of a tensor over ranks, without gradient."""
    _, ranks = world()
    if ranks == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / ranks


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is set on any rank; the same answer on all of them."""
    if world()[1] == 1:
        return flag
    found = torch.tensor([float(flag)], device=device)
    dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item() > 0)


def barrier() -> None:
    """Wait for all ranks."""
    if world()[1] > 1:
        dist.barrier()
