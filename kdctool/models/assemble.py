"""A whole model from a translated file: every name accounted for, every shape checked, or nothing."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from kdctool.errors import UsageFault
from kdctool.models.layouts import Mapped, State
from kdctool.models.weights import differences, refuse_broken, shown


@dataclass(frozen=True)
class Assembled:
    """All tensors of a model in float32, and what did not come from the file."""

    state: State
    fresh: dict[str, str]
    """Name in the model -> why it is not from the file."""
    notes: tuple[str, ...]


def assemble(
    mapped: Mapped, source: Mapping[str, Tensor], wanted: Mapping[str, torch.Size], initial: Callable[[], State]
) -> Assembled:
    """Complete `mapped` (of the file `source`) to exactly `wanted`.

    UsageFault names what is missing, unknown or of another shape; VerificationFault what is not finite. `initial`
    gives fresh values of any tensor; it is only called when the layout leaves some out.
    """
    strangers = [name for name in source if name not in mapped.used and name not in mapped.unused]
    if strangers:
        raise UsageFault(
            f"the file holds {len(strangers)} tensors that its layout does not know: {shown(strangers)}",
            "choose another --as, or remove them from the file: what they are for is lost otherwise",
        )
    reasons = {name: _reason(name, mapped) for name in wanted if name not in mapped.state}
    fresh = {name: why for name, why in reasons.items() if why}
    filled = dict(mapped.state)
    if fresh:
        values = initial()
        filled |= {name: values[name] for name in fresh}
    faults = differences(wanted, filled)
    if faults:
        raise UsageFault(
            f"these weights do not make the model ({len(wanted)} tensors): {'; '.join(faults)}",
            "nothing was written. For sizes, change --recipe or --set model.KEY=...; tensors that are missing or "
            "unknown mean another --as, or a file that is not whole",
        )
    kinds = sorted({str(value.dtype).removeprefix("torch.") for value in mapped.state.values()} - {"float32"})
    notes = (*mapped.notes, f"{', '.join(kinds)} tensors become float32") if kinds else mapped.notes
    whole = _apart({name: filled[name].detach().float().contiguous() for name in wanted})
    refuse_broken(whole, "file")
    return Assembled(whole, fresh, notes)


def _apart(state: State) -> State:
    """No two tensors in the same memory: one tensor of a file may fill several that training moves apart."""
    taken: set[int] = set()
    for name, value in state.items():
        memory = value.untyped_storage().data_ptr()
        if memory in taken:
            state[name] = value.clone()
        taken.add(memory)
    return state


def _reason(name: str, mapped: Mapped) -> str:
    return next((why for pattern, why in mapped.fresh.items() if re.fullmatch(pattern, name)), "")
