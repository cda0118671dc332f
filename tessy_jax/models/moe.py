"""Mixtures of experts: three routers, and the experts they share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.models import layers
from tessy_jax.models.config import Experts, ModelConfig
from tessy_jax.models.layers import Mlp, filled, weight
from tessy_jax.sharding import Axes, Partitioner

DENSE_TOKENS = 64
"""Up to this many tokens, every expert processes every token: a decode step reads all expert weights anyway, and a batched
product is faster than sorting. With more tokens, they are sorted by expert."""


class Router(nnx.Module):
    """Chooses the experts of a token and their weights, in float32.

    Sources: Qwen3 (softmax, then top-k), GPT-OSS (top-k of biased logits, then softmax), DeepSeek-V3 section 2.1.2
    (sigmoid affinities; a correction bias affects the choice but not the weights; only the best groups take part).
    """

    def __init__(self, config: ModelConfig, rngs: nnx.Rngs, dtype: Any) -> None:
        assert config.experts is not None
        self.experts: Experts = config.experts
        E = self.experts.count
        self.kernel = weight(rngs, (config.embed, E), ("embed", None), dtype)
        self.bias = filled((E,), (None,), dtype, 0.0) if self.experts.router == "topk_softmax" else None
        grouped = self.experts.router == "grouped_sigmoid"
        self.correction = filled((E,), (None,), jnp.float32, 0.0) if grouped else None

    def __call__(self, x_TD: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Tokens [T, D] → weights [T, A] float32 and expert ids [T, A] int32."""
        e = self.experts
        f32 = jnp.float32
        logits_TE = jnp.matmul(x_TD.astype(f32), self.kernel[...].astype(f32), precision="highest")
        if self.bias is not None:
            values_TA, ids_TA = jax.lax.top_k(logits_TE + self.bias[...].astype(f32), e.active)
            return jax.nn.softmax(values_TA, axis=-1), ids_TA
        if self.correction is None:
            weights_TA, ids_TA = jax.lax.top_k(jax.nn.softmax(logits_TE, axis=-1), e.active)
        else:
            scores_TE = jax.nn.sigmoid(logits_TE)
            choice = (scores_TE + self.correction[...]).reshape(-1, e.groups, e.count // e.groups)
            group_scores = jax.lax.top_k(choice, 2)[0].sum(axis=-1)
            best = jax.lax.top_k(group_scores, e.active_groups)[1]
            allowed = jax.nn.one_hot(best, e.groups, dtype=bool).any(axis=1)
            choice = jnp.where(allowed[:, :, None], choice, -jnp.inf).reshape(-1, e.count)
            ids_TA = jax.lax.top_k(choice, e.active)[1]
            weights_TA = jnp.take_along_axis(scores_TE, ids_TA, axis=-1)
        if e.normalize:
            weights_TA /= weights_TA.sum(axis=-1, keepdims=True) + (1e-20 if e.router == "grouped_sigmoid" else 0.0)
        return weights_TA * e.scale, ids_TA


class Moe(nnx.Module):
    """Routed experts, plus a shared expert in families that have one."""

    AXES: dict[str, Axes] = {  # noqa: RUF012 (a constant table)
        "gate": ("experts", "embed", "ffn"),
        "up": ("experts", "embed", "ffn"),
        "down": ("experts", "ffn", "embed"),
        "gate_bias": ("experts", "ffn"),
        "up_bias": ("experts", "ffn"),
        "down_bias": ("experts", "embed"),
    }

    def __init__(self, config: ModelConfig, partitioner: Partitioner, rngs: nnx.Rngs, dtype: Any) -> None:
        e = config.experts
        assert e is not None
        sizes = {"experts": e.count, "embed": config.embed, "ffn": e.ffn}
        self.router = Router(config, rngs, dtype)
        for name, axes in self.AXES.items():
            shape = tuple(sizes[str(axis)] for axis in axes)
            if not name.endswith("bias"):
                setattr(self, name, weight(rngs, shape, axes, dtype))
            elif e.clamp:
                setattr(self, name, filled(shape, axes, dtype, 0.0))
        self.shared = Mlp(config, e.shared_ffn, partitioner, rngs, dtype) if e.shared_ffn else None
        self.experts: Experts = e
        self.partitioner = partitioner

    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        tokens = x_BTD.reshape(-1, x_BTD.shape[-1])
        weights, ids = self.router(tokens)
        names = [name for name in self.AXES if hasattr(self, name)]
        params = {name: getattr(self, name)[...] for name in names}
        axes = {name: self.AXES[name] for name in names}
        out = self.partitioner.over_experts(self._run, (tokens, weights, ids), params, axes)
        out = out.astype(x_BTD.dtype).reshape(x_BTD.shape)
        return out if self.shared is None else out + self.shared(x_BTD)

    def _run(
        self,
        x_TD: jax.Array,
        weights_TA: jax.Array,
        ids_TA: jax.Array,
        params: dict[str, jax.Array],
        first: int | jax.Array,
        share: jax.Array,
    ) -> jax.Array:
        """The contribution of these experts (from `first` on) to the output, [T, D] float32."""
        run = _dense if x_TD.shape[0] <= DENSE_TOKENS else _sorted
        return run(x_TD, weights_TA, ids_TA - first, params, share, self.experts.clamp)


def _gated(gate: jax.Array, up: jax.Array, clamp: tuple[float, float] | None) -> jax.Array:
    """silu(gate) · up, or GPT-OSS's clamped form gate · sigmoid(alpha · gate) · (up + 1)."""
    if clamp is None:
        return jax.nn.silu(gate) * up
    alpha, limit = clamp
    gate, up = jnp.minimum(gate, limit), jnp.clip(up, -limit, limit)
    return gate * jax.nn.sigmoid(alpha * gate) * (up + 1)


def _dense(
    x_TD: jax.Array,
    weights_TA: jax.Array,
    ids_TA: jax.Array,
    params: dict[str, jax.Array],
    share: jax.Array,
    clamp: tuple[float, float] | None,
) -> jax.Array:
    """Every expert on every token; ids outside 0 … E − 1 belong to other devices and contribute nothing."""
    E = params["gate"].shape[0]
    weights_TE = (jax.nn.one_hot(ids_TA, E, dtype=jnp.float32) * weights_TA[..., None]).sum(axis=1)

    def product(equation: str, x: jax.Array, name: str) -> jax.Array:
        y = layers.einsum_f32_reference(equation, x, params[name])
        if f"{name}_bias" in params:
            y += params[f"{name}_bias"].astype(jnp.float32)[:, None] * (share if name == "down" else 1.0)
        return y

    gate, up = product("td,edf->etf", x_TD, "gate"), product("td,edf->etf", x_TD, "up")
    y_ETD = product("etf,efd->etd", _gated(gate, up, clamp).astype(x_TD.dtype), "down")
    return jnp.einsum("etd,te->td", y_ETD, weights_TE)


def _sorted(
    x_TD: jax.Array,
    weights_TA: jax.Array,
    ids_TA: jax.Array,
    params: dict[str, jax.Array],
    share: jax.Array,
    clamp: tuple[float, float] | None,
) -> jax.Array:
    """Tokens sorted by expert, one ragged product per weight; tokens of other devices come last and are masked."""
    T, A = ids_TA.shape
    E = params["gate"].shape[0]
    ids = jnp.where((ids_TA >= 0) & (ids_TA < E), ids_TA, E).reshape(T * A)
    order = jnp.argsort(ids, stable=True)
    token, expert = order // A, ids[order]
    sizes_E = jnp.bincount(ids, length=E + 1)[:E].astype(jnp.int32)
    own = (expert < E)[:, None]

    def product(x: jax.Array, name: str) -> jax.Array:
        y = jax.lax.ragged_dot(
            x, params[name], sizes_E, precision=layers.precision(x.dtype), preferred_element_type=jnp.float32
        )
        if f"{name}_bias" in params:
            bias = params[f"{name}_bias"].astype(jnp.float32)[jnp.minimum(expert, E - 1)]
            y += bias * (share if name == "down" else 1.0)
        return jnp.where(own, y, 0.0)

    x = jnp.where(own, x_TD[token], 0)
    hidden = _gated(product(x, "gate"), product(x, "up"), clamp).astype(x_TD.dtype)
    y = product(hidden, "down") * weights_TA.reshape(T * A)[order][:, None]
    return jnp.zeros(x_TD.shape, jnp.float32).at[token].add(y)
