"""Sampling is greedy at 0, follows the softmax above, and its noise belongs to a position."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tessy_jax.backend import Backend, tracing_for
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


def drawn_by_sorting(logits_V, uniform, temperature, top_p, top_k, min_p):
    """The draw in float64 by sorting; all logits differ."""
    weights_V = np.exp((logits_V.astype(np.float64) - logits_V.max()) / temperature)
    by_rank = np.argsort(-weights_V)
    weights_V[by_rank[top_k or len(by_rank) :]] = 0
    before_V = np.cumsum(weights_V[by_rank]) - weights_V[by_rank]
    weights_V[by_rank[before_V >= top_p * weights_V.sum()]] = 0
    weights_V[weights_V < min_p] = 0
    order = by_rank if 0 < top_k <= FEW else np.arange(len(logits_V))
    total_V = np.cumsum(weights_V[order])
    return order[np.searchsorted(total_V, uniform * total_V[-1], side="right")]


@pytest.mark.parametrize(
    ("filters", "platform"),
    [
        ((0.7, 0.8, 20, 0.0), "cpu"),
        ((0.6, 1.0, 0, 0.01), "cpu"),
        ((1.0, 0.95, 0, 0.0), "cpu"),
        ((1.2, 0.9, FEW + 9, 0.0), "cpu"),
        ((1.2, 0.9, FEW + 9, 0.0), "tpu"),
    ],
)
def test_a_draw_inverts_the_distribution_that_sorting_gives(filters, platform):
    logits = np.random.default_rng(1).normal(size=(400, 5000)).astype(np.float32) * 3
    uniforms = np.asarray(jax.vmap(jax.random.uniform)(keys(400)), np.float64)
    with tracing_for(Backend(platform)):
        drawn = jax.jit(lambda x, k: sample(x, k, Sampling.of(*filters)))(logits, keys(400))
    np.testing.assert_array_equal(drawn, [drawn_by_sorting(*row, *filters) for row in zip(logits, uniforms, strict=True)])


@pytest.mark.parametrize(("top_p", "top_k", "ids"), [(1.0, 5, 5), (0.3, 0, 200), (1.0, FEW + 1, 200)])
def test_ties_at_a_threshold_stay_unless_top_k_is_small(top_p, top_k, ids):
    drawn = jax.jit(sample)(jnp.zeros((3000, 200)), keys(3000), Sampling.of(1.0, top_p, top_k))
    np.testing.assert_array_equal(np.unique(drawn), np.arange(ids))


@pytest.mark.parametrize("filters", [(0.7, 0.8, 20), (1.0, 0.95)])
def test_a_draw_does_not_depend_on_other_lanes_or_their_number(filters):
    logits = 3 * jax.random.normal(jax.random.key(5), (64, 3000))
    draw, sampling = jax.jit(sample), Sampling.of(*filters)
    drawn = draw(logits, keys(64), sampling)
    np.testing.assert_array_equal(draw(logits[::-1], keys(64)[::-1], sampling), drawn[::-1])
    np.testing.assert_array_equal(draw(logits[:3], keys(3), sampling), drawn[:3])


def test_a_new_value_does_not_recompile_and_a_new_filter_does():
    draw = jax.jit(partial(sample))  # `partial` gives it a cache of its own
    for filters, programs in (((0.7, 0.8, 20), 1), ((1.1, 0.9, 20, 0.1), 1), ((0.7, 1.0, 20), 2), ((0.0,), 3)):
        draw(jnp.zeros((2, 30)), keys(2), Sampling.of(*filters))
        assert draw._cache_size() == programs
