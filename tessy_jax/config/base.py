"""The base class and the field types of configuration sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, StringConstraints
from pydantic_core import PydanticCustomError


def _real(value: Any) -> Any:
    """Converts text to a number, because YAML reads 1e-4 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _count_or_auto(value: Any) -> Any:
    """Checks both types at once, so that a wrong value has one message."""
    if value == "auto" or (type(value) is int and value >= 1):
        return value
    raise PydanticCustomError("count_or_auto", "Input should be a valid integer greater than or equal to 1, or auto")


Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1)]
CountOrAuto = Annotated[
    Count | Literal["auto"], PlainValidator(_count_or_auto, json_schema_input_type=Count | Literal["auto"])
]
Natural = Annotated[int, Field(ge=0)]
Real = Annotated[float, BeforeValidator(_real)]


class Section(BaseModel):
    """A part of a configuration: frozen, strict about types, without unknown keys. Docstrings of fields are descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )
