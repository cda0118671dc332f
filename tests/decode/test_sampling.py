"""Sampling is greedy at 0, follows the softmax above, and its noise belongs to a position."""

import jax
import jax.numpy as jnp
import numpy as np

from tessy_jax.decode.sampling import position_keys, sample


def keys(count, sample_id=0, attempt=0):
    ids = jnp.full(count, sample_id), jnp.full(count, attempt), jnp.arange(count)
    return position_keys(jnp.uint32(7), *ids)


def test_temperature_0_takes_the_largest_logit():
    logits = jax.random.normal(jax.random.key(0), (50, 30))
    np.testing.assert_array_equal(sample(logits, keys(50), jnp.float32(0)), np.argmax(logits, axis=-1))


def test_frequencies_follow_the_softmax_of_logits_over_temperature():
    logits = jnp.array([1.0, 0.0, -1.0, 2.0])
    drawn = sample(jnp.tile(logits, (20_000, 1)), keys(20_000), jnp.float32(0.7))
    frequencies = np.bincount(np.asarray(drawn), minlength=4) / 20_000
    np.testing.assert_allclose(frequencies, jax.nn.softmax(logits / 0.7), atol=0.012)  # three standard errors


def test_keys_differ_between_samples_attempts_and_positions_and_nothing_else():
    first = jax.random.key_data(keys(4))
    np.testing.assert_array_equal(first, jax.random.key_data(keys(4)))
    np.testing.assert_array_equal(first[:2], jax.random.key_data(keys(2)))
    others = [jax.random.key_data(keys(4, 1, 0)), jax.random.key_data(keys(4, 0, 1))]
    rows = np.concatenate([first, *others])
    assert len(np.unique(rows, axis=0)) == 12
