"""One optimizer step over packed micro-batches. Losses and gradients are sums over tokens and divided once at the end, so
that the result does not depend on how a batch is split."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from tessy_jax.config import Training
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
    """Sums over the targets of some batches. loss: weighted by kind; weight: the sum of these weights. loss_C, tokens_C:
    unweighted loss and number of targets, per kind of target (C)."""

    loss: jax.Array
    weight: jax.Array
    loss_C: jax.Array
    tokens_C: jax.Array


def loss_sums(graph: Any, params: Any, frozen: Any, batch: Batch, weights_C: jax.Array, dtype: Any, remat: str) -> LossSums:
    """The losses of one micro-batch. weights_C: the weight of each kind of target.

    params: the trained part of the graph's state; frozen: the rest. Both are converted to `dtype` before computing.
    """
    model = nnx.merge(graph, *computed_in(dtype, (params, frozen)))
    hidden_BTD, _ = model(jnp.asarray(batch.tokens_BT), segments_BT=jnp.asarray(batch.segments_BT), remat=remat)
    losses_BT = token_losses(model, hidden_BTD, jnp.asarray(batch.targets_BT))
    C = weights_C.shape[0]
    hot_BTC = jax.nn.one_hot(batch.kinds_BT, C, dtype=jnp.float32).at[..., NO_TARGET].set(0)
    loss_C, tokens_C = jnp.einsum("bt,btc->c", losses_BT, hot_BTC), hot_BTC.sum(axis=(0, 1))
    return LossSums((loss_C * weights_C).sum(), (tokens_C * weights_C).sum(), loss_C, tokens_C)


def train_step(
    graph: Any,
    optimizer: optax.GradientTransformation,
    dtype: Any,
    remat: str,
    state: State,
    frozen: Any,
    batches: Batch,
    weights_C: jax.Array,
) -> tuple[State, LossSums, jax.Array]:
    """One step on micro-batches [number, B, T]. Returns the new state, the sums of losses, and the gradient norm before
    clipping.

    The first four arguments are static.
    """

    def loss(params: Any, batch: Batch) -> tuple[jax.Array, LossSums]:
        sums = loss_sums(graph, params, frozen, batch, weights_C, dtype, remat)
        return sums.loss, sums

    def add(carry: tuple[Any, LossSums], batch: Batch) -> tuple[tuple[Any, LossSums], None]:
        grads, sums = jax.grad(loss, has_aux=True)(state.params, batch)
        return jax.tree.map(jnp.add, carry, (grads, sums)), None

    zero = LossSums(jnp.float32(0), jnp.float32(0), jnp.zeros_like(weights_C), jnp.zeros_like(weights_C))
    (grads, total), _ = jax.lax.scan(add, (jax.tree.map(jnp.zeros_like, state.params), zero), batches)
    grads = jax.tree.map(lambda g: g / jnp.maximum(total.weight, 1e-9), grads)
    norm = optax.tree.norm(grads)
    updates, new = optimizer.update(grads, state.optimizer, state.params)
    return State(optax.apply_updates(state.params, updates), new, state.step + 1), total, norm


def jit_step(graph: Any, optimizer: optax.GradientTransformation, training: Training, state: State, read: Any) -> Any:
    """The jitted `train_step` of (state, frozen, batches, weights_C). The new state overwrites the old one and keeps its
    sharding. read: the sharding of the metrics; None on one device."""
    step = partial(train_step, graph, optimizer, jnp.dtype(training.dtype), training.remat)
    placed = None if read is None else (jax.tree.map(lambda x: x.sharding, state), read, read)
    return jax.jit(step, donate_argnums=0, out_shardings=placed)


def computed_in(dtype: Any, state: Any) -> Any:
    """The same pytree with all floating-point arrays converted to `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, state)
