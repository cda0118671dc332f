"""The base class and the field types of configuration sections."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints


def _real(value: Any) -> Any:
    """Converts text to a number, because YAML reads 1e-4 as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


Text = Annotated[str, StringConstraints(min_length=1)]
Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Real = Annotated[float, BeforeValidator(_real)]


class Section(BaseModel):
    """A part of a configuration: frozen, strict about types, without unknown keys. Docstrings of fields are descriptions."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True, validate_default=True
    )
