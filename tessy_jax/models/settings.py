"""A JSON object of a published file, read by name and type."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from tessy_jax.errors import ConfigError


class Settings:
    """A JSON object whose values are read by name and type; null counts as omitted.

    Every getter raises ConfigError for a value of another type; the message begins with `prefix`, the key and its value.
    """

    def __init__(self, raw: Mapping[str, Any], prefix: str = "") -> None:
        self.prefix = prefix
        self.nulls = {key for key, value in raw.items() if value is None}
        self.raw = {key: value for key, value in raw.items() if value is not None}
        self.read: set[str] = set()

    def unread(self) -> list[str]:
        """The keys with a value that no getter has read."""
        return sorted(set(self.raw) - self.read)

    def __contains__(self, name: str) -> bool:
        return name in self.raw

    def is_null(self, name: str) -> bool:
        """Whether the key is present with null, for keys where null differs from omission."""
        return name in self.nulls

    def get(self, name: str, kind: type | tuple[type, ...], expected: str, default: Any) -> Any:
        """The value, which must be of a type; `expected` names the type in the message."""
        self.read.add(name)
        value = self.raw.get(name, default)
        wrong = isinstance(value, bool) and kind is not bool
        if value is not None and (wrong or not isinstance(value, kind)):
            raise ConfigError(f"{self.prefix}{name} is {value!r}, expected {expected}")
        return value

    def count(self, name: str, default: int) -> int:
        """A whole number of at least 0."""
        value = self.get(name, int, "a whole number", default)
        if value < 0:
            raise ConfigError(f"{self.prefix}{name} is {value!r}, expected a whole number of at least 0")
        return value

    def size(self, name: str, default: int | None = None) -> int:
        """A positive whole number; required if there is no default."""
        value = self.get(name, int, "a positive whole number", default)
        if value is None:
            raise ConfigError(f"{self.prefix}{name} is missing")
        if value < 1:
            raise ConfigError(f"{self.prefix}{name} is {value!r}, expected a positive whole number")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A positive number; required if there is no default."""
        value = self.get(name, (int, float), "a number", default)
        if value is None:
            raise ConfigError(f"{self.prefix}{name} is missing")
        if not 0 < value <= sys.float_info.max:
            raise ConfigError(f"{self.prefix}{name} is {value!r}, expected a positive number")
        return float(value)

    def same(self, names: Sequence[str], default: int) -> int:
        """The positive whole number of a setting that has several names."""
        given = {name: self.size(name) for name in names if name in self}
        if len(set(given.values())) > 1:
            raise ConfigError(
                f"{self.prefix}{' and '.join(f'{name} {value}' for name, value in given.items())} mean the same setting and "
                "differ; correct one"
            )
        return next(iter(given.values()), default)

    def flag(self, name: str, default: bool) -> bool:
        """A Boolean."""
        return self.get(name, bool, "true or false", default)

    def text(self, name: str, default: str) -> str:
        """A string."""
        return self.get(name, str, "a string", default)

    def items(self, name: str) -> list[Any]:
        """A list; empty if omitted."""
        return self.get(name, list, "a list", [])

    def object(self, name: str) -> Mapping[str, Any]:
        """A JSON object; empty if omitted."""
        return self.get(name, Mapping, "an object", {})
