"""What every part of the loop is handed: the compiled program's constants and the run's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tessy_jax.decode.state import DecodeParams, LoopConfig, TextTables


class LoopGraphs(NamedTuple):
    """What is compiled for: the graphs of the writing models and of their predictors (`nnx.split`), and the rules."""

    writers: tuple[Any, ...]
    predictors: tuple[Any, ...]
    config: LoopConfig


class LoopWeights(NamedTuple):
    """The parameters to `Program`'s graphs."""

    writers: tuple[Any, ...]
    predictors: tuple[Any, ...]


@dataclass(frozen=True)
class LoopContext:
    """All of it together, inside a traced function."""

    graphs: LoopGraphs
    weights: LoopWeights
    tables: TextTables
    params: DecodeParams

    @property
    def config(self) -> LoopConfig:
        return self.graphs.config
