"""Converts the arrays of a model on the mesh, between the form for decoding and the form for training (stacked layers).

A job that decodes and trains loads the student once.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from tessy_jax.models.hf import abstract, layer_paths, parameter_paths
from tessy_jax.models.transformer import Decoder, stacks_to_decode
from tessy_jax.sharding import Partitioner


def restack(
    model: Decoder, *, stacked: bool | None = None, dtype: Any = None, partitioner: Partitioner | None = None
) -> Decoder:
    """The same weights with equal layers stacked or separate, converted to dtype and placed on a partitioner's mesh
    (default: unchanged). stacked: None is the form for decoding.

    The given model is consumed: its arrays are freed one at a time, so that memory never holds two complete copies. If the
    model already has the requested form, only dtype and mesh change.
    """
    dtype = model.embed.dtype if dtype is None else jnp.dtype(dtype)
    partitioner = partitioner or model.partitioner
    stacked = stacks_to_decode() if stacked is None else stacked
    twin = abstract(model.config, dtype=dtype, partitioner=partitioner, stacked=stacked)
    graph, state = nnx.split(twin)
    sources = {".".join(map(str, path)): parameter for path, parameter in parameter_paths(nnx.state(model))}
    if not model.stacked and stacked:
        for path, parameter in parameter_paths(state):
            names = layer_paths(path, model.config, stacked)
            _fill(twin, parameter, [sources[name][...] for name in names], dtype, stack=path[0] == "layers")
    elif model.stacked and not stacked:
        targets = {".".join(map(str, path)): parameter for path, parameter in parameter_paths(state)}
        for path, parameter in parameter_paths(nnx.state(model)):
            names, value = layer_paths(path, model.config, model.stacked), parameter[...]
            for i, name in enumerate(names):
                part = value[i] if path[0] == "layers" else value
                _fill(twin, targets[name], [part], dtype, stack=False, free=False)
            _free(value, [targets[name][...] for name in names])
    else:
        for path, parameter in parameter_paths(state):
            _fill(twin, parameter, [sources[".".join(map(str, path))][...]], dtype, stack=False)
    return nnx.merge(graph, state)


def _fill(twin: Decoder, target: nnx.Param, values: list[jax.Array], dtype: Any, *, stack: bool, free: bool = True) -> None:
    """Sets the value of a parameter: one array, or (stack) several stacked arrays, sharded along its axes."""
    sharding = twin.partitioner.sharding(target.get_metadata()["axes"])
    if sharding is not None and values[0].sharding.device_set != sharding.device_set:
        axes = target.get_metadata()["axes"]
        each = twin.partitioner.sharding(axes[1:] if stack else axes)
        moved = [jax.device_put(value, each) for value in values]
    else:
        moved = values
    new = _joined(moved, stack=stack, dtype=jnp.dtype(dtype), sharding=sharding)
    target.set_value(new)
    if free:
        for value in values:
            _free(value, [new])


@partial(jax.jit, static_argnames=("stack", "dtype", "sharding"))
def _joined(values: list[jax.Array], *, stack: bool, dtype: Any, sharding: NamedSharding | None) -> jax.Array:
    x = (jnp.stack(values) if stack else values[0]).astype(dtype)
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)


def _free(value: jax.Array, unless: list[jax.Array]) -> None:
    """Frees an array, unless it is one of these."""
    jax.block_until_ready(unless)
    if not any(value is other for other in unless):
        value.delete()
