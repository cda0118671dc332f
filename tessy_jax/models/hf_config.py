"""config.json of any transformers version → `ModelConfig`.

Omitted keys have the defaults of the family's configuration class in transformers.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tessy_jax.errors import ConfigError
from tessy_jax.models.config import Experts, Latent, ModelConfig, Rope
from tessy_jax.models.foreign_settings import check_neutral
from tessy_jax.models.labels import label_names
from tessy_jax.models.quantized import fp8_block
from tessy_jax.models.settings import Settings

ADAPTER = "adapter_config.json"
FAMILIES = ("llama", "qwen2", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3")
KV_HEADS = {"qwen2": 32, "qwen3": 32, "qwen3_moe": 4, "gpt_oss": 8}
HEAD_DIM = {"qwen3": 128, "gpt_oss": 64}
WINDOW = {"gpt_oss": 128}
POSITIONS = {"llama": 2048, "gpt_oss": 131072, "deepseek_v3": 4096}
THETA = {"gpt_oss": 150000.0}
ROPE_NEUTRAL = {"factor": 1.0, "attn_factor": 1.0, "extrapolation_factor": 1.0}
"""Rope settings that change nothing with this value where they are not read."""
ROPE_NOTES = ("finetuned", "original_max_position_embeddings")
"""Rope settings that change nothing where they are not read."""
NOT_NULL = {
    "deepseek_v3": (
        *("v_head_dim", "n_group", "topk_group", "num_experts_per_tok", "first_k_dense_replace"),
        *("norm_topk_prob", "rope_interleave"),
    ),
    "gpt_oss": ("sliding_window",),
}
"""Settings where null is not the same as omission in transformers."""
GPT_OSS_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def read_config(path: str | Path) -> ModelConfig:
    """The configuration of a Hugging Face model folder, or of a config.json file.

    Raises:
        ConfigError: no readable config.json, an adapter, an unknown model_type, or an unsupported option.
    """
    path = Path(path)
    file = path if path.suffix == ".json" else path / "config.json"
    if (file.parent / ADAPTER).exists():
        raise ConfigError(
            f"{file.parent}: holds an adapter ({ADAPTER}), and a model is expected; merge the adapter into its base model "
            "(PEFT: merge_and_unload) and give the folder of the merged model"
        )
    try:
        raw = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: not found; give a Hugging Face folder that contains config.json") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{file}: cannot be read as JSON ({error}); fetch the file again") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: holds a {type(raw).__name__}, expected a JSON object")
    try:
        return parse_config(raw)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The configuration from the JSON object of a config.json.

    Raises:
        ConfigError: unknown family, missing or contradictory sizes, unsupported options, values of the wrong type.
    """
    s = Settings(raw)
    family = s.text("model_type", "")
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, 1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ConfigError(f"model_type {family!r} is not supported{hint}; supported are {', '.join(FAMILIES)}")
    if s.text("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act {raw['hidden_act']!r} is not supported; these families use 'silu'")

    fp8_block(raw)
    predicting_layers(raw)
    for name in NOT_NULL.get(family, ()):
        if s.is_null(name):
            raise ConfigError(f"{name} is null, and {family} needs a value; set it, or remove the key")
    layers, embed, heads = s.size("num_hidden_layers"), s.size("hidden_size"), s.size("num_attention_heads")
    default_kv_heads = heads if s.is_null("num_key_value_heads") else KV_HEADS.get(family, heads)
    kv_heads = s.size("num_key_value_heads", default_kv_heads)
    latent = _latent(s) if family == "deepseek_v3" else None
    if latent:
        kv_heads, head_dim = heads, latent.nope_dim + latent.rope_dim
    else:
        if embed < heads:
            raise ConfigError(f"hidden_size {embed} is smaller than num_attention_heads {heads}")
        head_dim = s.size("head_dim", HEAD_DIM.get(family, embed // heads))
    if heads % kv_heads:
        raise ConfigError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")

    max_positions = s.size("max_position_embeddings", POSITIONS.get(family, 32768))
    rope, mscale_all = _rope(s, family, latent.rope_dim if latent else head_dim, max_positions)
    has_bias = s.flag("attention_bias", family == "gpt_oss")
    qk_norm = family in ("qwen3", "qwen3_moe")
    check_neutral(s, family, qk_norm=qk_norm, head_dim=head_dim)
    return ModelConfig(
        family=family,
        vocab=s.size("vocab_size"),
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=s.size("intermediate_size"),
        eps=s.number("rms_norm_eps", 1e-5 if family == "gpt_oss" else 1e-6),
        tied=s.flag("tie_word_embeddings", False),
        rope=rope,
        windows=_windows(s, family, layers),
        sparse=_sparse(s, family, layers),
        max_positions=max_positions,
        query_scale=head_dim**-0.5 * (mscale_all**2 if latent else 1.0),
        qkv_bias=has_bias or family == "qwen2",
        out_bias=has_bias and family != "qwen2",
        mlp_bias=s.flag("mlp_bias", False) and family == "llama",
        qk_norm=qk_norm,
        sinks=family == "gpt_oss",
        latent=latent,
        experts=_experts(s, family),
        labels=_labels(s, family),
        raw=json.dumps(raw, sort_keys=True),
    )


def _rope_settings(s: Settings, family: str) -> Settings:
    """The rope settings as one flat object, from `rope_parameters` (transformers 5) or the older `rope_theta` +
    `rope_scaling`."""
    older, newer = dict(s.object("rope_scaling")), dict(s.object("rope_parameters"))
    for given in (older, newer):
        if any(isinstance(value, Mapping) for value in given.values()):
            raise ConfigError("rope_parameters differ by layer type; supported families have one set for all layers")
        kinds = {str(kind) for kind in (given.get("rope_type"), given.pop("type", None)) if kind is not None}
        if len(kinds) > 1:
            raise ConfigError(
                f"rope settings: type and rope_type contradict each other ({', '.join(sorted(kinds))}); remove one"
            )
        given["rope_type"] = kinds.pop() if kinds else "default"
    settings = older if s.object("rope_scaling") else newer
    if family == "gpt_oss" and not s.object("rope_scaling") and "rope_parameters" not in s:
        settings = dict(GPT_OSS_ROPE)
    place = "rope_scaling" if s.object("rope_scaling") else "rope_parameters"
    theta = s.number("rope_theta", THETA.get(family, 10000.0))
    if settings.get("rope_theta") is None:
        settings["rope_theta"] = theta
    elif "rope_theta" in s and settings["rope_theta"] != theta:
        raise ConfigError(
            f"rope_theta is {theta}, but {settings['rope_theta']!r} in {place}; remove one, or make them equal"
        )
    if s.object("rope_scaling") and s.object("rope_parameters"):
        for key, value in newer.items():
            if settings.get(key) != value:
                raise ConfigError(
                    f"rope_scaling has {key} {settings.get(key)!r}, rope_parameters {value!r}; remove one of both"
                )
    if "original_max_position_embeddings" in s:  # as in transformers, it precedes that of the rope settings
        settings["original_max_position_embeddings"] = s.size("original_max_position_embeddings")
    return Settings(settings, prefix=f"rope of type {settings['rope_type']!r}: ")


def _mscale(factor: float, mscale: float) -> float:
    value = 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
    if value > 1e6:
        raise ConfigError(f"rope of type 'yarn': mscale or mscale_all_dim {mscale} is too large")
    return value


def _rope(s: Settings, family: str, dim: int, max_positions: int) -> tuple[Rope, float]:
    """The rope, and the factor by which DeepSeek's YaRN multiplies queries and keys (1 elsewhere).

    Raises:
        ConfigError: an unsupported rope, or a rope setting that its type does not have.
    """
    settings = _rope_settings(s, family)
    result = _rope_of(settings, s, family, dim, max_positions)
    unknown = [
        name for name in settings.unread() if name not in ROPE_NOTES and settings.raw[name] != ROPE_NEUTRAL.get(name, ...)
    ]
    if unknown:
        raise ConfigError(
            f"{settings.prefix}{', '.join(f'{name} {settings.raw[name]!r}' for name in unknown)} is not supported and would "
            "change results; remove it if the weights are right without it"
        )
    return result


def _rope_of(settings: Settings, s: Settings, family: str, dim: int, max_positions: int) -> tuple[Rope, float]:
    kind = settings.text("rope_type", "default")
    partial = settings.number("partial_rotary_factor", s.number("partial_rotary_factor", 1.0))
    if partial != 1.0:
        raise ConfigError(f"partial_rotary_factor {partial} is not supported; supported families rotate complete heads")
    if dim % 2:
        name = "qk_rope_head_dim" if family == "deepseek_v3" else "head_dim (if omitted, hidden_size / num_attention_heads)"
        raise ConfigError(f"rotary dimension {dim} is odd; rotary pairs need an even {name}")
    theta = settings.number("rope_theta")
    interleaved = family == "deepseek_v3" and s.flag("rope_interleave", True)
    if kind == "default":
        return Rope("default", theta, dim, interleaved=interleaved), 1.0
    if kind not in ("linear", "llama3", "yarn"):
        reason = ""
        if kind in ("dynamic", "longrope"):
            reason = (
                " (its frequencies depend on the longest sequence of a batch, so a lane's response would depend on its "
                "neighbours)"
            )
        raise ConfigError(f"rope_type {kind!r} is not supported{reason}; supported are default, linear, llama3, yarn")

    original = settings.size("original_max_position_embeddings", max_positions)
    factor = settings.number("factor", max_positions / original if kind == "yarn" else None)
    has_all = settings.get("mscale_all_dim", (int, float), "a number", 0) != 0
    all_dim = settings.number("mscale_all_dim") if has_all else 0.0
    mscale_all = _mscale(factor, all_dim) if has_all else 1.0
    if kind == "linear":
        return Rope("linear", theta, dim, factor=factor, interleaved=interleaved), mscale_all
    if kind == "llama3":
        low, high = settings.number("low_freq_factor"), settings.number("high_freq_factor")
        rope = Rope(
            "llama3",
            theta,
            dim,
            factor=factor,
            original_positions=original,
            low_freq_factor=low,
            high_freq_factor=high,
            interleaved=interleaved,
        )
        return rope, mscale_all

    attention_factor = _mscale(factor, 1.0)
    if settings.get("mscale", (int, float), "a number", 0) and has_all:
        attention_factor = _mscale(factor, settings.number("mscale")) / mscale_all
    rope = Rope(
        "yarn",
        theta,
        dim,
        factor=factor,
        attention_factor=settings.number("attention_factor", attention_factor),
        original_positions=original,
        beta_fast=settings.number("beta_fast", 32.0),
        beta_slow=settings.number("beta_slow", 1.0),
        truncate=settings.flag("truncate", True),
        interleaved=interleaved,
    )
    return rope, mscale_all


def _windows(s: Settings, family: str, layers: int) -> tuple[int | None, ...]:
    named = {str(kind) for kind in s.items("layer_types")}
    if family in ("llama", "deepseek_v3"):
        if named - {"full_attention"}:
            raise ConfigError(f"layer_types has {sorted(named)}; {family} has full_attention only")
        return (None,) * layers
    window = None
    if family == "gpt_oss" or (s.flag("use_sliding_window", False) and not s.is_null("sliding_window")):
        window = s.size("sliding_window", WINDOW.get(family, 4096))
    if family == "qwen3_moe":
        only = "full_attention" if window is None else "sliding_attention"
        if named - {only}:
            raise ConfigError(f"layer_types has {sorted(named)}; with this sliding window, {family} has {only} only")
        return (window,) * layers
    kinds = s.items("layer_types")
    if not kinds and family == "gpt_oss":
        kinds = ["full_attention" if i % 2 else "sliding_attention" for i in range(layers)]
    elif not kinds:
        first = s.count("max_window_layers", 28)
        kinds = ["sliding_attention" if window and i >= first else "full_attention" for i in range(layers)]
    if len(kinds) != layers:
        raise ConfigError(f"layer_types names {len(kinds)} layers, num_hidden_layers is {layers}")
    unknown = sorted({str(kind) for kind in kinds} - {"full_attention", "sliding_attention"})
    if unknown:
        raise ConfigError(f"layer_types has {unknown}; supported are full_attention and sliding_attention")
    if window is None and "sliding_attention" in kinds:
        raise ConfigError("layer_types has sliding_attention, but use_sliding_window and sliding_window are not set")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def _sparse(s: Settings, family: str, layers: int) -> tuple[bool, ...]:
    if family == "gpt_oss":
        return (True,) * layers
    if family == "qwen3_moe":
        dense, step = s.items("mlp_only_layers"), s.size("decoder_sparse_step", 1)
        if any(type(layer) is not int for layer in dense):
            raise ConfigError(f"mlp_only_layers is {dense}, expected numbers of layers")
        return tuple(i not in dense and (i + 1) % step == 0 for i in range(layers))
    if family == "deepseek_v3":
        first = s.count("first_k_dense_replace", 3)
        return tuple(i >= first for i in range(layers))
    return (False,) * layers


def _latent(s: Settings) -> Latent:
    return Latent(
        q_rank=None if s.is_null("q_lora_rank") else s.size("q_lora_rank", 1536),
        kv_rank=s.size("kv_lora_rank", 512),
        nope_dim=s.size("qk_nope_head_dim", 128),
        rope_dim=s.size("qk_rope_head_dim", 64),
        v_dim=s.size("v_head_dim", 128),
    )


def _experts(s: Settings, family: str) -> Experts | None:
    if family == "qwen3_moe":
        experts = Experts(
            count=s.same(("num_experts", "num_local_experts"), 128),
            active=s.size("num_experts_per_tok", 8),
            ffn=s.size("moe_intermediate_size", 768),
            router="softmax",
            normalize=s.flag("norm_topk_prob", False),
        )
    elif family == "gpt_oss":
        experts = Experts(
            count=s.same(("num_local_experts", "num_experts"), 128),
            active=s.same(("num_experts_per_tok", "experts_per_token"), 4),
            ffn=s.size("intermediate_size"),
            router="topk_softmax",
            clamp=(s.number("swiglu_alpha", 1.702), s.number("swiglu_limit", 7.0)),
        )
    elif family == "deepseek_v3":
        for name, supported in (("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")):
            if s.text(name, supported) != supported:
                raise ConfigError(f"{name} {s.raw[name]!r} is not supported; DeepSeek-V3 uses {supported!r}")
        ffn = s.size("moe_intermediate_size", 2048)
        experts = Experts(
            count=s.same(("n_routed_experts", "num_local_experts"), 256),
            active=s.size("num_experts_per_tok", 8),
            ffn=ffn,
            router="grouped_sigmoid",
            normalize=s.flag("norm_topk_prob", True),
            scale=s.number("routed_scaling_factor", 2.5),
            groups=s.size("n_group", 8),
            active_groups=s.size("topk_group", 4),
            shared_ffn=ffn * s.size("n_shared_experts", 1),
        )
        if experts.count % experts.groups or experts.count // experts.groups < 2:
            raise ConfigError(f"n_routed_experts {experts.count} does not split into n_group {experts.groups} of >= 2")
        if experts.active_groups > experts.groups:
            raise ConfigError(f"topk_group {experts.active_groups} exceeds n_group {experts.groups}")
    else:
        return None
    choosable = experts.count // experts.groups * experts.active_groups
    if experts.active > choosable:
        raise ConfigError(
            f"num_experts_per_tok {experts.active} exceeds the {choosable} experts that a token can choose from "
            f"(of {experts.count})"
        )
    return experts


def predicting_layers(raw: Mapping[str, Any]) -> int:
    """The number of layers for multi-token prediction in a config.json."""
    return Settings(raw).count("num_nextn_predict_layers", 0)


def as_classifier(config: ModelConfig, names: Sequence[str]) -> ModelConfig:
    """The same model with a token-classification head of these classes instead of its own head."""
    raw = json.loads(config.raw)
    raw.pop("num_labels", None)
    own = [str(name) for name in raw.get("architectures") or []] or [f"{config.family}ForCausalLM"]
    head = own[0].removesuffix("Model").removesuffix("ForCausalLM")
    raw |= {
        "architectures": [f"{head}ForTokenClassification"],
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }
    return replace(config, labels=len(names), raw=json.dumps(raw))


def shortened(config: ModelConfig, layers: int) -> ModelConfig:
    """The same model with only its first `layers` layers."""
    raw = json.loads(config.raw) | {"num_hidden_layers": layers}
    if raw.get("layer_types"):
        raw["layer_types"] = raw["layer_types"][:layers]
    return parse_config(raw)


def _labels(s: Settings, family: str) -> int | None:
    names = [str(name) for name in s.items("architectures")]
    if any(name.endswith("ForTokenClassification") for name in names):
        return len(label_names(s))
    backbone = family.replace("_", "") + "model"  # saved without a head, as embedding models are
    if not names or any(name.endswith("ForCausalLM") or name.lower() == backbone for name in names):
        return None
    raise ConfigError(f"architectures {names} is not supported; expected a …ForCausalLM or …ForTokenClassification")
