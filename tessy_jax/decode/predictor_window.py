"""Boundary predictors on a bounded window (method, section 2): they predict the kind of the next token from the last tokens.

The decision after response token t reads tokens a(t) … t, encoded afresh from position 0, where
a(t) = max(0, (t // h − 1) h) and h is half of the window. A lane has two rows, of even and of odd windows: window j begins
at token (j − 1) h, decides for tokens of block j (those with t // h = j) and lives in row j mod 2. Every token is read once,
in both rows of one forward pass: in the window that decides, and in the one that will decide from the next multiple of h
on. Moving the window needs no prefill.

A row stores tokens in a ring of pages that holds the window and `slack` tokens more. A rollback by up to `slack` tokens only
lowers the lane's count of read tokens. After a deeper rollback, the window is read again.

A pass reads all lanes or a group of lanes. At a hand-over, only a few lanes have tokens to read, but each has many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.decode.cache import new_pages, ring_table
from tessy_jax.decode.state import PredictorState
from tessy_jax.decode.windows import read_window
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.pages import PAGE, LayerPages, PagedKV, Rows, page_count
from tessy_jax.models.transformer import Decoder
from tessy_jax.sharding import Partitioner, zeros

ROWS = 2


def new_predictor_state(
    config: ModelConfig, lanes: int, window: int, slack: int, dtype: Any, partitioner: Partitioner, page: int = PAGE
) -> PredictorState:
    """An empty cache of 2 rows per lane for a predictor. slack: number of tokens kept beyond the window; at least the
    number of tokens that a lane reads per pass. page: tokens per page."""
    rows, each = ROWS * lanes, page_count(window + slack, page)
    kv = PagedKV(
        pages=(new_pages(config, config.layers, rows * each, dtype, partitioner, page),),
        tables=(ring_table(rows, each, partitioner),),
        rings=(True,),
        layers=tuple(LayerPages(0, i) for i in range(config.layers)),
    )
    numbers = (zeros((lanes,), jnp.int32, partitioner, ("lanes",)) for _ in range(2))
    return PredictorState(kv, *numbers)


def first_token_needed(tokens: Any, half: int) -> Any:
    """The first token that the cache must hold for the next decision when `tokens` tokens have been read. Accepts integers
    and arrays."""
    before = (tokens // half - 1) * half
    return before * (before > 0)


def rolled_back(predictor: PredictorState, tokens_B: jax.Array, half: int) -> PredictorState:
    """The state after a rollback to at most tokens_B tokens of the response. If a lane's pages no longer hold all tokens
    that the next decision needs, the lane reads its window again."""
    read_B = jnp.minimum(predictor.read_B, tokens_B)
    needed_B = first_token_needed(read_B, half)
    again_B = needed_B < predictor.first_B
    return replace(
        predictor,
        read_B=jnp.where(again_B, needed_B, read_B),
        first_B=jnp.where(again_B, needed_B, predictor.first_B),
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Group:
    """The lanes of a pass: their indices, or None for all lanes. Indices of B or more are padding."""

    lanes_G: jax.Array | None

    @classmethod
    def first(cls, where_B: jax.Array, size: int) -> Group:
        """The first `size` lanes for which where_B holds."""
        B = where_B.shape[0]
        number_B = jnp.cumsum(where_B, dtype=jnp.int32) - 1
        at_G = jnp.arange(size, dtype=jnp.int32)
        is_lane_GB = where_B & (number_B == at_G[:, None])
        lane_G = jnp.where(is_lane_GB, jnp.arange(B, dtype=jnp.int32), 0).sum(axis=1)
        return cls(jnp.where(is_lane_GB.any(axis=1), lane_G, B + at_G))

    def take(self, x_B: jax.Array) -> jax.Array:
        """The values of the group [G, …] from [B, …]; padding gets the values of another lane."""
        return x_B if self.lanes_G is None else x_B.at[self.lanes_G].get(mode="clip")

    def put(self, old_B: jax.Array, new_G: jax.Array) -> jax.Array:
        """old_B with new_G in the lanes of the group."""
        return new_G if self.lanes_G is None else old_B.at[self.lanes_G].set(new_G, mode="drop", unique_indices=True)

    def window(self, old_MBX: jax.Array, m: int, start_G: jax.Array, size: int) -> jax.Array:
        """`size` elements of each lane of the group from start_G on [G, size], of part m; see `windows`."""
        if self.lanes_G is None:
            return read_window(old_MBX, start_G, size, m)
        index_GT = jnp.clip(start_G[:, None] + jnp.arange(size), 0, old_MBX.shape[2] - 1)
        return old_MBX.at[m, self.lanes_G[:, None], index_GT].get(mode="clip")

    def rows(self) -> jax.Array | None:
        """The rows of the predictor's cache [2 G]."""
        return None if self.lanes_G is None else (ROWS * self.lanes_G[:, None] + jnp.arange(ROWS)).reshape(-1)


@jax.named_scope("predict")
def predict(
    graph: Any,
    params: Any,
    predictor: PredictorState,
    tokens_GT: jax.Array,
    counts_G: jax.Array,
    half: int,
    logit: jax.Array,
    group: Group = Group(None),
) -> tuple[PredictorState, jax.Array]:
    """Reads the first counts_G tokens of each lane of a group (default: all). They must not cross a multiple of `half`.

    Returns the predictor's state and [G, T]: whether the token *after* each is style, i.e. its style score minus its
    capability score exceeds `logit`.
    """
    model: Decoder = nnx.merge(graph, params)
    G, T = tokens_GT.shape
    read_G = group.take(predictor.read_B)
    block_G = read_G // half
    row_2 = jnp.arange(ROWS)
    window_G2 = block_G[:, None] + (block_G[:, None] % ROWS != row_2)
    anchors = jnp.maximum(0, (window_G2 - 1) * half).reshape(-1)
    if group.lanes_G is not None:
        counts_G = jnp.where(group.lanes_G < predictor.read_B.shape[0], counts_G, 0)
    rows = Rows(jnp.repeat(read_G, ROWS), jnp.repeat(counts_G, ROWS), group.rows(), anchors)
    hidden, kv = model(jnp.repeat(jnp.maximum(tokens_GT, 0), ROWS, axis=0), cache=predictor.kv, rows=rows)
    assert kv is not None
    hidden_G2TD = hidden.reshape(G, ROWS, T, -1)
    deciding_GTD = jnp.take_along_axis(hidden_G2TD, (block_G % ROWS)[:, None, None, None], axis=1)[:, 0]
    scores_GTC = model.logits(deciding_GTD)
    style_GT = scores_GTC[..., 1] - scores_GTC[..., 0] > logit
    read_B = group.put(predictor.read_B, read_G + counts_G)
    slots = kv.tables[0].shape[1] * kv.pages[0].shape[3]
    return PredictorState(kv, read_B, jnp.maximum(predictor.first_B, read_B - slots)), style_GT
