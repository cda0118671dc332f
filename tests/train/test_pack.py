"""Packing keeps all examples, separates them, and depends only on lengths, seed and epoch."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.errors import ConfigError
from tessy_jax.train.pack import NO_TARGET, Example, assemble, batches, pack

SIZE = 50
LENGTHS = st.lists(st.integers(1, SIZE), max_size=400)


@given(LENGTHS, st.integers(0, 3), st.integers(0, 3))
def test_every_example_is_in_one_row_that_holds_it(lengths, seed, epoch):
    rows = pack(lengths, SIZE, seed=seed, epoch=epoch)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[number] for number in row) <= SIZE for row in rows)
    assert rows == pack(lengths, SIZE, seed=seed, epoch=epoch)


def test_another_epoch_or_seed_is_another_order():
    lengths = [7] * 100
    plans = [pack(lengths, SIZE, seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    assert len({str(plan) for plan in plans}) == 3


def test_rows_are_full_for_lengths_distributed_as_those_of_responses():
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(9.2, 0.7, 3000), 200, 40_960).astype(int)
    rows = pack(lengths, 40_960, seed=0, epoch=0)
    assert lengths.sum() / (len(rows) * 40_960) > 0.95


@pytest.mark.parametrize(("lengths", "message"), [([3, 51], "example 1 has 51 tokens"), ([4, 0], "example 1 has 0 tokens")])
def test_an_example_that_fits_no_row_is_an_error(lengths, message):
    with pytest.raises(ConfigError, match=message):
        pack(lengths, SIZE, seed=0, epoch=0)


@given(LENGTHS, st.integers(1, 5))
def test_batches_hold_every_row(lengths, size):
    rows = pack(lengths, SIZE, seed=0, epoch=0)
    result = batches(rows, size)
    assert [row for batch in result for row in batch if row] == rows
    assert all(len(batch) == size for batch in result)


@given(LENGTHS)
def test_a_target_is_the_next_token_of_the_same_example(lengths):
    examples = [
        Example(tokens := np.arange(n) + 1000 * i, tokens, np.full(n, 1 + i % 3, np.uint8)) for i, n in enumerate(lengths)
    ]
    rows = pack(lengths, SIZE, seed=0, epoch=0)
    batch = assemble([[examples[i] for i in row] for row in rows], SIZE)
    is_target = batch.kinds_BT != NO_TARGET
    assert (batch.targets_BT[is_target] == batch.tokens_BT[is_target] + 1).all()
    assert (batch.kinds_BT[is_target] == 1 + batch.targets_BT[is_target] // 1000 % 3).all()
    assert is_target.sum() == sum(n - 1 for n in lengths)
    assert (batch.segments_BT > 0).sum() == sum(lengths)
