"""One objective on one or many ranks, under one set of names, whichever of DDP and FSDP2 does the work.

The order of wrapping is fixed: activation checkpointing inside, compile around it, sharding outside. A block is
an element of an nn.ModuleList: that is all this file knows of a model.
"""

import contextlib
import shutil
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from kdctool.dist import is_main, world
from kdctool.errors import UsageFault
from kdctool.progress import say
from kdctool.recipe.machine import Parallel

RECOMPILES = 64


def blocks(module: nn.Module) -> list[nn.Module]:
    """Every element of every ModuleList."""
    return [block for part in module.modules() if isinstance(part, nn.ModuleList) for block in part]


def wrap(objective: nn.Module, device: torch.device, options: Parallel) -> nn.Module:
    """The module to call in training. Build the optimizer after this: sharding replaces parameters."""
    mode = _mode(options)
    if options.checkpoint_activations:
        inner = set(blocks(objective))
        apply_activation_checkpointing(objective, check_fn=lambda part: part in inner)
    if _compiles(options, device):
        # All blocks share one forward: towers, modalities and views are more shapes than dynamo's limit of 8 allows,
        # and past the limit it would run them uncompiled without a word.
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, RECOMPILES)
        # Distillation keeps queries and keys of a block aside; the recomputation need not do that again, and unless
        # dynamo is told so it leaves checkpointed blocks uncompiled.
        torch._dynamo.config.skip_fwd_side_effects_in_bwd_under_checkpoint = True
        for block in blocks(objective):
            block.compile()
    if mode == "ddp":
        ids = [device.index] if device.type == "cuda" else None
        # Buffers are constants here; gradient_as_bucket_view saves one copy of the gradients.
        return DistributedDataParallel(objective, device_ids=ids, broadcast_buffers=False, gradient_as_bucket_view=True)
    if mode == "fsdp":
        # FSDP2's own choice is the GPU wherever there is one, also for a run on the CPU.
        mesh = init_device_mesh(device.type, (world()[1],))
        for block in blocks(objective):
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        register_fsdp_forward_method(objective, "features")
    return objective


@contextlib.contextmanager
def accumulating(module: nn.Module, more_to_come: bool) -> Iterator[None]:
    """Leave gradients unreduced while more micro batches of the same step follow."""
    if isinstance(module, DistributedDataParallel) and more_to_come:
        with module.no_sync():
            yield
        return
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(not more_to_come)
    yield


@contextlib.contextmanager
def gathered(module: nn.Module) -> Iterator[None]:
    """Parts of a sharded module may be called on their own inside; all ranks must enter."""
    if isinstance(module, FSDPModule):
        module.unshard()
    yield
    if isinstance(module, FSDPModule):
        module.reshard()


def whole(tensor: Any) -> Any:
    """A full tensor from a sharded one; collective, so all ranks must call it. Anything else passes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def shard_like(value: Tensor, like: Tensor) -> Tensor:
    """`value` in the layout of `like`, which may be sharded."""
    if isinstance(like, DTensor):
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def _mode(options: Parallel) -> str:
    ranks = world()[1]
    if options.mode == "auto":
        return "ddp" if ranks > 1 else "none"
    if options.mode == "none" and ranks > 1:
        raise UsageFault(f"parallel.mode = 'none' with {ranks} processes", "--set parallel.mode=ddp or fsdp")
    # One rank has nobody to share with.
    return options.mode if ranks > 1 else "none"


def _compiles(options: Parallel, device: torch.device) -> bool:
    if options.compile != "auto":
        return options.compile == "on"
    if device.type != "cuda":
        return False
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if is_main():
        say(f"compile: on, with {compiler}" if compiler else "compile: off, no C compiler on PATH (parallel.compile)")
    return compiler is not None
