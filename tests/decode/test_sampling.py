"""Sampling is greedy at 0, follows the softmax above, and its noise belongs to a position."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tessy_jax.decode.sampling import FEW, GROUP, Sampling, position_keys, sample


def keys(count, sample_id=0, attempt=0):
    ids = jnp.full(count, sample_id), jnp.full(count, attempt), jnp.arange(count)
    return position_keys(jnp.uint32(7), *ids)


def test_temperature_0_takes_the_largest_logit():
    logits = jax.random.normal(jax.random.key(0), (50, 30))
    np.testing.assert_array_equal(sample(logits, keys(50), Sampling.of(0.0)), np.argmax(logits, axis=-1))


def test_frequencies_follow_the_softmax_of_logits_over_temperature():
    logits = jnp.array([1.0, 0.0, -1.0, 2.0])
    drawn = sample(jnp.tile(logits, (20_000, 1)), keys(20_000), Sampling.of(0.7))
    frequencies = np.bincount(np.asarray(drawn), minlength=4) / 20_000
    np.testing.assert_allclose(frequencies, jax.nn.softmax(logits / 0.7), atol=0.012)  # three standard errors


def test_keys_differ_between_samples_attempts_and_positions_and_nothing_else():
    first = jax.random.key_data(keys(4))
    np.testing.assert_array_equal(first, jax.random.key_data(keys(4)))
    np.testing.assert_array_equal(first[:2], jax.random.key_data(keys(2)))
    others = [jax.random.key_data(keys(4, 1, 0)), jax.random.key_data(keys(4, 0, 1))]
    rows = np.concatenate([first, *others])
    assert len(np.unique(rows, axis=0)) == 12


def kept_by_hugging_face(logits, temperature, top_p, top_k, min_p):
    """Probabilities after transformers' own filters, in their order."""
    import torch
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    scores = torch.tensor(np.asarray(logits))[None]
    for warper in warpers:
        scores = warper(None, scores)
    return torch.softmax(scores, dim=-1)[0].numpy()


@pytest.mark.parametrize(
    "filters", [(0.7, 0.8, 20, 0.0), (1.0, 0.9, 0, 0.0), (1.3, 1.0, 5, 0.0), (1.0, 1.0, 0, 0.05), (0.9, 0.7, FEW + 40, 0.02)]
)
def test_filters_keep_the_tokens_and_shares_that_transformers_keeps(filters):
    V = GROUP * (FEW + 2)
    logits = 2.5 * jax.random.normal(jax.random.key(3), (V,))
    expected = kept_by_hugging_face(logits, *filters)
    count = 10_000
    draw = jax.jit(lambda k: sample(jnp.broadcast_to(logits, (500, V)), k, Sampling.of(*filters)))
    drawn = np.concatenate([np.asarray(draw(keys(500, sample_id=i))) for i in range(count // 500)])
    frequencies = np.bincount(drawn, minlength=V) / count
    clearly_out = jax.nn.softmax(logits / filters[0]) < 0.98 * jax.nn.softmax(logits / filters[0])[expected > 0].min()
    assert clearly_out.any()
    assert not frequencies[clearly_out].any()
    likely = expected > 0.002
    np.testing.assert_allclose(frequencies[likely], expected[likely], atol=4 * np.sqrt(expected[likely].max() / count))
