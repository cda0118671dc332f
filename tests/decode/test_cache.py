"""The cache does what a plain list of tokens per lane would."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessy_jax.decode.cache import LayerKV

LANES, WINDOW, SLACK = 2, 5, 4


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_every_position_a_later_query_may_see_holds_its_token_after_any_appends_and_rollbacks(dtype, data):
    windowed = data.draw(st.booleans())
    size = WINDOW + SLACK if windowed else 64
    slots = LayerKV(jnp.zeros((LANES, 1, size, 1), dtype), jnp.zeros((LANES, 1, size, 1), dtype))
    known = [[], []]
    value = 0
    for _ in range(data.draw(st.integers(1, 8))):
        width = data.draw(st.integers(1, SLACK))
        counts = [data.draw(st.integers(0, width)) for _ in range(LANES)]
        lengths = [len(lane) for lane in known]
        chunk = np.zeros((LANES, 1, width, 1), np.float32)
        for lane in range(LANES):
            for t in range(width):
                value = (value + 1) % 250
                chunk[lane, 0, t, 0] = value
                if t < counts[lane]:
                    known[lane].append(value)
        keys = jnp.asarray(chunk)
        slots = slots.append(keys, keys + 1, jnp.asarray(lengths, jnp.int32), jnp.asarray(counts, jnp.int32))
        for lane in range(LANES):
            # rolled back by at most what was appended, so never more than the slack
            keep = len(known[lane]) - data.draw(st.integers(0, counts[lane]))
            known[lane] = known[lane][:keep]
        lengths = jnp.asarray([len(lane) for lane in known], jnp.int32)
        positions = np.asarray(slots.positions(lengths))
        stored_keys, stored_values = (np.asarray(x, np.float32) for x in slots.read())
        for lane in range(LANES):
            slot_of = {int(p): s for s, p in enumerate(positions[lane]) if p >= 0}
            oldest = max(0, len(known[lane]) - (WINDOW - 1)) if windowed else 0
            assert max(slot_of, default=-1) == len(known[lane]) - 1
            for position in range(oldest, len(known[lane])):
                assert stored_keys[lane, 0, slot_of[position], 0] == known[lane][position]
                assert stored_values[lane, 0, slot_of[position], 0] == known[lane][position] + 1
