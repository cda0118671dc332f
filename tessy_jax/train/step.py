"""One optimizer step over packed micro-batches. Losses and gradients are sums over tokens and divided once at the end, so
that the result does not depend on how a batch is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tessy_jax.models.loss import token_losses
from tessy_jax.train.pack import NO_TARGET, Batch


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """The state of training. params: master weights, an nnx.State of the graph. step: the number of optimizer steps done."""

    params: Any
    optimizer: Any
    step: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSums:
    """Sums over the targets of some batches. loss: weighted by kind; weight: the sum of these weights. loss_K, tokens_K:
    unweighted loss and number of targets, per kind of target (K)."""

    loss: jax.Array
    weight: jax.Array
    loss_K: jax.Array
    tokens_K: jax.Array


def loss_sums(graph: Any, params: Any, frozen: Any, batch: Batch, weights_K: jax.Array, dtype: Any, remat: str) -> LossSums:
    """The losses of one micro-batch. weights_K: the weight of each kind of target.

    params: the trained part of the graph's state; frozen: the rest. Both are converted to `dtype` before computing.
    """
    model = nnx.merge(graph, *computed_in(dtype, (params, frozen)))
    hidden_BTD, _ = model(jnp.asarray(batch.tokens_BT), segments_BT=jnp.asarray(batch.segments_BT), remat=remat)
    losses_BT = token_losses(model, hidden_BTD, jnp.asarray(batch.targets_BT))
    K = weights_K.shape[0]
    hot_BTK = jax.nn.one_hot(batch.kinds_BT, K, dtype=jnp.float32).at[..., NO_TARGET].set(0)
    loss_K, tokens_K = jnp.einsum("bt,btk->k", losses_BT, hot_BTK), hot_BTK.sum(axis=(0, 1))
    return LossSums((loss_K * weights_K).sum(), (tokens_K * weights_K).sum(), loss_K, tokens_K)


def train_step(
    graph: Any,
    optimizer: optax.GradientTransformation,
    dtype: Any,
    remat: str,
    state: State,
    frozen: Any,
    batches: Batch,
    weights_K: jax.Array,
) -> tuple[State, LossSums, jax.Array]:
    """One step on micro-batches [A, B, T]. Returns the new state, the sums of losses, and the gradient norm before clipping.

    The first four arguments are static.
    """

    def loss(params: Any, batch: Batch) -> tuple[jax.Array, LossSums]:
        sums = loss_sums(graph, params, frozen, batch, weights_K, dtype, remat)
        return sums.loss, sums

    def add(carry: tuple[Any, LossSums], batch: Batch) -> tuple[tuple[Any, LossSums], None]:
        grads, sums = jax.grad(loss, has_aux=True)(state.params, batch)
        return jax.tree.map(jnp.add, carry, (grads, sums)), None

    zero = LossSums(jnp.float32(0), jnp.float32(0), jnp.zeros_like(weights_K), jnp.zeros_like(weights_K))
    (grads, total), _ = jax.lax.scan(add, (jax.tree.map(jnp.zeros_like, state.params), zero), batches)
    grads = jax.tree.map(lambda g: g / jnp.maximum(total.weight, 1e-9), grads)
    norm = optax.tree.norm(grads)
    updates, new = optimizer.update(grads, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, updates), new, state.step + 1), total, norm


def computed_in(dtype: Any, state: Any) -> Any:
    """The same pytree with all floating-point arrays converted to `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
