"""Parameters and small layers: linear maps, RMS norm, rotary embedding, the gated feed-forward."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Layout as MemoryLayout
from jax.experimental.layout import with_layout_constraint

from tessy_jax.backend import backend
from tessy_jax.models.config import ModelConfig, Rope
from tessy_jax.sharding import Axes, Partitioner

INIT_STD = 0.02  # standard deviation of random weights: the initializer_range of the families
MASKED = -0.7 * float(jnp.finfo(jnp.float32).max)  # finite: a row without any key must not produce NaN


def weight(rngs: nnx.Rngs, shape: tuple[int, ...], axes: Axes, dtype: Any) -> nnx.Param:
    """A normally distributed parameter with one logical axis name per dimension."""
    value = INIT_STD * jax.random.normal(rngs.params(), shape, jnp.float32)
    return nnx.Param(value.astype(dtype), axes=axes)


def filled(shape: tuple[int, ...], axes: Axes, dtype: Any, value: float) -> nnx.Param:
    """A constant parameter with one logical axis name per dimension."""
    return nnx.Param(jnp.full(shape, value, dtype), axes=axes)


def matmul(x: jax.Array, kernel: jax.Array, contract: int = 0, dtype: Any = None) -> jax.Array:
    """x[…, D] times kernel[D, F] (contract 0) or kernel[F, D] (contract 1), accumulated in float32, returned in dtype
    (default: x's).

    Accelerators accumulate in float32 anyway. On CPUs a float32 result selects a bfloat16 kernel instead of an emulation in
    float32 (4 instead of 56 ms for [8, 576] × [576, 49152]).
    """
    multiply = _half_matmul if x.dtype == kernel.dtype == jnp.bfloat16 else _matmul
    return multiply(x, kernel, contract).astype(dtype or x.dtype)


def _matmul(x: jax.Array, kernel: jax.Array, contract: int) -> jax.Array:
    dims = (((x.ndim - 1,), (contract,)), ((), ()))
    return jax.lax.dot_general(x, kernel, dims, precision=precision(x.dtype), preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _half_matmul(x: jax.Array, kernel: jax.Array, contract: int) -> jax.Array:
    """A bfloat16 product whose gradient is two bfloat16 products. The derived gradient would multiply by a float32 array,
    for which there is no bfloat16 kernel."""
    return _matmul(x, kernel, contract)


def _half_matmul_bwd(contract: int, kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    grad = grad.astype(x.dtype)
    dx = _matmul(grad, kernel, 1 - contract).astype(x.dtype)
    left, right = (grad, x) if contract else (x, grad)
    if backend().platform == "cpu":
        flat = left.reshape(-1, left.shape[-1]), right.reshape(-1, right.shape[-1])
        return dx, _matmul(_transpose_in_memory(flat[0]), flat[1], 0).astype(kernel.dtype)
    over = tuple(range(x.ndim - 1))
    dims = ((over, over), ((), ()))
    return dx, jax.lax.dot_general(left, right, dims, preferred_element_type=jnp.float32).astype(kernel.dtype)


_half_matmul.defvjp(lambda x, kernel, contract: (_matmul(x, kernel, contract), (x, kernel)), _half_matmul_bwd)


def _transpose_in_memory(x: jax.Array) -> jax.Array:
    """The last two axes exchanged, also in memory: XLA's CPU backend multiplies bfloat16 less than half as fast when it sums
    over an axis of the first factor that is not the last."""
    return with_layout_constraint(x.swapaxes(-1, -2), MemoryLayout(major_to_minor=tuple(range(x.ndim))))


def precision(dtype: Any) -> jax.lax.Precision | None:
    """The precision of products: float32 is multiplied in float32, where accelerators by default use fewer bits."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def einsum_f32(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """einsum of two arrays with a float32 result, in the same precision as `matmul`."""
    if x.dtype == y.dtype == jnp.bfloat16:
        return _half_einsum(equation, x, y)
    return einsum_f32_reference(equation, x, y)


def einsum_f32_reference(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """The same with the gradient that JAX derives, which also works inside `shard_map`."""
    return jnp.einsum(equation, x, y, precision=precision(x.dtype), preferred_element_type=jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _half_einsum(equation: str, x: jax.Array, y: jax.Array) -> jax.Array:
    return einsum_f32_reference(equation, x, y)


def _half_einsum_bwd(equation: str, kept: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, y = kept
    factors, out = equation.split("->")
    of_x, of_y = factors.split(",")
    grad = grad.astype(x.dtype)
    dx = einsum_f32_reference(f"{out},{of_y}->{of_x}", grad, y).astype(x.dtype)
    return dx, einsum_f32_reference(f"{out},{of_x}->{of_y}", grad, x).astype(y.dtype)


_half_einsum.defvjp(lambda equation, x, y: (einsum_f32_reference(equation, x, y), (x, y)), _half_einsum_bwd)


class LoraParam(nnx.Param):
    """A factor of a low-rank update of a kernel (Hu et al. 2022)."""


class Linear(nnx.Module):
    """x @ kernel (+ bias), with kernel [in, out]. Adapters a [in, r] and b [r, out] add scale · (x @ a) @ b."""

    def __init__(self, rngs: nnx.Rngs, shape: tuple[int, int], axes: Axes, dtype: Any, bias: bool = False) -> None:
        self.kernel = weight(rngs, shape, axes, dtype)
        self.bias = filled(shape[1:], axes[1:], dtype, 0.0) if bias else None
        self.lora_a: nnx.Param | None = None
        self.lora_b: nnx.Param | None = None
        self.lora_scale = 1.0

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.kernel[...])
        if self.lora_a is not None and self.lora_b is not None:
            y = y + self.lora_scale * matmul(matmul(x, self.lora_a[...]), self.lora_b[...])
        return y if self.bias is None else y + self.bias[...]


class RMSNorm(nnx.Module):
    """x / rms(x) · scale over the last axis, computed in float32 and returned in x's dtype."""

    def __init__(self, dim: int, eps: float, dtype: Any) -> None:
        self.scale = filled((dim,), (None,), dtype, 1.0)
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return (y * self.scale[...].astype(jnp.float32)).astype(x.dtype)


class Mlp(nnx.Module):
    """The gated feed-forward down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig, ffn: int, partitioner: Partitioner, rngs: nnx.Rngs, dtype: Any) -> None:
        into, out = ("embed", "ffn"), ("ffn", "embed")
        bias = config.mlp_bias
        self.gate = Linear(rngs, (config.embed, ffn), into, dtype, bias)
        self.up = Linear(rngs, (config.embed, ffn), into, dtype, bias)
        self.down = Linear(rngs, (ffn, config.embed), out, dtype, bias)
        self.partitioner = partitioner

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        hidden_BTF = jax.nn.silu(self.gate(x_BTD)) * self.up(x_BTD)
        return self.down(self.partitioner.constrain(hidden_BTF, "lanes", None, "ffn"))


def inverse_frequencies(rope: Rope) -> np.ndarray:
    """Rotary frequencies [dim / 2], computed in float32 as in transformers.

    Sources: RoPE (Su et al. 2021), YaRN (Peng et al. 2023), Llama 3.1's smoothed scaling.
    """
    f32 = np.float32
    powers = f32(rope.theta) ** (np.arange(0, rope.dim, 2, dtype=f32) / f32(rope.dim))
    inverse = f32(1) / powers
    if rope.kind == "linear":
        return inverse / f32(rope.factor)
    if rope.kind == "llama3":
        wavelength = f32(2 * math.pi) / inverse
        smooth = (rope.original_positions / wavelength - rope.low_freq_factor) / (
            rope.high_freq_factor - rope.low_freq_factor
        )
        smooth = smooth.astype(f32)
        blended = (1 - smooth) * inverse / f32(rope.factor) + smooth * inverse
        slow = wavelength > rope.original_positions / rope.low_freq_factor
        fast = wavelength < rope.original_positions / rope.high_freq_factor
        return np.where(fast, inverse, np.where(slow, inverse / f32(rope.factor), blended)).astype(f32)
    if rope.kind == "yarn":

        def correction(rotations: float) -> float:
            turns = math.log(rope.original_positions / (rotations * 2 * math.pi))
            return rope.dim * turns / (2 * math.log(rope.theta))

        low, high = correction(rope.beta_fast), correction(rope.beta_slow)
        if rope.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, rope.dim - 1)
        if low == high:
            high += 0.001
        ramp = np.clip((np.arange(rope.dim // 2, dtype=f32) - f32(low)) / f32(high - low), 0, 1)
        keep = f32(1) - ramp
        return (f32(1) / (f32(rope.factor) * powers) * (1 - keep) + inverse * keep).astype(f32)
    return inverse


def rope_cos_sin(rope: Rope, positions_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin [B, T, dim / 2] in float32, multiplied by YaRN's attention factor."""
    angles = positions_BT[..., None].astype(jnp.float32) * inverse_frequencies(rope)
    return jnp.cos(angles) * rope.attention_factor, jnp.sin(angles) * rope.attention_factor


def apply_rope(x_BTNH: jax.Array, rope: tuple[jax.Array, jax.Array], interleaved: bool = False) -> jax.Array:
    """Rotates the pairs of the last axis: halves (x_i, x_{i+H/2}), or neighbours (x_2i, x_2i+1), which are returned as
    halves (scores do not depend on the order if queries and keys share it)."""
    cos, sin = (part[:, :, None, :] for part in rope)
    x = x_BTNH.astype(jnp.float32)
    first, second = (x[..., ::2], x[..., 1::2]) if interleaved else jnp.split(x, 2, axis=-1)
    y = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return y.astype(x_BTNH.dtype)
