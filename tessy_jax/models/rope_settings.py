"""The rope settings of a config.json → `Rope`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tessy_jax.errors import ConfigError
from tessy_jax.models.config import Rope
from tessy_jax.models.settings import Settings

THETA = {"gpt_oss": 150000.0}
ROPE_NEUTRAL = {"factor": 1.0, "attn_factor": 1.0, "extrapolation_factor": 1.0}
"""Rope settings, and the value with which a rope type that does not read them ignores them."""
ROPE_NOTES = ("finetuned", "original_max_position_embeddings")
"""Rope settings that a rope type that does not read them ignores with any value."""
GPT_OSS_ROPE: dict[str, Any] = {
    "rope_type": "yarn",
    "factor": 32.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


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
                    f"rope_scaling has {key} {settings.get(key)!r}, but rope_parameters has {value!r}; remove one of the two"
                )
    if "original_max_position_embeddings" in s:  # as in transformers, it takes precedence over that of the rope settings
        settings["original_max_position_embeddings"] = s.size("original_max_position_embeddings")
    return Settings(settings, prefix=f"rope of type {settings['rope_type']!r}: ")


def _mscale(factor: float, mscale: float) -> float:
    value = 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
    if value > 1e6:
        raise ConfigError(f"rope of type 'yarn': mscale or mscale_all_dim is {mscale}, which is too large; correct it")
    return value


def read_rope(s: Settings, family: str, dim: int, max_positions: int) -> tuple[Rope, float]:
    """The rope, and the factor by which DeepSeek's YaRN multiplies queries and keys (1 elsewhere).

    Raises:
        ConfigError: the rope is not supported, or has a setting that its type does not read.
    """
    settings = _rope_settings(s, family)
    result = _rope_of(settings, s, family, dim, max_positions)
    unknown = [
        name for name in settings.unread() if name not in ROPE_NOTES and settings.raw[name] != ROPE_NEUTRAL.get(name, ...)
    ]
    if unknown:
        raise ConfigError(
            f"{settings.prefix}{', '.join(f'{name} {settings.raw[name]!r}' for name in unknown)} is not supported and would "
            "change results; remove it only if the model was trained without it"
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
