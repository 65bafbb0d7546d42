"""A GPU that is not there: tensors of the CPU that say they lie on one, and mind who meets whom.

Without a GPU no line that is about one ever runs. Under `card()` `torch.device("cuda")` can be used like a real one.
Every torch function is watched: tensors of both sides in one call raise as they would there, a generator must be of
the side that it draws for, and whatever makes the host wait for the device is written down. Numbers, gradients and
optimiser are real. It sees calls from Python and not kernels: no claim about speed, precision or memory follows.
"""

import contextlib
import sys
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves, tree_map_only

CUDA = torch.device("cuda", 0)
NAME = "NVIDIA H200"
READS = {"item", "tolist", "__bool__", "__float__", "__int__", "__index__", "is_nonzero", "equal", "allclose"}
SHAPED_BY_VALUES = {"nonzero", "unique", "unique_consecutive", "masked_select", "argwhere", "bincount"}
"""Their results' shapes depend on values, which the host has to be told."""
UPLOADS = {"tensor", "as_tensor"}
BOTH_SIDES = {"copy_", "_has_compatible_shallow_copy_type"}
"""Calls that take tensors of two devices."""


def on_card(tensor: Tensor) -> bool:
    """Whether a tensor says that it lies on the card."""
    return bool(getattr(tensor, "_on_card", False))


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


class Generator(torch.Generator):
    """A generator of the card, which draws what the CPU's draws."""

    def __new__(cls, device: Any = "cpu") -> Any:
        made = super().__new__(cls, "cpu")
        made.where = CUDA if _is_cuda(device) else torch.device("cpu")
        return made

    def __init__(self, device: Any = "cpu") -> None:
        super().__init__()

    @property
    def device(self) -> torch.device:
        return self.where


class Card(TorchFunctionMode):
    """See the module. `waits` are (what, file:line) of all that made the host wait, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[tuple[str, str]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name in ("__get__", "__set__"):
            return self._property(func, name, args, kwargs)
        found = _tensors((args, kwargs))
        there = any(on_card(x) for x in found)
        if name in ("to", "cpu", "cuda") and found:
            return self._moved(func, name, args, kwargs)
        if name == "pin_memory":
            return args[0]
        if name in ("numpy", "__array__") and there:
            raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")
        there = self._factory(name, kwargs, there)
        if name not in BOTH_SIDES:
            self._check(func, name, args, found, there)
        self._note_waits(name, args, kwargs, found, there)
        result = func(*args, **kwargs)
        return self._tagged(result, there) if there else result

    def _property(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        which = getattr(getattr(func, "__self__", None), "__name__", "")
        mine = on_card(args[0])
        if name == "__get__" and mine and which == "device":
            return CUDA
        if name == "__get__" and mine and which == "is_cuda":
            return True
        result = func(*args, **kwargs)
        if name == "__set__" and which == "data":
            args[0]._on_card = on_card(args[1])
        return self._tagged(result, mine) if mine and name == "__get__" else result

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Tensor:
        tensor, rest = args[0], list(args[1:])
        target = on_card(tensor) if name == "to" else name == "cuda"
        if name == "cuda":
            func, rest = torch.Tensor.to, ["cuda"]
        for place, value in enumerate(rest):
            if isinstance(value, str | torch.device):
                target, rest[place] = _is_cuda(value), torch.device("cpu")
            elif isinstance(value, Tensor):
                target = on_card(value)
        if kwargs.get("device") is not None:
            target, kwargs["device"] = _is_cuda(kwargs["device"]), torch.device("cpu")
        result = func(tensor, *rest, **kwargs)
        if target == on_card(tensor):
            return self._tagged(result, target) if target else result
        if not kwargs.get("non_blocking", False):
            self._note("download" if not target else "upload")
        moved = result.clone(memory_format=torch.preserve_format) if _shares(result, tensor) else result
        moved._on_card = target
        return moved

    def _factory(self, name: str, kwargs: dict[str, Any], there: bool) -> bool:
        """Whether the result lies on the card; the device in `kwargs` becomes the CPU."""
        if isinstance(drawing := kwargs.get("generator"), torch.Generator):
            device = kwargs.get("device")
            side = _is_cuda(device) if device is not None else there
            if _is_cuda(drawing.device) != side:
                raise RuntimeError(f"{name}: the generator is of {drawing.device}, the result of {device}")
        if "device" not in kwargs or kwargs["device"] is None:
            return there
        target = _is_cuda(kwargs["device"])
        kwargs["device"] = torch.device("cpu")
        if target and name in UPLOADS:
            self._note("upload")
        return target

    def _check(self, func: Any, name: str, args: Any, found: list[Tensor], there: bool) -> None:
        strangers = [x for x in found if not on_card(x) and x.ndim]
        if not there or not strangers or not any(on_card(x) for x in found):
            return
        if name in ("__getitem__", "__setitem__") and on_card(args[0]) and all(map(on_card, _tensors(args[2:]))):
            self._note("upload of indices")  # Indices of the CPU are taken there, at the price of a wait.
            return
        shapes = [f"{tuple(x.shape)} on {'cuda' if on_card(x) else 'cpu'}" for x in found]
        raise RuntimeError(f"{resolve_name(func) or name}: tensors of two devices: {', '.join(shapes)}")

    def _note_waits(self, name: str, args: Any, kwargs: Any, found: list[Tensor], there: bool) -> None:
        if not there:
            return
        if name in READS | SHAPED_BY_VALUES and any(on_card(x) for x in found):
            self._note(name)
        masks = [x for x in _tensors(args[1:]) if x.dtype == torch.bool]
        if name == "__getitem__" and masks:
            self._note("index by a mask")
        if name == "one_hot" and kwargs.get("num_classes", args[1] if len(args) > 1 else -1) < 0:
            self._note("one_hot")
        if name == "copy_" and not kwargs.get("non_blocking", False) and len({on_card(x) for x in found}) > 1:
            self._note("copy_")

    def _note(self, what: str) -> None:
        frame = sys._getframe(1)
        while frame.f_back is not None and _is_of_torch(frame.f_code.co_filename):
            frame = frame.f_back
        self.waits.append((what, f"{frame.f_code.co_filename}:{frame.f_lineno}"))

    @staticmethod
    def _tagged(result: Any, there: bool) -> Any:
        def tag(x: Tensor) -> Tensor:
            x._on_card = there  # type: ignore[attr-defined]
            return x

        return tree_map_only(Tensor, tag, result)


def _is_of_torch(path: str) -> bool:
    return "/torch/" in path or path == __file__


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _shares(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _grouped(tensors: Any, with_indices: bool = False) -> Any:
    """torch's own grouping looks past what a tensor says of itself."""
    found = _BY_DEVICE(tensors, with_indices)
    is_there = any(on_card(x) for part in tensors for x in part if x is not None)
    return {(CUDA if is_there else device, dtype): group for (device, dtype), group in found.items()}


