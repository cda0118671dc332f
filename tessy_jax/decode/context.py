"""What every part of the loop is handed: the compiled program's constants and the run's arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tessy_jax.decode.state import DecodeParams, Index, LoopConfig
from tessy_jax.decode.tables import TextTables


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

    def reads(self, m: Index) -> jax.Array:
        """The side whose tokens the predictor of side m reads; m itself without a predictor."""
        return jnp.array([i if v is None else v for i, v in enumerate(self.config.predictor_reads)], jnp.int32)[m]

    @property
    def config(self) -> LoopConfig:
        return self.graphs.config
