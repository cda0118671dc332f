"""Boundary predictors on a bounded window (method, section 2): they predict the kind of the next token from the last tokens.

The decision after response token t reads tokens a(t) … t, encoded afresh from position 0, where
a(t) = max(0, (t // h − 1) h) and h is half of the window. A lane has two rows, of even and of odd windows: window j begins
at token (j − 1) h, decides for tokens of block j (those with t // h = j) and lives in row j mod 2. Every token is read once,
in both rows of one forward pass: in the window that decides, and in the one that will decide from the next multiple of h
on. Moving the window needs no prefill.

A row stores token t in slot t mod R, so a lane is rolled back by lowering its count of read tokens. R = window + slack,
where slack covers the largest rollback.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.decode.cache import LayerKV
from tessy_jax.decode.state import PredictorState
from tessy_jax.models.attention import LayerCache
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.transformer import Decoder
from tessy_jax.sharding import Partitioner, zeros

ROWS = 2


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WindowLayerKV:
    """One layer's slots, seen from anchors_B [2 B]: lengths and positions count from there."""

    kv: LayerKV
    anchors_B: jax.Array

    def append(
        self, keys_BKTH: jax.Array, values_BKTH: jax.Array | None, lengths_B: jax.Array, counts_B: jax.Array
    ) -> WindowLayerKV:
        return replace(self, kv=self.kv.append(keys_BKTH, values_BKTH, self.anchors_B + lengths_B, counts_B))

    def read(self) -> tuple[jax.Array, jax.Array | None]:
        return self.kv.read()

    def positions(self, lengths_B: jax.Array) -> jax.Array:
        return self.kv.positions(self.anchors_B + lengths_B) - self.anchors_B[:, None]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WindowCache:
    """The view of a `PredictorState` in a predictor's forward pass."""

    layers: tuple[WindowLayerKV, ...]
    lengths_B: jax.Array

    def advance(self, layers: Sequence[LayerCache], counts_B: jax.Array) -> WindowCache:
        return WindowCache(tuple(layers), self.lengths_B + counts_B)  # type: ignore[arg-type]


def new_predictor_state(
    config: ModelConfig, lanes: int, window: int, slack: int, dtype: Any, partitioner: Partitioner
) -> PredictorState:
    """An empty cache of 2 rows per lane for a predictor; slack: the most tokens read at once or rolled back."""
    heads, dim = (1, config.latent.kv_rank + config.latent.rope_dim) if config.latent else (config.kv_heads, config.head_dim)
    axes = ("lanes", None if config.latent else "kv_heads", None, None)

    def empty() -> jax.Array:
        return zeros((ROWS * lanes, heads, window + slack, dim), dtype, partitioner, axes)

    layers = tuple(LayerKV(empty(), None if config.latent else empty()) for _ in range(config.layers))
    return PredictorState(layers, zeros((lanes,), jnp.int32, partitioner, ("lanes",)))


def first_token_needed(tokens: int, half: int) -> int:
    """The first token that has to be read again when the next decision is the one after token number `tokens`."""
    return max(0, (tokens // half - 1) * half)


@jax.named_scope("predict")
def predict(
    graph: Any,
    params: Any,
    predictor: PredictorState,
    tokens_BT: jax.Array,
    counts_B: jax.Array,
    half: int,
    logit: jax.Array,
) -> tuple[PredictorState, jax.Array]:
    """Reads the first counts_B tokens of each lane, which must not cross a multiple of `half`.

    Returns the predictor's state and [B, T]: whether the token *after* each is style, i.e. its style score minus its
    capability score exceeds `logit`.
    """
    model: Decoder = nnx.merge(graph, params)
    B, T = tokens_BT.shape
    block_B = predictor.read_B // half
    row_2 = jnp.arange(ROWS)
    window_B2 = block_B[:, None] + (block_B[:, None] % ROWS != row_2)
    anchors = jnp.maximum(0, (window_B2 - 1) * half).reshape(-1)
    lengths = jnp.repeat(predictor.read_B, ROWS) - anchors
    cache = WindowCache(tuple(WindowLayerKV(layer, anchors) for layer in predictor.layers), lengths)
    hidden, filled = model(
        jnp.repeat(jnp.maximum(tokens_BT, 0), ROWS, axis=0), cache=cache, counts_B=jnp.repeat(counts_B, ROWS)
    )
    assert filled is not None
    hidden_B2TD = hidden.reshape(B, ROWS, T, -1)
    deciding_BTD = jnp.take_along_axis(hidden_B2TD, (block_B % ROWS)[:, None, None, None], axis=1)[:, 0]
    scores_BTC = model.logits(deciding_BTD)
    style_BT = scores_BTC[..., 1] - scores_BTC[..., 0] > logit
    return PredictorState(
        tuple(layer.kv for layer in filled.layers),  # type: ignore[attr-defined]
        predictor.read_B + counts_B,
    ), style_BT
