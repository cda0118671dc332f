"""What every part of the loop is handed: the compiled program's constants and the run's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tessy_jax.decode.state import DecodeParams, LoopConfig, TextTables


class LoopGraphs(NamedTuple):
    """What is compiled for: the graphs of the writing models and of their predictors (`nnx.split`), and the loop's
    configuration."""

    writers: tuple[Any, ...]
    predictors: tuple[Any, ...]
    config: LoopConfig


class LoopWeights(NamedTuple):
    """The parameters of the graphs in `LoopGraphs`."""

    writers: tuple[Any, ...]
    predictors: tuple[Any, ...]


@dataclass(frozen=True)
class LoopContext:
    """Graphs, weights, tables and parameters of the loop inside a traced function."""

    graphs: LoopGraphs
    weights: LoopWeights
    tables: TextTables
    params: DecodeParams

    @property
    def config(self) -> LoopConfig:
        return self.graphs.config
