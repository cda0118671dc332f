"""Low-rank adapters (Hu et al. 2022): put into a model, merged into its weights, or written as PEFT reads them."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import save_file

from tessy_jax.config import Lora
from tessy_jax.errors import CheckpointError, ConfigError
from tessy_jax.models.hf import checkpoint_name, layer_paths
from tessy_jax.models.layers import Linear, LoraParam
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import gather, is_primary
from tessy_jax.sharding import put
from tessy_jax.store.files import whole_folder


def add_lora(model: Decoder, config: Lora, seed: int) -> None:
    """Gives the targets adapters in float32: a uniform in ±1/√in, as PEFT draws it, and b zero, so that nothing changes yet.

    Raises:
        ConfigError: a target is no linear map of the model.
    """
    matched = set()
    for path, linear, names in _linears(model):
        target = names[0].removesuffix(".weight").rpartition(".")[2]
        if target not in config.targets:
            continue
        matched.add(target)
        axes = linear.kernel.get_metadata()["axes"]
        *stack, fan_in, fan_out = linear.kernel.shape
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(".".join(map(str, path)).encode()))
        bound = 1 / math.sqrt(fan_in)
        a = jax.random.uniform(key, (*stack, fan_in, config.rank), jnp.float32, -bound, bound)
        b = jnp.zeros((*stack, config.rank, fan_out), jnp.float32)
        a_axes, b_axes = (*axes[:-1], None), (*axes[:-2], None, axes[-1])
        linear.lora_a = nnx.data(LoraParam(put(a, model.partitioner, a_axes), axes=a_axes))
        linear.lora_b = nnx.data(LoraParam(put(b, model.partitioner, b_axes), axes=b_axes))
        linear.lora_scale = config.alpha / config.rank
    missing = sorted(set(config.targets) - matched)
    if missing:
        known = sorted({names[0].removesuffix(".weight").rpartition(".")[2] for _, _, names in _linears(model)})
        raise ConfigError(f"lora.targets: the model has no {', '.join(missing)}; it has {', '.join(known)}")


def merge_lora(model: Decoder) -> Decoder:
    """The same function without adapters; the model itself is used up."""
    for _, linear, _ in _linears(model):
        if linear.lora_a is not None and linear.lora_b is not None:
            change = linear.lora_scale * jnp.matmul(linear.lora_a[...], linear.lora_b[...], precision="highest")
            kernel = linear.kernel[...]
            linear.kernel.set_value((kernel.astype(jnp.float32) + change).astype(jnp.float32))
            linear.lora_a = linear.lora_b = None
    return model


def export_lora(model: Decoder, config: Lora, folder: Path, *, base: str) -> None:
    """Writes the adapters as PEFT reads them. base: the model that they belong to, a folder or hub name.

    The folder appears atomically. All processes call it; the primary one writes.

    Raises:
        CheckpointError: the folder exists and is not empty, or cannot be written.
    """
    tensors = {}
    for _, linear, names in _linears(model):
        if linear.lora_a is None or linear.lora_b is None:
            continue
        a, b = gather(linear.lora_a[...]), gather(linear.lora_b[...])
        for i, name in enumerate(names):
            place = f"base_model.model.{name.removesuffix('.weight')}"
            part: Any = i if a.ndim == 3 else ...
            tensors[f"{place}.lora_A.weight"] = np.ascontiguousarray(a[part].T)
            tensors[f"{place}.lora_B.weight"] = np.ascontiguousarray(b[part].T)
    if not is_primary():
        return
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": sorted(config.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    with whole_folder(folder, CheckpointError) as temporary:
        save_file(tensors, temporary / "adapter_model.safetensors", metadata={"format": "pt"})
        (temporary / "adapter_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")


def _linears(model: Decoder) -> Iterator[tuple[tuple[Any, ...], Linear, list[str]]]:
    """Every linear map of the layers, with its path and its kernel's names in the checkpoint, one per layer it holds."""
    for path, part in nnx.iter_graph(model):
        if isinstance(part, Linear) and path and path[0] == "layers":
            names = layer_paths((*path, "kernel"), model.config, model.stacked)
            yield path, part, [checkpoint_name(name, model.config.family)[0] for name in names]
