"""Settings of other families in a config.json: they are refused unless they have the value that changes nothing.

Settings that add tensors need no entry here, since tensors without a place are refused.
"""

from __future__ import annotations

from typing import Any

from tessy_jax.errors import ConfigError
from tessy_jax.models.settings import Settings

NEUTRAL: dict[str, tuple[Any, ...]] = {
    # attention
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "attention_in_multiplier": (1,),
    "attention_out_multiplier": (1,),
    "key_multiplier": (1,),
    "attn_logit_softcapping": (),
    "attn_logit_scale": (1,),
    "attn_temperature_tuning": (0,),
    "clip_qkv": (),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "add_cross_attention": (False,),
    "is_encoder_decoder": (False,),
    # positions
    "alibi": (False,),
    "position_embedding_type": ("rope", "rotary"),
    "use_mrope": (False,),
    "mrope_section": (),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (),
    "nope_layer_interval": (),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "rope_pct": (1,),
    "rotary_pct": (1,),
    # factors
    "dim_model_base": (),
    "embedding_multiplier": (1,),
    "embedding_multiplier_scale": (1,),
    "final_logit_softcapping": (),
    "lm_head_multiplier": (1,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_multipliers": (),
    "output_multiplier_scale": (1,),
    "residual_multiplier": (1,),
    "scale_depth": (),
    "scale_emb": (1,),
    "scale_embedding": (False,),
    # layers and weights
    "activation_function": ("silu",),
    "block_configs": (),
    "hidden_activation": ("silu",),
    "mlp_hidden_act": ("silu",),
    "moe_layer_freq": (1,),
    "parallel_attn": (False,),
    "per_layer_config": ({},),
    "transformers_weights": ("model.safetensors",),
    "use_parallel_residual": (False,),
}
"""For settings that change results, the values that do not; null counts as omitted."""


def check_neutral(s: Settings, family: str, *, qk_norm: bool, head_dim: int) -> None:
    """Refuses settings that change results and are not implemented. qk_norm, head_dim: of the model.

    Raises:
        ConfigError: names the setting, its value and what would be right.
    """
    own: dict[str, tuple[Any, ...]] = {"use_qk_norm": (qk_norm,), "query_pre_attn_scalar": (head_dim,)}
    if family != "deepseek_v3":
        own["rope_interleave"] = (False,)
    if family in ("llama", "deepseek_v3"):
        own["use_sliding_window"] = (False,)
    for name, neutral in {**NEUTRAL, **own}.items():
        if name in s and s.raw[name] not in neutral:
            right = f"only {' or '.join(repr(value) for value in neutral)} is" if neutral else "no value is"
            raise ConfigError(
                f"{name} {s.raw[name]!r} is not supported and would change results; {right} supported; remove it if the "
                "weights are right without it"
            )
