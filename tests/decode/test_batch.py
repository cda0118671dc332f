"""A pass reads each lane's next tokens in order, within its room, and serves the lanes in turn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tessy_jax.decode.batch import Batch, Room
from tessy_jax.sharding import Partitioner, make_mesh

# a few rooms, as each is compiled once: (rows, row_tokens, tokens, lane_tokens)
ROOMS = [
    Room(1, 1, 1, 1),
    Room(2, 1, 2, 9),
    Room(6, 1, 6, 3),
    Room(1, 4, 4, 9),
    Room(2, 3, 3, 4),
    Room(3, 2, 5, 4),
    Room(4, 4, 1, 9),
    Room(5, 2, 10, 2),
    Room(6, 3, 9, 8),
    Room(6, 4, 24, 5),
]
rooms = st.sampled_from(ROOMS)
lanes = st.integers(1, 2).flatmap(
    lambda shards: st.tuples(
        st.lists(st.lists(st.integers(0, 12), min_size=5, max_size=5), min_size=shards, max_size=shards),
        st.lists(st.integers(0, 4), min_size=shards, max_size=shards),
    )
)


share = jax.jit(Room.share, static_argnums=0)


@functools.partial(jax.jit, static_argnums=(0, 1))
def read(room, shards, left_B, first_D, lengths_B):
    """A batch of side 1: its rows, the packed indices of their tokens, each lane's number of tokens, and the packed tokens;
    then, by way of the outputs, the packed index of each lane's last token, and each lane's own number."""
    counts_B, _ = room.share(left_B, first_D)
    batch = Batch.of(room, counts_B, lengths_B, shards)
    lanes = 5 * shards
    ids_MBS = jnp.arange(2 * lanes * 40).reshape(2, lanes, 40)
    tokens = batch.tokens(ids_MBS, 1, room.row_tokens, Partitioner(make_mesh({"data": shards}))).reshape(shards, -1)
    last = batch.last(jnp.arange(tokens.size).reshape(shards, -1, 1).astype(jnp.float32))[:, 0, 0]
    lanes_at = batch.of_outputs(jnp.arange(lanes)[:, None])[:, 0]
    rows, packing = batch.rows, batch.rows.packing
    index_RT = jnp.arange(room.rows * shards)[:, None] % room.rows if packing is None else packing.index_RT
    return (
        (rows.lanes_R, rows.starts_R, rows.counts_R),
        index_RT,
        counts_B,
        tokens,
        batch.of_lanes(last),
        batch.of_lanes(lanes_at),
    )


def shared(room, left, first):
    """Tokens of each lane of a shard, and the lane that is served first next, by a plain loop over the lanes."""
    rows, tokens, given, waits = room.rows, room.tokens, [0] * len(left), None
    for i in range(len(left)):
        lane = (first + i) % len(left)
        wanted = min(left[lane], room.lane_tokens, room.tokens, room.rows * room.row_tokens)
        if waits is None:
            given[lane] = min(wanted, tokens, rows * room.row_tokens)
            tokens, rows = tokens - given[lane], rows - -(-given[lane] // room.row_tokens)
            waits = lane if given[lane] < wanted else None
    return given, first if waits is None else waits


@given(rooms, lanes)
@settings(max_examples=150, deadline=None)
def test_lanes_are_served_in_turn_until_the_room_is_used_up(room, drawn):
    left, first = drawn
    counts_B, first_D = share(room, np.array(left, np.int32).reshape(-1), np.array(first, np.int32))
    expected = [shared(room, *pair) for pair in zip(left, first, strict=True)]
    assert counts_B.reshape(len(left), -1).tolist() == [given for given, _ in expected]
    assert first_D.tolist() == [waits for _, waits in expected]


@given(rooms)
@settings(max_examples=40, deadline=None)
def test_every_lane_has_its_turn_while_all_lanes_want_room(room):
    first_D, waited = np.zeros(1, np.int32), np.zeros(5, int)
    for _ in range(30):
        counts_B, first_D = share(room, np.full(5, 99, np.int32), first_D)
        waited = np.where(np.asarray(counts_B) > 0, 0, waited + 1)
        assert waited.max() < 5


@given(rooms, lanes, st.data())
@settings(max_examples=150, deadline=None)
def test_a_batch_holds_the_next_tokens_of_each_lane_once_and_in_order(room, drawn, data):
    left, first = drawn
    shards = len(left)
    lengths = data.draw(st.lists(st.integers(0, 20), min_size=5 * shards, max_size=5 * shards))
    of_rows, numbers, counts_B, tokens, last, lanes_at = read(
        room, shards, np.array(left, np.int32).reshape(-1), np.array(first, np.int32), np.array(lengths, np.int32)
    )
    tokens, last, lanes_at = np.asarray(tokens), np.asarray(last), np.asarray(lanes_at)
    lanes_R, starts_R, counts_R = map(np.asarray, of_rows)
    numbers = np.asarray(numbers)
    found = {lane: [] for lane in range(5 * shards)}
    for r in range(room.rows * shards):
        shard, lane = r // room.rows, int(lanes_R[r]) + r // room.rows * 5
        for t in range(int(counts_R[r])):
            found[lane].append((int(starts_R[r]) + t, int(tokens[shard, numbers[r, t]]), (shard, int(numbers[r, t]))))
    used = [index for of_lane in found.values() for *_, index in of_lane]
    assert len(set(used)) == len(used) == int(counts_B.sum())
    for lane, of_lane in found.items():
        expected = range(lengths[lane], lengths[lane] + int(counts_B[lane]))
        assert [(i, token) for i, token, _ in of_lane] == [(i, (5 * shards + lane) * 40 + i) for i in expected]
        if of_lane:
            shard, index = of_lane[-1][2]
            assert int(last[lane]) == shard * tokens.shape[1] + index
            assert int(lanes_at[lane]) == lane


def test_a_room_is_filled_if_the_lanes_of_every_shard_fill_its_rows():
    room = Room(rows=3, row_tokens=2, tokens=5, lane_tokens=4)
    assert bool(room.is_filled(jnp.array([4, 1, 0, 0, 9, 1]), 2))
    assert not bool(room.is_filled(jnp.array([4, 0, 0, 9, 9, 9]), 2))


def test_the_shards_of_a_mesh_read_their_own_lanes_without_communication():
    room, partitioner = Room(rows=2, row_tokens=3, tokens=5, lane_tokens=4), Partitioner(make_mesh({"data": 4, "tensor": 2}))
    ids_MBS = jnp.arange(2 * 8 * 20).reshape(2, 8, 20)
    counts_B, lengths_B = jnp.array([2, 3, 3, 1, 0, 0, 1, 1]), jnp.arange(8)

    def read(placed, counts_B, lengths_B):
        return Batch.of(room, counts_B, lengths_B, 4).tokens(placed, 0, room.row_tokens, partitioner)

    placed = jax.device_put(ids_MBS, partitioner.sharding((None, "lanes", None)))
    lanes = [jax.device_put(x, partitioner.sharding(("lanes",))) for x in (counts_B, lengths_B)]
    compiled = jax.jit(read).lower(placed, *lanes).compile()
    expected = [[0, 1, 21, 22, 23], [42, 43, 44, 63], [], [126, 147]]
    for row, ids in zip(np.asarray(compiled(placed, *lanes)), expected, strict=True):
        assert row[: len(ids)].tolist() == ids
    assert "all-gather" not in compiled.as_text()