_BY_DEVICE = torch.utils._foreach_utils._group_tensors_by_device_and_dtype


class Autocast(torch.autocast):
    """The card's autocast, which the CPU does for it."""

    def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
        super().__init__("cpu", *args, **kwargs)


@contextlib.contextmanager
def card() -> Iterator[Card]:
    """Inside, a card is there."""
    scaler = torch.amp.GradScaler
    with contextlib.ExitStack() as stack:
        for target, replacement in {
            "torch.Generator": Generator,
            "torch.autocast": Autocast,
            "torch.amp.GradScaler": lambda device="cuda", **more: scaler("cpu", **more),
            "torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype": _grouped,
            # What is computed anew in a backward pass is out of sight, and must take the same way.
            "kdctool.models.layers.HAS_ONEDNN": False,
            # So is another thread.
            "kdctool.data.held.ahead": lambda items, device: items,
            "torch.cuda.is_available": lambda: True,
            "torch.cuda.device_count": lambda: 1,
            "torch.cuda.set_device": lambda device: None,
            "torch.cuda.get_device_name": lambda device=None: NAME,
            "torch.cuda.get_device_properties": lambda device=None: mock.Mock(total_memory=140 * 2**30, name=NAME),
            "torch.cuda.max_memory_allocated": lambda device=None: 2**30,
            "torch.cuda.mem_get_info": lambda device=None: (100 * 2**30, 140 * 2**30),
            "torch.cuda.empty_cache": lambda: None,
            "torch.cuda.synchronize": lambda device=None: None,
            "torch.cuda.manual_seed_all": lambda seed: None,
            "torch.cuda.is_current_stream_capturing": lambda: False,
        }.items():
            stack.enter_context(mock.patch(target, replacement))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", ".*pin_memory.*")
        pretended = Card()
        stack.enter_context(pretended)
        yield pretended
