"""The kinds of values that keys of a recipe have."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field


def as_tuple(value: Any) -> Any:
    """TOML has lists; a frozen section holds tuples."""
    return tuple(value) if isinstance(value, list) else value


Ratio = Annotated[float, Field(gt=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Names = Annotated[tuple[str, ...], BeforeValidator(as_tuple)]
Betas = Annotated[tuple[Ratio, Ratio], BeforeValidator(as_tuple)]
Range = Annotated[tuple[PositiveFloat, PositiveFloat], BeforeValidator(as_tuple)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(as_tuple)]
