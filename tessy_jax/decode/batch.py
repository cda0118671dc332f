"""The tokens that one forward pass reads: which lanes take part, and how their tokens form rows.

A pass has room for a fixed number of rows and tokens on each shard of the lanes, whatever the number of lanes. A row holds
consecutive tokens of one lane. Attention works on rows; all other layers work on the packed tokens of all rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tessy_jax.models.pages import Packing, Rows
from tessy_jax.sharding import Axes, Partitioner


class Room(NamedTuple):
    """The most that a pass reads on each shard of the lanes."""

    rows: int
    """Rows."""
    row_tokens: int
    """Tokens of a row."""
    tokens: int
    """Tokens of all rows; `rows` of them if a row has one token."""
    lane_tokens: int
    """Tokens of a lane."""

    def share(self, left_B: jax.Array, first_D: jax.Array) -> tuple[jax.Array, jax.Array]:
        """How many tokens of each lane [B] the next pass reads, if left_B are left to read, and the first lane of each shard
        [D] that finds too little room, or first_D if all lanes find room.

        Lanes are served in order from lane first_D of the shard on, the last lane being followed by lane 0.
        """
        D = first_D.shape[0]
        wanted_Db = self._wanted(left_B).reshape(D, -1)
        b = wanted_Db.shape[1]
        at_b = jnp.arange(b, dtype=jnp.int32)
        turn_Db = (at_b - first_D[:, None]) % b
        room_Db = self.tokens - _before(wanted_Db, first_D)
        room_Db = jnp.minimum(room_Db, self.row_tokens * (self.rows - _before(self.rows_of(wanted_Db), first_D)))
        given_Db = jnp.clip(room_Db, 0, wanted_Db)
        waits_D = jnp.where(given_Db < wanted_Db, turn_Db, b).min(axis=1)
        return given_Db.reshape(-1), (first_D + waits_D) % b

    def is_filled(self, left_B: jax.Array, shards: int) -> jax.Array:
        """Whether lanes with left_B tokens to read fill all rows of every shard."""
        wanted_Db = self._wanted(left_B).reshape(shards, -1)
        return (self.rows_of(wanted_Db).sum(axis=1) >= self.rows).all()

    def _wanted(self, left_B: jax.Array) -> jax.Array:
        """A lane never wants more than there is room for, so that the lane that is served first gets all that it wants."""
        return jnp.minimum(left_B, min(self.lane_tokens, self.tokens, self.rows * self.row_tokens))

    def rows_of(self, tokens: jax.Array) -> jax.Array:
        """The rows that these tokens of a lane take."""
        return -(-tokens // self.row_tokens)


def _before(counts_Db: jax.Array, first_D: jax.Array) -> jax.Array:
    """The sum [D, b] over the lanes of the shard that are served before each lane."""
    before_Db = jnp.cumsum(counts_Db, axis=1) - counts_Db
    earlier_Db = jnp.arange(counts_Db.shape[1]) < first_D[:, None]
    skipped_D1 = jnp.where(earlier_Db, counts_Db, 0).sum(axis=1, keepdims=True)
    total_D1 = counts_Db.sum(axis=1, keepdims=True)
    return before_Db - skipped_D1 + jnp.where(earlier_Db, total_D1, 0)


@dataclass(frozen=True)
class Batch:
    """The tokens of a pass. A pass has n outputs per shard, at which logits are computed: one for each lane, or one for each
    row if there are fewer rows.

    rows: the rows of all shards. last_Dn: packed index of the token that gives each output. lanes_Dn: lane of each output,
    numbered within its shard; outputs_Db: output of each lane. Both are None if output b is that of lane b.
    """

    rows: Rows
    last_Dn: jax.Array
    lanes_Dn: jax.Array | None
    outputs_Db: jax.Array | None

    @classmethod
    def of(cls, room: Room, counts_B: jax.Array, lengths_B: jax.Array, shards: int) -> Batch:
        """The batch of the next counts_B tokens of each lane after the first lengths_B tokens. See `Room.share`."""
        R, T, u = room.rows, room.row_tokens, room.tokens
        counts_Db = counts_B.reshape(shards, -1)
        rows_Db = room.rows_of(counts_Db)
        upto_Db = jnp.cumsum(rows_Db, axis=1)
        at_R = jnp.arange(R, dtype=jnp.int32)
        lanes_DR = (at_R[:, None] >= upto_Db[:, None]).sum(axis=2, dtype=jnp.int32)
        lanes_DR = jnp.minimum(lanes_DR, counts_Db.shape[1] - 1)
        facts_Db3 = jnp.stack([upto_Db - rows_Db, counts_Db, lengths_B.reshape(shards, -1)], axis=-1)
        first_DR, count_DR, length_DR = jnp.moveaxis(jnp.take_along_axis(facts_Db3, lanes_DR[..., None], axis=1), -1, 0)
        read_DR = (at_R - first_DR) * T  # tokens of the lane in earlier rows
        counts_DR = jnp.clip(count_DR - read_DR, 0, T)
        packing, last_DR = None, jnp.broadcast_to(at_R, counts_DR.shape)
        if T > 1:
            ends_DR = jnp.cumsum(counts_DR, axis=1)
            starts_DR = ends_DR - counts_DR
            at_u = jnp.arange(u, dtype=jnp.int32)
            rows_Du = jnp.minimum((at_u[:, None] >= ends_DR[:, None]).sum(axis=2, dtype=jnp.int32), R - 1)
            times_Du = jnp.clip(at_u - jnp.take_along_axis(starts_DR, rows_Du, axis=1), 0, T - 1)
            index_RT = jnp.minimum(starts_DR.reshape(-1, 1) + jnp.arange(T, dtype=jnp.int32), u - 1)
            packing, last_DR = Packing(rows_Du * T + times_Du, index_RT), jnp.maximum(ends_DR - 1, 0)
        rows = Rows((length_DR + read_DR).reshape(-1), counts_DR.reshape(-1), lanes_DR.reshape(-1), packing=packing)
        last_row_Db = jnp.maximum(upto_Db - 1, 0)
        if counts_Db.shape[1] > R:
            return cls(rows, last_DR, lanes_DR, last_row_Db)
        return cls(rows, jnp.take_along_axis(last_DR, last_row_Db, axis=1), None, None)

    def tokens(self, ids_MBS: jax.Array, m: int | jax.Array, row_tokens: int, partitioner: Partitioner) -> jax.Array:
        """The tokens of side m: packed, or [R, 1]."""
        assert self.rows.lanes_R is not None
        arrays = {"ids": ids_MBS[m], "starts": self.rows.starts_R, "lanes": self.rows.lanes_R}
        axes: dict[str, Axes] = {"ids": ("lanes", None), "starts": ("lanes",), "lanes": ("lanes",)}

        def body(x: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
            index_RT = x["starts"][:, None] + jnp.arange(row_tokens, dtype=jnp.int32)
            return (x["ids"].at[x["lanes"][:, None], index_RT].get(mode="clip"),)

        (ids_RT,) = partitioner.by_shard(body, arrays, axes, (("lanes", None),))
        return ids_RT if self.rows.packing is None else self.rows.packing.pack(ids_RT)

    def last(self, hidden: jax.Array) -> jax.Array:
        """The hidden states of the outputs [D n, 1, …], from those of packed tokens or rows."""
        D, n = self.last_Dn.shape
        hidden = hidden.reshape(D, -1, hidden.shape[-1])
        return jnp.take_along_axis(hidden, self.last_Dn[..., None], axis=1).reshape(D * n, 1, -1)

    def of_outputs(self, x_BX: jax.Array) -> jax.Array:
        """The values [D n, …] of each output's lane."""
        if self.lanes_Dn is None:
            return x_BX
        D, n = self.lanes_Dn.shape
        return jnp.take_along_axis(x_BX.reshape(D, -1, x_BX.shape[-1]), self.lanes_Dn[..., None], axis=1).reshape(D * n, -1)

    def of_lanes(self, x_Dn: jax.Array) -> jax.Array:
        """The values [B] of each lane's output; undefined for lanes without tokens."""
        if self.outputs_Db is None:
            return x_Dn
        D = self.outputs_Db.shape[0]
        return jnp.take_along_axis(x_Dn.reshape(D, -1), self.outputs_Db, axis=1).reshape(-1)
