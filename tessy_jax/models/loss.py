"""Cross-entropy of the next token, with the logits of one chunk of tokens in memory at a time."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from tessy_jax.models.transformer import Decoder

CHUNK = 1024  # tokens, over all rows, whose logits are in memory at a time


def token_losses(model: Decoder, hidden_BTD: jax.Array, targets_BT: jax.Array, chunk: int = CHUNK) -> jax.Array:
    """Negative log-likelihood of every target [B, T], in float32.

    About `chunk` tokens have their logits in memory at a time, forward and backward; the gradient recomputes them.
    """
    B, T, _ = hidden_BTD.shape
    width = max(1, min(T, chunk // B))
    count = -(-T // width)
    rest = count * width - T

    @jax.checkpoint
    def piece(hidden_BCD: jax.Array, targets_BC: jax.Array) -> jax.Array:
        logits_BCV = model.logits(hidden_BCD)
        chosen_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits_BCV, axis=-1) - chosen_BC

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, rest), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(B, count, width, *x.shape[2:]).swapaxes(0, 1)

    losses = jax.lax.map(lambda parts: piece(*parts), (cut(hidden_BTD), cut(targets_BT)))
    return losses.swapaxes(0, 1).reshape(B, count * width)[:, :T]
