"""The shape of a decoder, read from a Hugging Face config.json.

One frozen `ModelConfig` describes every family; what differs between families is a field here, never a copy of a model.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tessy_jax.errors import ConfigError

FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3")


@dataclass(frozen=True)
class Rope:
    """Rotary position embedding.

    kind: "default", "linear", "llama3" or "yarn" (Hugging Face's names). dim: rotated dimensions per head.
    attention_factor scales cos and sin (YaRN). interleaved: pairs are neighbours (DeepSeek) and not halves.
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
    """Multi-head latent attention (DeepSeek-V3): ranks and head sizes; q_rank None means one plain query projection."""

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
    clamp: GPT-OSS's (alpha, limit) of its clamped gate; it comes with biased experts.
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
    """Everything that decides the function of a decoder, and nothing about where or in which dtype it runs.

    windows: per layer, None for full attention or the number of positions a query sees (itself included).
    sparse: per layer, whether the feed-forward is a mixture of experts.
    query_scale: what attention scores are multiplied with.
    labels: None for a causal-LM head, else the number of classes of a token-classification head.
    raw: the config.json this came from, as canonical JSON, so that an export keeps what we do not interpret.
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
    raw: str = "{}"


def read_config(path: str | Path) -> ModelConfig:
    """The configuration of a Hugging Face model folder (or of a config.json file itself).

    Raises:
        ConfigError: no readable config.json, an unknown model_type, or an option this decoder does not have.
    """
    path = Path(path)
    file = path if path.suffix == ".json" else path / "config.json"
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: not found; a model is a Hugging Face folder with config.json in it") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON ({error}); fetch the file again") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: holds a {type(raw).__name__}, expected a JSON object")
    try:
        return parse_config(raw)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The configuration in a config.json of any transformers version.

    Raises:
        ConfigError: unknown family, missing or contradictory sizes, unsupported options.
    """
    family = raw.get("model_type")
    if family not in FAMILIES:
        near = difflib.get_close_matches(str(family), FAMILIES, 1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ConfigError(f"model_type {family!r} is not supported{hint}; supported are {', '.join(FAMILIES)}")
    if raw.get("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act {raw['hidden_act']!r} is not supported; these families use 'silu'")

    get = _Reader(raw)
    layers, embed, heads = get.size("num_hidden_layers"), get.size("hidden_size"), get.size("num_attention_heads")
    kv_heads = get.size("num_key_value_heads", heads)
    latent = _latent(get) if family == "deepseek_v3" else None
    if latent:
        kv_heads, head_dim = heads, latent.nope_dim + latent.rope_dim
    else:
        head_dim = get.size("head_dim", {"qwen3": 128, "gpt_oss": 64}.get(family, embed // heads))
    if heads % kv_heads:
        raise ConfigError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")

    has_bias = bool(raw.get("attention_bias", family == "gpt_oss"))
    return ModelConfig(
        family=family,
        vocab=get.size("vocab_size"),
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=get.size("intermediate_size"),
        eps=float(raw.get("rms_norm_eps", 1e-5 if family == "gpt_oss" else 1e-6)),
        tied=bool(raw.get("tie_word_embeddings", False)),
        rope=_rope(raw, family, latent.rope_dim if latent else head_dim),
        windows=_windows(raw, family, layers),
        sparse=_sparse(raw, family, layers),
        max_positions=int(raw.get("max_position_embeddings", 131072 if family == "gpt_oss" else 32768)),
        query_scale=_query_scale(raw, head_dim, latent),
        qkv_bias=has_bias or family == "qwen2",
        out_bias=has_bias and family != "qwen2",
        mlp_bias=bool(raw.get("mlp_bias", False)) and family == "llama",
        qk_norm=family in ("qwen3", "qwen3_moe"),
        sinks=family == "gpt_oss",
        latent=latent,
        experts=_experts(raw, get, family),
        labels=_labels(raw),
        raw=json.dumps(raw, sort_keys=True),
    )


class _Reader:
    """Positive integers out of a config.json, by name."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw

    def size(self, name: str, default: int | None = None) -> int:
        value = self.raw.get(name)
        value = default if value is None else value
        if value is None:
            raise ConfigError(f"{name} is missing")
        if not isinstance(value, int) or value < 1:
            raise ConfigError(f"{name} is {value!r}, expected a positive integer")
        return value


def rope_settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The rope settings of a config.json as one flat dict, from `rope_parameters` (transformers 5) or the older
    `rope_theta` + `rope_scaling`."""
    settings = dict(raw.get("rope_scaling") or {}) | dict(raw.get("rope_parameters") or {})
    if not settings and raw.get("model_type") == "gpt_oss":
        settings = {"rope_type": "yarn", "factor": 32.0, "truncate": False, "original_max_position_embeddings": 4096}
    if any(isinstance(value, Mapping) for value in settings.values()):
        raise ConfigError("rope_parameters differ by layer type; these families have one set for all layers")
    settings["rope_type"] = settings.get("rope_type") or settings.pop("type", None) or "default"
    if settings.get("rope_theta") is None:
        settings["rope_theta"] = raw.get("rope_theta") or (150000.0 if raw.get("model_type") == "gpt_oss" else 10000.0)
    return settings


def _mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


def _rope(raw: Mapping[str, Any], family: str, dim: int) -> Rope:
    settings = rope_settings(raw)
    kind = settings["rope_type"]
    if kind not in ("default", "linear", "llama3", "yarn"):
        raise ConfigError(
            f"rope_type {kind!r} is not supported (its frequencies depend on the length of the whole batch, so a lane's "
            "response would depend on its neighbours); supported are default, linear, llama3, yarn"
        )
    partial = settings.get("partial_rotary_factor", raw.get("partial_rotary_factor"))
    if partial not in (None, 1, 1.0):
        raise ConfigError(f"partial_rotary_factor {partial} is not supported; these families rotate whole heads")
    if dim % 2:
        raise ConfigError(f"rotary dimension {dim} is odd; rotary pairs need an even head_dim")
    interleaved = family == "deepseek_v3" and bool(raw.get("rope_interleave", True))
    common = {"kind": kind, "theta": float(settings["rope_theta"]), "dim": dim, "interleaved": interleaved}
    if kind == "default":
        return Rope(**common)

    original = int(settings.get("original_max_position_embeddings") or raw.get("max_position_embeddings") or 0)
    factor = settings.get("factor")
    if factor is None and kind == "yarn" and original:
        factor = raw["max_position_embeddings"] / original
    if factor is None:
        raise ConfigError(f"rope_type {kind!r} needs a factor")
    common["factor"] = float(factor)
    if kind == "linear":
        return Rope(**common)
    if kind == "llama3":
        try:
            low, high = float(settings["low_freq_factor"]), float(settings["high_freq_factor"])
        except KeyError as error:
            raise ConfigError(f"rope_type 'llama3' needs {error.args[0]}") from None
        return Rope(**common, original_positions=original, low_freq_factor=low, high_freq_factor=high)

    attention_factor = settings.get("attention_factor")
    if attention_factor is None:
        mscale, mscale_all = settings.get("mscale"), settings.get("mscale_all_dim")
        attention_factor = _mscale(factor, 1.0)
        if mscale and mscale_all:
            attention_factor = _mscale(factor, mscale) / _mscale(factor, mscale_all)
    return Rope(
        **common,
        attention_factor=float(attention_factor),
        original_positions=original,
        beta_fast=float(settings.get("beta_fast") or 32),
        beta_slow=float(settings.get("beta_slow") or 1),
        truncate=bool(settings.get("truncate", True)),
    )


def _query_scale(raw: Mapping[str, Any], head_dim: int, latent: Latent | None) -> float:
    settings = rope_settings(raw)
    scale = head_dim**-0.5
    if latent and settings["rope_type"] != "default" and settings.get("mscale_all_dim"):
        scale *= _mscale(settings["factor"], settings["mscale_all_dim"]) ** 2
    return scale


def _windows(raw: Mapping[str, Any], family: str, layers: int) -> tuple[int | None, ...]:
    window = raw.get("sliding_window")
    if family in ("llama", "deepseek_v3"):
        return (None,) * layers
    if family != "gpt_oss" and not raw.get("use_sliding_window", False):
        window = None
    if family == "qwen3_moe":
        return (window,) * layers
    kinds = raw.get("layer_types")
    if kinds is None:
        if family == "gpt_oss":
            kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
        else:
            first = raw.get("max_window_layers", 28)
            kinds = ["sliding_attention" if window and i >= first else "full_attention" for i in range(layers)]
    if len(kinds) != layers:
        raise ConfigError(f"layer_types names {len(kinds)} layers, num_hidden_layers is {layers}")
    unknown = sorted(set(kinds) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ConfigError(f"layer_types has {unknown}; supported are full_attention and sliding_attention")
    if window is None and "sliding_attention" in kinds:
        raise ConfigError("layer_types has sliding_attention, but sliding_window is not set")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _sparse(raw: Mapping[str, Any], family: str, layers: int) -> tuple[bool, ...]:
    if family == "gpt_oss":
        return (True,) * layers
    if family == "qwen3_moe":
        dense, step = raw.get("mlp_only_layers") or [], raw.get("decoder_sparse_step", 1)
        return tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))
    if family == "deepseek_v3":
        return tuple(i >= raw.get("first_k_dense_replace", 3) for i in range(layers))
    return (False,) * layers


def _latent(get: _Reader) -> Latent:
    q_rank = get.raw.get("q_lora_rank", 1536)
    return Latent(
        q_rank=None if q_rank is None else get.size("q_lora_rank", q_rank),
        kv_rank=get.size("kv_lora_rank", 512),
        nope_dim=get.size("qk_nope_head_dim", 128),
        rope_dim=get.size("qk_rope_head_dim", 64),
        v_dim=get.size("v_head_dim", 128),
    )


def _experts(raw: Mapping[str, Any], get: _Reader, family: str) -> Experts | None:
    if family == "qwen3_moe":
        experts = Experts(
            count=get.size("num_experts" if "num_experts" in raw else "num_local_experts", 128),
            active=get.size("num_experts_per_tok", 8),
            ffn=get.size("moe_intermediate_size", 768),
            router="softmax",
            normalize=bool(raw.get("norm_topk_prob", False)),
        )
    elif family == "gpt_oss":
        experts = Experts(
            count=get.size("num_local_experts" if "num_local_experts" in raw else "num_experts", 128),
            active=get.size("num_experts_per_tok" if "num_experts_per_tok" in raw else "experts_per_token", 4),
            ffn=get.size("intermediate_size"),
            router="topk_softmax",
            clamp=(float(raw.get("swiglu_alpha", 1.702)), float(raw.get("swiglu_limit", 7.0))),
        )
    elif family == "deepseek_v3":
        for name, right in (("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")):
            if raw.get(name, right) != right:
                raise ConfigError(f"{name} {raw[name]!r} is not supported; DeepSeek-V3 uses {right!r}")
        ffn = get.size("moe_intermediate_size", 2048)
        experts = Experts(
            count=get.size("n_routed_experts" if "n_routed_experts" in raw else "num_local_experts", 256),
            active=get.size("num_experts_per_tok", 8),
            ffn=ffn,
            router="grouped_sigmoid",
            normalize=bool(raw.get("norm_topk_prob", True)),
            scale=float(raw.get("routed_scaling_factor", 2.5)),
            groups=get.size("n_group", 8),
            active_groups=get.size("topk_group", 4),
            shared_ffn=ffn * get.size("n_shared_experts", 1),
        )
        if experts.count % experts.groups or experts.count // experts.groups < 2:
            raise ConfigError(f"n_routed_experts {experts.count} does not split into n_group {experts.groups} of >= 2")
    else:
        return None
    if experts.active > experts.count:
        raise ConfigError(f"num_experts_per_tok {experts.active} exceeds the {experts.count} experts")
    return experts


def _labels(raw: Mapping[str, Any]) -> int | None:
    names = [str(name) for name in raw.get("architectures") or []]
    if any(name.endswith("ForTokenClassification") for name in names):
        return len(raw["id2label"]) if raw.get("id2label") else int(raw.get("num_labels", 2))
    if not names or any(name.endswith(("ForCausalLM", "Model")) for name in names):
        return None
    raise ConfigError(f"architectures {names} is not supported; expected a …ForCausalLM or …ForTokenClassification")
