"""Fused attention equals plain attention."""

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


def inputs(dtype):
    """Queries, keys and values of packed documents, and their segments."""
    rng = np.random.default_rng(0)
    shapes = ((B, T, K, G, H), (B, K, T, H), (B, K, T, H))
    segments = np.zeros((B, T), np.int32)
    for row, ends in enumerate(ENDS):
        segments[row, : ends[0]], segments[row, ends[0] : ends[1]] = 1, 2
    arrays = tuple(jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes)
    return arrays, jnp.asarray(segments)


def both(window, dtype, implementation):
    """Value and gradients of the plain and of the fused function, at tokens that are not padding."""
    arrays, segments = inputs(dtype)
    positions = segment_positions(segments)
    weights = jnp.asarray(np.random.default_rng(1).normal(size=(B, T, K, G, H))) * (segments > 0)[:, :, None, None, None]

    def plain(arrays):
        masks = {"q_positions_BT": positions, "k_positions_BS": positions, "q_segments_BT": segments}
        return (attend(*arrays, scale=0.3, window=window, k_segments_BS=segments, **masks) * weights).sum()

    def fused(arrays):
        options = {"positions_BT": positions, "segments_BT": segments, "implementation": implementation}
        return (attend_fused(*arrays, scale=0.3, window=window, **options).astype(jnp.float32) * weights).sum()

    return [jax.jit(jax.value_and_grad(f))(arrays) for f in (plain, fused)]


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("block", [8, 64])
def test_fused_attention_equals_plain_attention_over_packed_documents(monkeypatch, window, block):
    monkeypatch.setattr(attention, "FUSED_BLOCK", block)
    (plain_value, plain_grads), (fused_value, fused_grads) = both(window, jnp.float32, "xla")
    assert float(fused_value) == pytest.approx(float(plain_value), abs=1e-3)
    for plain, fused in zip(plain_grads, fused_grads, strict=True):
        np.testing.assert_allclose(fused, plain, atol=1e-4)


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
def test_the_kernel_is_used_only_where_cudnn_supports_it(monkeypatch, capability, tokens, head, dtype, fused):
    device = SimpleNamespace(**({} if capability is None else {"compute_capability": capability}))
    monkeypatch.setattr(jax, "devices", lambda: [device])
    q, v = jnp.zeros((B, tokens, K, G, head), dtype), jnp.zeros((B, K, tokens, head), dtype)
    assert _fusable(q, v, jnp.ones((B, tokens), jnp.int32), None) is fused
    assert not _fusable(q, v, None, None)
    assert not _fusable(q, v, jnp.ones((B, tokens), jnp.int32), jnp.zeros((K, G)))


@pytest.mark.gpu
@pytest.mark.parametrize("window", [None, 5])
def test_the_kernel_of_a_gpu_equals_plain_attention_up_to_bfloat16_rounding(monkeypatch, window):
    monkeypatch.setattr(attention, "FUSED_BLOCK", 16)
    (plain_value, plain_grads), (fused_value, fused_grads) = both(window, jnp.bfloat16, "cudnn")
    assert float(fused_value) == pytest.approx(float(plain_value), abs=0.02 * B * T)
    for plain_grad, fused_grad in zip(plain_grads, fused_grads, strict=True):
        plain, fused = np.asarray(plain_grad, np.float32), np.asarray(fused_grad, np.float32)
        assert np.linalg.norm(plain - fused) <= 0.03 * np.linalg.norm(plain)
