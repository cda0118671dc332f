"""Settings of other families in a config.json: they are refused unless they have the value that changes nothing.

Settings that add tensors need no entry here, since tensors without a place are refused.
"""

from __future__ import annotations

from typing import Any

from tessy_jax.errors import ConfigError
from tessy_jax.models.settings import Settings

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "attn_logit_scale": (1,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "lm_head_multiplier": (1,),
    "embedding_multiplier": (1,),
    "residual_multiplier": (1,),
    "scale_emb": (1,),
    "scale_depth": (),
    "dim_model_base": (),
    "scale_embedding": (False,),
    "clip_qkv": (),
    "hidden_activation": ("silu",),
    "activation_function": ("silu",),
    "mlp_hidden_act": ("silu",),
    "alibi": (False,),
    "use_mrope": (False,),
    "mrope_section": (),
    "no_rope_layers": ([],),
    "no_rope_layer_interval": (),
    "nope_layer_interval": (),
    "rope_local_base_freq": (),
    "rotary_pct": (1,),
    "use_parallel_residual": (False,),
    "parallel_attn": (False,),
    "moe_layer_freq": (1,),
    "is_causal": (True,),
    "use_bidirectional_attention": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "chunk_size_feed_forward": (0,),
}
"""For settings that change results, the values that do not; null counts as omitted."""


def check_neutral(s: Settings, *, qk_norm: bool, head_dim: int) -> None:
    """Refuses settings that change results and are not implemented. qk_norm, head_dim: of the model.

    Raises:
        ConfigError: names the setting, its value and what would be right.
    """
    own = {"use_qk_norm": (qk_norm,), "query_pre_attn_scalar": (head_dim,)}
    for name, neutral in {**NEUTRAL, **own}.items():
        if name in s and s.raw[name] not in neutral:
            right = f"only {' or '.join(repr(value) for value in neutral)} is" if neutral else "no value is"
            raise ConfigError(
                f"{name} {s.raw[name]!r} is not supported and would change results; {right} supported; remove it if the "
                "model was trained without it"
            )
