"""config.json of any transformers version → `ModelConfig`.

Omitted keys have the defaults of the family's configuration class in transformers.
"""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from tessy_jax.errors import ConfigError
from tessy_jax.models.config import Experts, Latent, ModelConfig
from tessy_jax.models.foreign_settings import check_neutral, not_followed
from tessy_jax.models.labels import label_names
from tessy_jax.models.quantized import fp8_block
from tessy_jax.models.rope_settings import read_rope
from tessy_jax.models.settings import Settings

logger = logging.getLogger(__name__)

ADAPTER = "adapter_config.json"
NAMES = {
    "llama": "Llama",
    "qwen2": "Qwen2",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
    "gpt_oss": "GptOss",
    "deepseek_v3": "DeepseekV3",
}
"""How class names of transformers write a family."""
FAMILIES = tuple(NAMES)
KV_HEADS = {"qwen2": 32, "qwen3": 32, "qwen3_moe": 4, "gpt_oss": 8}
HEAD_DIM = {"qwen3": 128, "gpt_oss": 64}
WINDOW = {"gpt_oss": 128}
POSITIONS = {"llama": 2048, "gpt_oss": 131072, "deepseek_v3": 4096}
NOT_NULL = {
    "deepseek_v3": (
        *("v_head_dim", "n_group", "topk_group", "num_experts_per_tok", "first_k_dense_replace"),
        *("norm_topk_prob", "rope_interleave"),
    ),
    "gpt_oss": ("sliding_window",),
}
"""Settings for which null differs from omission in transformers."""


def read_config(path: str | Path) -> ModelConfig:
    """The configuration of a Hugging Face model folder, or of a config.json file.

    Raises:
        ConfigError: no readable config.json, an adapter, an unknown model_type, or an unsupported option.
    """
    path = Path(path)
    file = path if path.suffix == ".json" else path / "config.json"
    if (file.parent / ADAPTER).exists():
        raise ConfigError(
            f"{file.parent}: holds an adapter ({ADAPTER}), expected a complete model; merge the adapter into its base model "
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
    s = Settings(raw)
    try:
        config = _parsed(s)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None
    unknown = not_followed(s)
    if unknown:
        _warn(file, ", ".join(unknown))
    return config


@cache
def _warn(file: Path, settings: str) -> None:
    """Once for each file, which a command reads more than once."""
    logger.warning("%s: has settings that are not followed: %s; results are wrong if the weights need them", file, settings)


def parse_config(raw: Mapping[str, Any]) -> ModelConfig:
    """The configuration from the JSON object of a config.json.

    Raises:
        ConfigError: unknown family, missing or contradictory sizes, unsupported options, values of the wrong type.
    """
    return _parsed(Settings(raw))


def _parsed(s: Settings) -> ModelConfig:
    family = s.text("model_type", "")
    if family not in FAMILIES:
        near = difflib.get_close_matches(family, FAMILIES, 1)
        hint = f" (nearest: {near[0]})" if near else ""
        raise ConfigError(f"model_type {family!r} is not supported{hint}; supported are {', '.join(FAMILIES)}")
    if s.text("hidden_act", "silu") != "silu":
        raise ConfigError(f"hidden_act {s.raw['hidden_act']!r} is not supported; these families use 'silu'")

    fp8_block(s.raw)
    s.count("num_nextn_predict_layers", 0)
    for name in NOT_NULL.get(family, ()):
        if s.is_null(name):
            raise ConfigError(f"{name} is null, but {family} needs a value; set it, or remove the key")
    layers, embed, heads = s.size("num_hidden_layers"), s.size("hidden_size"), s.size("num_attention_heads")
    default_kv_heads = heads if s.is_null("num_key_value_heads") else KV_HEADS.get(family, heads)
    kv_heads = s.size("num_key_value_heads", default_kv_heads)
    latent = _latent(s) if family == "deepseek_v3" else None
    if latent:
        kv_heads, head_dim = heads, latent.nope_dim + latent.rope_dim
    else:
        if embed < heads:
            raise ConfigError(f"hidden_size {embed} is smaller than num_attention_heads {heads}; correct one of them")
        head_dim = s.size("head_dim", HEAD_DIM.get(family, embed // heads))
    if heads % kv_heads:
        raise ConfigError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")

    max_positions = s.size("max_position_embeddings", POSITIONS.get(family, 32768))
    rope, mscale_all = read_rope(s, family, latent.rope_dim if latent else head_dim, max_positions)
    has_bias = s.flag("attention_bias", family == "gpt_oss")
    qk_norm, qkv_bias = family in ("qwen3", "qwen3_moe"), has_bias or family == "qwen2"
    eps = s.number("rms_norm_eps", 1e-5 if family == "gpt_oss" else 1e-6)
    experts, labels = _experts(s, family), _labels(s, family)
    check_neutral(
        s,
        family,
        qk_norm=qk_norm,
        qkv_bias=qkv_bias,
        head_dim=head_dim,
        eps=eps,
        theta=rope.theta,
        max_positions=max_positions,
    )
    return ModelConfig(
        family=family,
        vocab=s.size("vocab_size"),
        layers=layers,
        embed=embed,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=s.size("intermediate_size"),
        eps=eps,
        tied=s.flag("tie_word_embeddings", False),
        rope=rope,
        windows=_windows(s, family, layers),
        sparse=_sparse(s, family, layers),
        max_positions=max_positions,
        query_scale=head_dim**-0.5 * (mscale_all**2 if latent else 1.0),
        qkv_bias=qkv_bias,
        out_bias=has_bias and family != "qwen2",
        mlp_bias=s.flag("mlp_bias", False) and family == "llama",
        qk_norm=qk_norm,
        sinks=family == "gpt_oss",
        latent=latent,
        experts=experts,
        labels=labels,
        raw=json.dumps({**s.raw, **dict.fromkeys(s.nulls)}, sort_keys=True),
    )


def _windows(s: Settings, family: str, layers: int) -> tuple[int | None, ...]:
    named = {str(kind) for kind in s.items("layer_types")}
    if family in ("llama", "deepseek_v3"):
        if named - {"full_attention"}:
            raise ConfigError(f"layer_types has {sorted(named)}; {family} supports only full_attention")
        return (None,) * layers
    window = None
    if family == "gpt_oss" or (s.flag("use_sliding_window", False) and not s.is_null("sliding_window")):
        window = s.size("sliding_window", WINDOW.get(family, 4096))
    if family == "qwen3_moe":
        only = "full_attention" if window is None else "sliding_attention"
        if named - {only}:
            raise ConfigError(
                f"layer_types has {sorted(named)}; {family} supports only {only} {'without' if window is None else 'with'} "
                "a sliding window"
            )
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
            raise ConfigError(f"mlp_only_layers is {dense}, expected a list of layer numbers")
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
    """The number of labels of a token classifier; None for a causal LM. transformers knows the model by its model_type, so
    the first of the architectures must be of that family. FSDP is put before its name by torch."""
    names = [str(name) for name in s.items("architectures")]
    own = family.replace("_", "")
    kind = names[0].lower().removeprefix("fsdp").removeprefix(own) if names else "forcausallm"
    if kind == "fortokenclassification":
        return len(label_names(s))
    for note in ("id2label", "label2id", "num_labels"):
        s.read.add(note)
    if kind in ("forcausallm", "model"):  # the latter is saved without a head, as embedding models are
        return None
    raise ConfigError(
        f"architectures is {names}, expected one of a causal LM or token classifier of {family}, such as "
        f"{NAMES[family]}ForCausalLM; correct it if the weights are of such a model, or give another model"
    )
