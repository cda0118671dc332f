"""A program for the devices of a mesh, as a job runs it and a plan compiles it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Program(NamedTuple):
    """A jitted function with its arguments: arrays, or shapes with shardings where devices are absent.

    name: its purpose. key: programs with equal keys compile to the same code; None if nobody compares them.
    """

    name: str
    jitted: Any
    args: tuple[Any, ...]
    key: Any = None
