"""One model's arrays from the form that decodes to the form that trains and back, on the mesh where they are: a job that
does both loads the student once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from tessy_jax.models.hf import abstract, layer_paths, parameter_paths
from tessy_jax.models.transformer import Decoder


def restack(model: Decoder, *, stacked: bool, dtype: Any = None) -> Decoder:
    """The same weights, in dtype (default: as they are), with equal layers stacked or each on its own.

    The given model is used up: its arrays are freed one by one, so that both forms are never held whole. In the form it has
    already, it comes back as it is, cast.
    """
    dtype = model.embed.dtype if dtype is None else jnp.dtype(dtype)
    twin = abstract(model.config, dtype=dtype, layout=model.layout, stacked=stacked)
    graph, state = nnx.split(twin)
    sources = {".".join(map(str, path)): parameter for path, parameter in parameter_paths(nnx.state(model))}
    if not model.stacked and stacked:
        for path, parameter in parameter_paths(state):
            names = layer_paths(path, model.config, stacked)
            _fill(model, parameter, [sources[name][...] for name in names], dtype, whole=path[0] == "layers")
    elif model.stacked and not stacked:
        targets = {".".join(map(str, path)): parameter for path, parameter in parameter_paths(state)}
        for path, parameter in parameter_paths(nnx.state(model)):
            names, value = layer_paths(path, model.config, model.stacked), parameter[...]
            for i, name in enumerate(names):
                part = value[i] if path[0] == "layers" else value
                _fill(model, targets[name], [part], dtype, whole=False, free=False)
            _free(value, [targets[name][...] for name in names])
    else:
        for path, parameter in parameter_paths(state):
            _fill(model, parameter, [sources[".".join(map(str, path))][...]], dtype, whole=False)
    return nnx.merge(graph, state)


def _fill(model: Decoder, target: nnx.Param, values: list[jax.Array], dtype: Any, *, whole: bool, free: bool = True) -> None:
    """Gives a parameter its value: one array, or (whole) several stacked, where its axes say."""
    sharding = model.layout.sharding(target.get_metadata()["axes"])

    def joined(values: list[jax.Array]) -> jax.Array:
        return (jnp.stack(values) if whole else values[0]).astype(dtype)

    new = jax.jit(joined, out_shardings=sharding)(values)
    target.set_value(new)
    if free:
        for value in values:
            _free(value, [new])


def _free(value: jax.Array, unless: list[jax.Array]) -> None:
    """Frees an array, unless it is one of these."""
    jax.block_until_ready(unless)
    if not any(value is other for other in unless):
        value.delete()
