"""The shape of a decoder: one frozen `ModelConfig` describes every family.

A difference between families is a field here, never a copy of a model. `hf_config` reads it from a config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    kind: "default", "linear", "llama3" or "yarn" (Hugging Face's names). dim: rotated dimensions per head.
    attention_factor scales cos and sin (YaRN). interleaved: pairs are neighbours (DeepSeek) instead of halves.
    """

    kind: Literal["default", "linear", "llama3", "yarn"]
    theta: float
    dim: int
    factor: float = 1.0
    attention_factor: float = 1.0
    original_positions: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    interleaved: bool = False


@dataclass(frozen=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V3): ranks and head dims; with q_rank None, queries have one projection."""

    q_rank: int | None
    kv_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int


@dataclass(frozen=True)
class Experts:
    """A mixture-of-experts feed-forward.

    router: "softmax" (softmax over all experts, then top-k; Qwen3), "topk_softmax" (top-k of biased logits, then softmax;
    GPT-OSS) or "grouped_sigmoid" (sigmoid scores, correction bias, group-limited top-k; DeepSeek-V3).
    clamp: (alpha, limit) of GPT-OSS's clamped gate; its experts have biases.
    """

    count: int
    active: int
    ffn: int
    router: Literal["softmax", "topk_softmax", "grouped_sigmoid"]
    normalize: bool = True
    scale: float = 1.0
    groups: int = 1
    active_groups: int = 1
    shared_ffn: int = 0
    clamp: tuple[float, float] | None = None


@dataclass(frozen=True)
class ModelConfig:
    """The function that a decoder computes, independent of its devices and dtype.

    windows: per layer, None for full attention or the number of positions a query sees (including its own).
    sparse: per layer, whether the feed-forward is a mixture of experts.
    query_scale: factor of the attention scores.
    labels: None for a causal-LM head, else the number of classes of a token-classification head.
    raw: the source config.json as canonical JSON, so that an export keeps the keys that are not interpreted here. Models
    that differ only in it are equal and share compiled programs.
    """

    family: str
    vocab: int
    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float
    tied: bool
    rope: Rope
    windows: tuple[int | None, ...]
    sparse: tuple[bool, ...]
    max_positions: int
    query_scale: float
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    latent: Latent | None = None
    experts: Experts | None = None
    labels: int | None = None
    raw: str = field(default="{}", compare=False)
