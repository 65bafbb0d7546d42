"""Keys that say how the machine works, not what is learnt. None of them belongs to the digest of a run."""

from typing import Annotated, Literal

from pydantic import Field

from kdctool.registry import NOT_A_RESULT, Section


class Parallel(Section):
    """How one step is spread over ranks. Order of wrapping: activation checkpointing, compile, then shard."""

    mode: Literal["auto", "none", "ddp", "fsdp"] = Field("auto", json_schema_extra=NOT_A_RESULT)
    """ddp keeps a whole model per rank; fsdp shards parameters, gradients and moments; auto is ddp on several ranks."""
    compile: Literal["auto", "on", "off"] = Field("auto", json_schema_extra=NOT_A_RESULT)
    """torch.compile of every block; auto compiles on a GPU when a C compiler is found, and says what it chose."""
    checkpoint_activations: bool = Field(False, json_schema_extra=NOT_A_RESULT)
    """Recompute every block in the backward pass: less memory, about a third more time."""


class Guard(Section):
    """What happens when a step goes wrong."""

    on_nonfinite: Literal["stop", "skip", "rollback"] = Field("stop", json_schema_extra=NOT_A_RESULT)
    """A loss or gradient that is not finite: end, leave the step out, or go back to the last checkpoint without it."""
    max_skips: Annotated[int, Field(ge=0)] = Field(3, json_schema_extra=NOT_A_RESULT)
    """Steps that skip or rollback may leave out before the run ends after all."""
    stall_s: Annotated[float, Field(gt=0)] = Field(600.0, json_schema_extra=NOT_A_RESULT)
    """Seconds without a finished step after which the run ends and names the rank that is behind."""
    failed_saves: Annotated[int, Field(ge=0)] = Field(2, json_schema_extra=NOT_A_RESULT)
    """Checkpoints in a row that may fail (full disk) before the run ends with exit code 4."""
