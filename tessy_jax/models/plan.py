"""Parameters, weight bytes and cache bytes of a model, in total and per device, from its configuration alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import nnx

from tessy_jax.models.config import ModelConfig
from tessy_jax.models.hf import abstract, parameter_paths
from tessy_jax.models.pages import PAGE, page_count
from tessy_jax.models.transformer import check_layout
from tessy_jax.sharding import Partitioner, plan_mesh


def cached_numbers(config: ModelConfig) -> int:
    """Numbers per token in one layer's cache: keys and values of all heads, or DeepSeek's latent and rotary key."""
    if config.latent:
        return config.latent.kv_rank + config.latent.rope_dim
    return 2 * config.kv_heads * config.head_dim


def plan(
    config: ModelConfig,
    *,
    dtype: Any,
    mesh: Mapping[str, int] | None = None,
    lanes: int = 1,
    context: int | None = None,
    slack: int,
) -> dict[str, Any]:
    """Parameters, weight bytes and cache bytes of a model in a dtype, in total and per device of a mesh.

    active: parameters in the products of one token's forward pass: the routed experts it uses, and of the two embedding
    tables the output table (a lookup reads one row). GPT-OSS's published counts do the same; Qwen's add `embedding`.
    kv.bytes_per_token: growth of a lane's cache per token, in full-attention layers. Sliding-window layers take at most
    window_bytes_per_lane (window and slack in full pages) for any length. slack: see `decode.cache.new_cache`.

    Raises:
        ShardingError: a mesh that does not divide the model or the lanes.
    """
    sizes = dict(mesh or {})
    partitioner = Partitioner(plan_mesh(sizes)) if sizes else Partitioner()
    check_layout(config, partitioner)
    partitioner.check({"lanes": (lanes, "the number of lanes")})
    context = context or config.max_positions
    itemsize = np.dtype(dtype).itemsize

    total = active = embedding = weight_bytes = device_bytes = 0
    for path, parameter in parameter_paths(nnx.state(abstract(config, dtype=dtype, stacked=True))):
        axes, shape = parameter.get_metadata()["axes"], tuple(parameter.shape)
        count = math.prod(shape)
        size = np.dtype(parameter.dtype).itemsize
        total += count
        weight_bytes += count * size
        device_bytes += math.prod(partitioner.shard_shape(shape, axes)) * size
        if path == ("embed",):
            embedding = count
        if "experts" in axes:
            assert config.experts is not None
            active += count * config.experts.active // config.experts.count
        elif path != ("embed",) or (config.tied and config.labels is None):
            active += count

    per_layer = cached_numbers(config) * itemsize
    full = sum(window is None for window in config.windows)
    window_bytes = sum(page_count(min(context, w + slack)) * PAGE * per_layer for w in config.windows if w is not None)
    lane_shards = partitioner.num_shards("lanes")
    kv_bytes = lanes * (page_count(context) * PAGE * full * per_layer + window_bytes)
    kv_shards = 1 if config.latent else partitioner.num_shards("kv_heads")
    kv_device_bytes = kv_bytes // (lane_shards * kv_shards)
    devices = math.prod(sizes.values()) if sizes else 1
    return {
        "family": config.family,
        "head": "causal-lm" if config.labels is None else f"token-classification ({config.labels} labels)",
        "layers": config.layers,
        "parameters": {"total": total, "active": active, "embedding": embedding},
        "dtype": np.dtype(dtype).name,
        "mesh": sizes,
        "devices": devices,
        "weights": {"bytes": weight_bytes, "bytes_per_device": device_bytes},
        "kv": {
            "bytes_per_token": full * per_layer,
            "bytes_per_token_per_device": full * per_layer // kv_shards,
            "window_bytes_per_lane": window_bytes,
            "lanes": lanes,
            "context": context,
            "bytes": kv_bytes,
            "bytes_per_device": kv_device_bytes,
        },
        "bytes_per_device": device_bytes + kv_device_bytes,
    }


def describe(model: str, result: Mapping[str, Any]) -> str:
    """The plan as a short text."""
    kv, weights, parameters = result["kv"], result["weights"], result["parameters"]
    mesh = ", ".join(f"{axis}={size}" for axis, size in result["mesh"].items())
    lines = [
        ("model", f"{model} ({result['family']}, {result['layers']} layers, {result['head']})"),
        ("parameters", f"{_count(parameters['total'])} total, {_count(parameters['active'])} active per token"),
        ("devices", f"{result['devices']} ({mesh})" if mesh else "1"),
        (
            "weights",
            f"{_bytes(weights['bytes'])} in {result['dtype']}, {_bytes(weights['bytes_per_device'])} per device",
        ),
        ("cache", f"{_bytes(kv['bytes_per_token'])} per token, {_bytes(kv['bytes_per_token_per_device'])} per device"),
    ]
    if kv["window_bytes_per_lane"]:
        lines.append(("", f"and at most {_bytes(kv['window_bytes_per_lane'])} per lane in sliding-window layers"))
    lines += [
        ("", f"{_bytes(kv['bytes'])} for {kv['lanes']} lanes of {kv['context']} tokens, "
             f"{_bytes(kv['bytes_per_device'])} per device"),
        ("per device", f"{_bytes(result['bytes_per_device'])} of weights and cache"),
    ]  # fmt: skip
    return "\n".join(f"{name:<11} {value}" for name, value in lines)


def _count(number: int) -> str:
    return f"{number / 1e9:.2f}B" if number >= 1e9 else f"{number / 1e6:.2f}M"


def _bytes(number: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if number < 1024:
            return f"{number:.4g} {unit}"
        number /= 1024
    return f"{number:.2f} GiB"
