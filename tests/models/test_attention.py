"""The fused kernel's attention is the attention of the plain products."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tessy_jax.models import attention
from tessy_jax.models.attention import _fusable, attend, attend_fused
from tessy_jax.models.transformer import segment_positions

B, T, K, G, H = 2, 40, 2, 3, 16
ENDS = ((7, 30, 40), (25, 33, 40))  # of documents; the last of each row is padding


def sides(dtype):
    rng = np.random.default_rng(0)
    shapes = ((B, T, K, G, H), (B, K, T, H), (B, K, T, H))
    segments = np.zeros((B, T), np.int32)
    for row, ends in enumerate(ENDS):
        segments[row, : ends[0]], segments[row, ends[0] : ends[1]] = 1, 2
    arrays = tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return arrays, jnp.asarray(segments)


def both(window, dtype, implementation):
    """Value and gradients of the plain and of the fused function, at tokens that are no padding."""
    arrays, segments = sides(dtype)
    positions = segment_positions(segments)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, K, G, H))) * (segments > 0)[:, :, None, None, None]

    def plain(arrays):
        how = {"q_positions_BT": positions, "k_positions_BS": positions, "q_segments_BT": segments}
        return (attend(*arrays, scale=0.3, window=window, k_segments_BS=segments, **how) * weights).sum()

    def fused(arrays):
        how = {"positions_BT": positions, "segments_BT": segments, "implementation": implementation}
        return (attend_fused(*arrays, scale=0.3, window=window, **how).astype(jnp.float32) * weights).sum()

    return [jax.jit(jax.value_and_grad(f))(arrays) for f in (plain, fused)]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("block", [8, 64])
def test_fused_attention_equals_plain_attention_over_packed_documents(monkeypatch, window, block):
    monkeypatch.setattr(attention, "FUSED_BLOCK", block)
    (value, grads), (other, others) = both(window, jnp.float32, "xla")
    assert float(other) == pytest.approx(float(value), abs=1e-3)
    for one, two in zip(grads, others, strict=True):
        np.testing.assert_allclose(two, one, atol=1e-4)


@pytest.mark.parametrize(
    ("capability", "tokens", "head", "dtype", "fused"),
    [
        ("9.0", T, H, jnp.bfloat16, True),
        ("7.5", T, H, jnp.bfloat16, False),
        ("gfx90a", T, H, jnp.bfloat16, False),
        (None, T, H, jnp.bfloat16, False),
        ("9.0", T - 1, H, jnp.bfloat16, False),
        ("9.0", T, 192, jnp.bfloat16, False),
        ("9.0", T, H, jnp.float32, False),
    ],
)
def test_the_kernel_is_taken_only_where_there_is_one(monkeypatch, capability, tokens, head, dtype, fused):
    device = SimpleNamespace(**({} if capability is None else {"compute_capability": capability}))
    monkeypatch.setattr(jax, "devices", lambda: [device])
    q, v = jnp.zeros((B, tokens, K, G, head), dtype), jnp.zeros((B, K, tokens, head), dtype)
    assert _fusable(q, v, jnp.ones((B, tokens), jnp.int32), None) is fused
    assert not _fusable(q, v, None, None)
    assert not _fusable(q, v, jnp.ones((B, tokens), jnp.int32), jnp.zeros((K, G)))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_of_a_gpu_equals_plain_attention_up_to_the_rounding_of_bfloat16(monkeypatch, window):
    monkeypatch.setattr(attention, "FUSED_BLOCK", 16)
    (value, grads), (other, others) = both(window, jnp.bfloat16, "cudnn")
    assert float(other) == pytest.approx(float(value), abs=0.02 * B * T)
    for one, two in zip(grads, others, strict=True):
        plain, fused = np.asarray(one, np.float32), np.asarray(two, np.float32)
        assert np.linalg.norm(plain - fused) <= 0.03 * np.linalg.norm(plain)
