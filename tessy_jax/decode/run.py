"""What every part of the loop is handed: the compiled program's constants and the run's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tessy_jax.decode.state import Policy, Rules, Tables


class Program(NamedTuple):
    """What is compiled for: the graphs of the writing models and of their predictors (`nnx.split`), and the rules."""

    writers: tuple[Any, ...]
    judges: tuple[Any, ...]
    rules: Rules


class Weights(NamedTuple):
    """The parameters to `Program`'s graphs."""

    writers: tuple[Any, ...]
    judges: tuple[Any, ...]


@dataclass(frozen=True)
class Run:
    """All of it together, inside a traced function."""

    program: Program
    weights: Weights
    tables: Tables
    policy: Policy

    @property
    def rules(self) -> Rules:
        return self.program.rules
