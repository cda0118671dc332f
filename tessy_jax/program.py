"""A program for the devices of a mesh: jobs run it, plans only compile it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Program(NamedTuple):
    """A jitted function with its arguments: arrays, or shapes with shardings if the devices are absent.

    name: its purpose. key: programs with equal keys compile to the same code; None for programs that are not compared.
    chooses_layouts: whether the compiler chooses the layouts of the first argument.
    """

    name: str
    jitted: Any
    args: tuple[Any, ...]
    key: Any = None
    chooses_layouts: bool = False
