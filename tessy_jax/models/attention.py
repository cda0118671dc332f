"""Attention: grouped queries with windows and sinks, and DeepSeek's multi-head latent attention.

Positions and segments determine which keys a query sees, array shapes do not. Attention over complete sequences is here;
attention over a cache is in `pages`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.backend import backend
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.layers import MASKED, Linear, RMSNorm, apply_rope, einsum_f32, filled
from tessy_jax.models.pages import Heads, LayerPages, PagedKV, Rows
from tessy_jax.sharding import Partitioner

QUERY_BLOCK = 512  # longer sequences compute scores for this many queries at a time
FUSED_BLOCK = 4096  # queries, and rows of the mask, of one call of a fused kernel
FUSED_HEAD = 128  # the largest head dim that cuDNN's kernels take, forward and backward


@dataclass(frozen=True)
class AttentionContext:
    """Positions, rotation and masks of one forward pass of T tokens, shared by all layers.

    rope: cos and sin [B, T, H/2], or [D, u, H/2] for packed rows. segments_BT: documents of a packed sequence, 0 is padding;
    None with a cache. rows: the tokens that are appended to the cache; None without a cache.
    """

    positions_BT: jax.Array
    rope: tuple[jax.Array, jax.Array]
    segments_BT: jax.Array | None = None
    rows: Rows | None = None


def attend(
    q_BTKGH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    *,
    scale: float,
    q_positions_BT: jax.Array,
    k_positions_BS: jax.Array,
    q_segments_BT: jax.Array | None = None,
    k_segments_BS: jax.Array | None = None,
    window: int | jax.Array | None = None,
    sinks_KG: jax.Array | None = None,
) -> jax.Array:
    """Causal softmax attention. Scores are multiplied by `scale`; scores and softmax are float32.

    A query sees keys of its own segment at positions from 0 to its own; a window w limits it to the last w of them.
    It sees no keys at negative positions. sinks_KG: a logit per head that takes part in the softmax and has no value
    (GPT-OSS). Returns [B, T, K, G, H'] in v's dtype, where H' is v's head dim.
    """
    B, T, K, G, H = q_BTKGH.shape

    def block(part: tuple[jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        q, q_positions, q_segments = part
        seen = (k_positions_BS[:, None, :] <= q_positions[:, :, None]) & (k_positions_BS[:, None, :] >= 0)
        if window is not None:
            seen &= k_positions_BS[:, None, :] > q_positions[:, :, None] - window
        if q_segments is not None and k_segments_BS is not None:
            seen &= k_segments_BS[:, None, :] == q_segments[:, :, None]
        # heads of a group and time form one dimension M of batched matrix products, for which every backend has a kernel
        flat = q.transpose(0, 2, 3, 1, 4).reshape(B, K, -1, H)
        scores = einsum_f32("bkmh,bksh->bkms", flat, k_BKSH)
        scores = scores.reshape(B, K, G, -1, scores.shape[-1])
        scores = jnp.where(seen[:, None, None], scores * scale, MASKED)
        top = scores.max(axis=-1, keepdims=True)
        if sinks_KG is not None:
            sink = sinks_KG.astype(jnp.float32)[None, :, :, None, None]
            top = jnp.maximum(top, sink)
        weights = jnp.exp(scores - jax.lax.stop_gradient(top))
        total = weights.sum(axis=-1, keepdims=True)
        if sinks_KG is not None:
            total += jnp.exp(sink - jax.lax.stop_gradient(top))
        weights = (weights / total).astype(v_BKSH.dtype).reshape(B, K, -1, scores.shape[-1])
        out = einsum_f32("bkms,bksh->bkmh", weights, v_BKSH)
        return out.astype(v_BKSH.dtype).reshape(B, K, G, -1, out.shape[-1]).transpose(0, 3, 1, 2, 4)

    parts = (q_BTKGH, q_positions_BT, q_segments_BT)
    if T <= QUERY_BLOCK:
        return block(parts)
    count = -(-T // QUERY_BLOCK)
    rest = count * QUERY_BLOCK - T
    parts = jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, rest), *((0, 0),) * (x.ndim - 2))), parts)
    split = jax.tree.map(lambda x: x.reshape(x.shape[0], count, QUERY_BLOCK, *x.shape[2:]).swapaxes(0, 1), parts)
    out = jax.lax.map(jax.checkpoint(block), split).swapaxes(0, 1)
    return out.reshape(out.shape[0], count * QUERY_BLOCK, *out.shape[3:])[:, :T]


def attend_fused(
    q_BTKGH: jax.Array,
    k_BKSH: jax.Array,
    v_BKSH: jax.Array,
    *,
    scale: float,
    positions_BT: jax.Array,
    segments_BT: jax.Array,
    window: int | jax.Array | None = None,
    implementation: Literal["xla", "cudnn"] = "cudnn",
) -> jax.Array:
    """`attend` over complete packed sequences without sinks, by cuDNN's flash attention: scores are never written to memory,
    and blocks of keys after the queries are skipped."""
    B, T, K, G, H = q_BTKGH.shape
    q_BTNH = q_BTKGH.reshape(B, T, K * G, H)
    k_BSKH, v_BSKH = k_BKSH.swapaxes(1, 2), v_BKSH.swapaxes(1, 2)
    parts = []
    for start in range(0, T, FUSED_BLOCK):
        end = min(start + FUSED_BLOCK, T)
        queries, keys = positions_BT[:, start:end, None], positions_BT[:, None, :end]
        seen = (keys <= queries) & (segments_BT[:, start:end, None] == segments_BT[:, None, :end])
        if window is not None:
            seen &= keys > queries - window
        part = jax.nn.dot_product_attention(
            q_BTNH[:, start:end],
            k_BSKH[:, :end],
            v_BSKH[:, :end],
            mask=seen[:, None],
            scale=scale,
            is_causal=start == 0,
            implementation=implementation,
        )
        parts.append(part)
    return jnp.concatenate(parts, axis=1).reshape(B, T, K, G, H)


def _fusable(q_BTKGH: jax.Array, v_BKSH: jax.Array, segments_BT: jax.Array | None, sinks_KG: jax.Array | None) -> bool:
    """Whether cuDNN has a kernel for this attention."""
    H = q_BTKGH.shape[-1]
    fits = H % 8 == 0 and H <= FUSED_HEAD and v_BKSH.shape[-1] == H and q_BTKGH.dtype == jnp.bfloat16
    fits = fits and q_BTKGH.shape[1] % 2 == 0
    return fits and segments_BT is not None and sinks_KG is None and _has_kernels()


def _has_kernels() -> bool:
    """Whether the devices are NVIDIA GPUs of compute capability 8.0 (Ampere) or later, for which cuDNN has kernels."""
    return backend().capability >= 8.0


class Attention(nnx.Module):
    """Grouped-query attention: optional biases, query/key norm (Qwen3), sinks and sliding windows (GPT-OSS)."""

    def __init__(self, config: ModelConfig, partitioner: Partitioner, rngs: nnx.Rngs, dtype: Any) -> None:
        N, K, H, D = config.heads, config.kv_heads, config.head_dim, config.embed
        bias = config.qkv_bias
        self.q = Linear(rngs, (D, N * H), ("embed", "heads"), dtype, bias)
        self.k = Linear(rngs, (D, K * H), ("embed", "kv_heads"), dtype, bias)
        self.v = Linear(rngs, (D, K * H), ("embed", "kv_heads"), dtype, bias)
        self.o = Linear(rngs, (N * H, D), ("heads", "embed"), dtype, config.out_bias)
        self.q_norm = RMSNorm(H, config.eps, dtype) if config.qk_norm else None
        self.k_norm = RMSNorm(H, config.eps, dtype) if config.qk_norm else None
        self.sinks = filled((N,), ("heads",), dtype, 0.0) if config.sinks else None
        self.config = config
        self.partitioner = partitioner

    def __call__(
        self,
        x_BTD: jax.Array,
        context: AttentionContext,
        window: int | jax.Array | None,
        cache: PagedKV | None,
        layer: LayerPages | None,
    ) -> tuple[jax.Array, PagedKV | None]:
        c, partitioner = self.config, self.partitioner
        B, T, _ = x_BTD.shape
        K, H = c.kv_heads, c.head_dim
        q, k, v = self.q(x_BTD), self.k(x_BTD), self.v(x_BTD)
        if cache is not None and backend().platform == "tpu":  # otherwise XLA copies the weights to a layout for heads
            q, k, v = jax.lax.optimization_barrier((q, k, v))
        q, k, v = q.reshape(B, T, c.heads, H), k.reshape(B, T, K, H), v.reshape(B, T, K, H)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = apply_rope(q, context.rope), apply_rope(k, context.rope)
        q_BTKGH = q.reshape(B, T, K, c.heads // K, H)
        q_BTKGH = partitioner.constrain(q_BTKGH, "lanes", None, "kv_heads", None, None)
        k_BKTH = partitioner.constrain(k.swapaxes(1, 2), "lanes", "kv_heads", None, None)
        v_BKTH = partitioner.constrain(v.swapaxes(1, 2), "lanes", "kv_heads", None, None)
        sinks = None if self.sinks is None else self.sinks[...].reshape(K, c.heads // K)
        if cache is None:
            out = _attend_complete(q_BTKGH, k_BKTH, v_BKTH, context, window, c.query_scale, sinks)
        else:
            new_BKTC = jnp.concatenate([k_BKTH, v_BKTH], axis=-1)
            assert layer is not None
            assert not isinstance(window, jax.Array)
            heads = Heads((0, H), (H, 2 * H), window, c.query_scale)
            out, cache = _attend_cached(q_BTKGH, new_BKTC, context, heads, cache, layer, partitioner, sinks)
        return self.o(out.reshape(B, T, c.heads * H)), cache


class LatentAttention(nnx.Module):
    """Multi-head latent attention (DeepSeek-V3): one compressed latent and one rotary key per token, for all heads.

    Complete sequences expand the latent to keys and values. With a cache, queries and outputs absorb the expansion, so the
    cache holds kv_rank + rope_dim numbers per token and all heads read the same ones.
    """

    def __init__(self, config: ModelConfig, partitioner: Partitioner, rngs: nnx.Rngs, dtype: Any) -> None:
        latent = config.latent
        assert latent is not None
        N, D, Q = config.heads, config.embed, latent.q_rank
        bias = config.qkv_bias
        heads = N * (latent.nope_dim + latent.rope_dim)
        if Q is None:
            self.q = Linear(rngs, (D, heads), ("embed", "heads"), dtype)
        else:
            self.q_a = Linear(rngs, (D, Q), ("embed", None), dtype, bias)
            self.q_a_norm = RMSNorm(Q, 1e-6, dtype)
            self.q_b = Linear(rngs, (Q, heads), (None, "heads"), dtype)
        self.kv_a = Linear(rngs, (D, latent.kv_rank + latent.rope_dim), ("embed", None), dtype, bias)
        self.kv_a_norm = RMSNorm(latent.kv_rank, 1e-6, dtype)
        self.kv_b = Linear(rngs, (latent.kv_rank, N * (latent.nope_dim + latent.v_dim)), (None, "heads"), dtype)
        self.o = Linear(rngs, (N * latent.v_dim, D), ("heads", "embed"), dtype, config.out_bias)
        self.config = config
        self.latent = latent
        self.partitioner = partitioner

    def __call__(
        self,
        x_BTD: jax.Array,
        context: AttentionContext,
        window: int | jax.Array | None,
        cache: PagedKV | None,
        layer: LayerPages | None,
    ) -> tuple[jax.Array, PagedKV | None]:
        c, m, partitioner = self.config, self.latent, self.partitioner
        B, T, _ = x_BTD.shape
        N, R = c.heads, m.kv_rank
        q = self.q(x_BTD) if m.q_rank is None else self.q_b(self.q_a_norm(self.q_a(x_BTD)))
        q = q.reshape(B, T, N, m.nope_dim + m.rope_dim)
        q = partitioner.constrain(q, "lanes", None, "heads", None)
        q_nope, q_rope = q[..., : m.nope_dim], apply_rope(q[..., m.nope_dim :], context.rope, c.rope.interleaved)
        latent_BTR, k_rope = jnp.split(self.kv_a(x_BTD), [R], axis=-1)
        latent_BTR = self.kv_a_norm(latent_BTR)
        k_rope = apply_rope(k_rope[:, :, None], context.rope, c.rope.interleaved)

        if cache is None:
            kv = self.kv_b(latent_BTR).reshape(B, T, N, m.nope_dim + m.v_dim)
            k_nope, v = jnp.split(kv, [m.nope_dim], axis=-1)
            k = jnp.concatenate([k_nope, jnp.broadcast_to(k_rope, (B, T, N, m.rope_dim))], axis=-1)
            q_BTKGH = jnp.concatenate([q_nope, q_rope], axis=-1)[:, :, :, None]
            k_BKTH = partitioner.constrain(k.swapaxes(1, 2), "lanes", "heads", None, None)
            v_BKTH = partitioner.constrain(v.swapaxes(1, 2), "lanes", "heads", None, None)
            out = _attend_complete(q_BTKGH, k_BKTH, v_BKTH, context, window, c.query_scale)
            return self.o(out.reshape(B, T, N * m.v_dim)), None

        expand = self.kv_b.kernel[...].reshape(R, N, m.nope_dim + m.v_dim)
        q_latent = einsum_f32("btnh,rnh->btnr", q_nope, expand[..., : m.nope_dim]).astype(q.dtype)
        q_BTKGH = jnp.concatenate([q_latent, q_rope], axis=-1)[:, :, None]
        new_BKTC = jnp.concatenate([latent_BTR[:, :, None], k_rope], axis=-1).swapaxes(1, 2)
        assert layer is not None
        assert not isinstance(window, jax.Array)
        heads = Heads((0, R + m.rope_dim), (0, R), window, c.query_scale, latent=True)
        out, cache = _attend_cached(q_BTKGH, new_BKTC, context, heads, cache, layer, partitioner)
        out = einsum_f32("btnr,rnh->btnh", out[:, :, 0], expand[..., m.nope_dim :]).astype(q.dtype)
        return self.o(out.reshape(B, T, N * m.v_dim)), cache


def _attend_complete(
    q_BTKGH: jax.Array,
    k_BKTH: jax.Array,
    v_BKTH: jax.Array,
    context: AttentionContext,
    window: int | jax.Array | None,
    scale: float,
    sinks_KG: jax.Array | None = None,
) -> jax.Array:
    """Attention over complete sequences. Returns [B, T, K, G, H']."""
    positions_BT, segments_BT = context.positions_BT, context.segments_BT
    if _fusable(q_BTKGH, v_BKTH, segments_BT, sinks_KG):
        assert segments_BT is not None
        return attend_fused(
            q_BTKGH, k_BKTH, v_BKTH, scale=scale, positions_BT=positions_BT, segments_BT=segments_BT, window=window
        )
    return attend(
        q_BTKGH,
        k_BKTH,
        v_BKTH,
        q_positions_BT=positions_BT,
        k_positions_BS=positions_BT,
        q_segments_BT=segments_BT,
        k_segments_BS=segments_BT,
        window=window,
        scale=scale,
        sinks_KG=sinks_KG,
    )


def _attend_cached(
    q_BTKGH: jax.Array,
    new_BKTC: jax.Array,
    context: AttentionContext,
    heads: Heads,
    cache: PagedKV,
    layer: LayerPages,
    partitioner: Partitioner,
    sinks_KG: jax.Array | None = None,
) -> tuple[jax.Array, PagedKV]:
    """Attention over the cache after the new tokens are appended to it."""
    rows = context.rows
    assert rows is not None
    packing = rows.packing
    if packing is not None:
        q_BTKGH = packing.unpack(q_BTKGH)
        new_BKTC = packing.unpack(new_BKTC.swapaxes(1, 2)).swapaxes(1, 2)
    out, cache = cache.attend(layer, q_BTKGH, new_BKTC, rows, heads, sinks_KG, partitioner)
    return out if packing is None else packing.pack(out), cache
