"""Random models of the miniature, before training."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from tessy_jax.mini.styles import Speaker
from tessy_jax.mini.tokenizers import FORMS, save
from tessy_jax.models.export import export
from tessy_jax.models.hf import parameter_paths
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.layers import INIT_STD
from tessy_jax.models.transformer import Decoder

SHAPE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 24,
    "intermediate_size": 256,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
"""config.json of all models of the miniature, without the vocabulary size."""
OUT = (2 * SHAPE["num_hidden_layers"]) ** -0.5
"""Scale of the residual contribution of a layer, so that the sum over all layers has the variance of one."""


def blank(speaker: Speaker, folder: Path, *, seed: int) -> None:
    """Writes a small random model of the qwen3 family with a speaker's tokenizer, in float32. The standard deviation of its
    weights fits its narrow layers instead of those of large models, which halves the time to learn sums.

    Raises:
        CheckpointError: the folder exists and is not empty, or cannot be written.
    """
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        save(speaker, source)
        (source / "config.json").write_text(json.dumps(SHAPE | {"vocab_size": FORMS[speaker].vocab}))
        decoder = Decoder(read_config(source), nnx.Rngs(seed), dtype=jnp.float32)
        for path, parameter in parameter_paths(nnx.state(decoder)):
            if path[-1] == "kernel":
                std = parameter.shape[0] ** -0.5 * (OUT if path[-2] in ("o", "down") else 1.0)
                parameter[...] = parameter[...] * (std / INIT_STD)
        export(decoder, folder, copy_from=source)
