"""Settings of a config.json that this package does not implement. Those of other families are refused unless their value
has no effect, notes are ignored, and all others are named in a warning.

Settings that add tensors need no entry here, because tensors without a parameter are refused.
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
    "global_attn_every_n_layers": (),
    "num_kv_shared_layers": (0,),
    "pruned_heads": ({},),
    "qk_layernorm": (False,),
    "sliding_window_pattern": (),
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
    "rope_ntk_alpha": (1,),
    "rope_pct": (1,),
    "rope_ratio": (1,),
    "rotary_pct": (1,),
    "use_rope": (True,),
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
    "residual_scale": (1,),
    "scale_depth": (),
    "scale_emb": (1,),
    "scale_embedding": (False,),
    "shared_expert_intermediate_size": (0,),
    # layers and weights
    "activation_function": ("silu",),
    "block_configs": (),
    "hidden_activation": ("silu",),
    "mlp_hidden_act": ("silu",),
    "moe_layer_freq": (1,),
    "norm_type": ("rms_norm", "rmsnorm", "RMSNorm"),
    "normalization": ("rms_norm", "rmsnorm", "RMSNorm"),
    "parallel_attn": (False,),
    "parallel_residual": (False,),
    "per_layer_config": ({},),
    "text_config": (),
    "transformers_weights": ("model.safetensors",),
    "use_parallel_residual": (False,),
}
"""Settings that can change results, and their values that have no effect; null counts as omitted."""


NOTES = frozenset(
    (
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_commit_hash",
        "_model_name_or_path",
        "_name_or_path",
        "attn_implementation",
        "aux_loss_alpha",
        "bad_words_ids",
        "begin_suppress_tokens",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "diversity_penalty",
        "do_sample",
        "dtype",
        "dual_chunk_attention_config",
        "early_stopping",
        "encoder_no_repeat_ngram_size",
        "eos_token_id",
        "ep_size",
        "exponential_decay_length_penalty",
        "finetuning_task",
        "forced_bos_token_id",
        "forced_eos_token_id",
        "initial_context_length",
        "initializer_range",
        "is_composition",
        "is_decoder",
        "is_llama_config",
        "layer_types",
        "length_penalty",
        "max_length",
        "max_window_layers",
        "min_length",
        "mlp_bias",
        "name_or_path",
        "no_repeat_ngram_size",
        "num_beam_groups",
        "num_beams",
        "num_return_sequences",
        "output_attentions",
        "output_hidden_states",
        "output_scores",
        "pad_token_id",
        "prefix",
        "pretraining_tp",
        "problem_type",
        "qk_head_dim",
        "quantization",
        "quantization_config",
        "remove_invalid_values",
        "repetition_penalty",
        "return_dict",
        "return_dict_in_generate",
        "router_aux_loss_coef",
        "sep_token_id",
        "seq_aux",
        "sliding_window",
        "suppress_tokens",
        "task_specific_params",
        "temperature",
        "tf_legacy_loss",
        "tie_encoder_decoder",
        "tokenizer_class",
        "top_k",
        "top_p",
        "torch_dtype",
        "torchscript",
        "transformers.js_config",
        "transformers_version",
        "typical_p",
        "unk_token_id",
        "unsloth_fixed",
        "unsloth_version",
        "use_bfloat16",
        "use_cache",
        "use_sliding_window",
    )
)
"""Settings that have no effect on what a model computes here, or have one only with other settings."""
ONLY_IN_TRAINING: dict[str, tuple[Any, ...]] = {
    "attention_dropout": (0,),
    "embd_pdrop": (0,),
    "hidden_dropout": (0,),
    "output_router_logits": (False,),
    "resid_pdrop": (0,),
    "router_jitter_noise": (0,),
}
"""Settings that change only a training with transformers, and their values that have no effect. They are ignored here."""


def check_neutral(
    s: Settings,
    family: str,
    *,
    qk_norm: bool,
    qkv_bias: bool,
    head_dim: int,
    eps: float,
    theta: float,
    max_positions: int,
) -> None:
    """Refuses settings that would change results and are not implemented. qk_norm, qkv_bias, head_dim, eps, theta,
    max_positions: of the model.

    Raises:
        ConfigError: there is one; names it, its value and the supported values.
    """
    own: dict[str, tuple[Any, ...]] = {
        "use_qk_norm": (qk_norm,),
        "qkv_bias": (qkv_bias,),
        "query_pre_attn_scalar": (head_dim,),
    }
    own |= dict.fromkeys(("layer_norm_eps", "layer_norm_epsilon", "norm_eps", "norm_epsilon", "rms_norm_epsilon"), (eps,))
    own |= dict.fromkeys(("rope_base", "rotary_base", "rotary_emb_base"), (theta,))
    if family == "deepseek_v3":
        s.read |= {"auto_map", "head_dim"}  # code that transformers has of its own; a sum of other sizes
    else:
        own |= {"num_nextn_predict_layers": (0,), "rope_interleave": (False,), "scoring_func": ("softmax",)}
        own |= {"routed_scaling_factor": (1,), "n_group": (1,), "topk_group": (1,)}
        own |= dict.fromkeys(("attention_head_dim", "head_size", "kv_channels", "rotary_dim"), (head_dim,))
    if family in ("llama", "deepseek_v3"):
        own["use_sliding_window"] = (False,)
        if s.count("sliding_window", max_positions) < max_positions:
            raise ConfigError(
                f"sliding_window {s.raw['sliding_window']!r} is smaller than max_position_embeddings {max_positions}, and "
                f"{family} supports only full attention. Remove it only if the model was trained without it"
            )
    if family == "gpt_oss":
        own["norm_topk_prob"] = (True,)
    for name, neutral in {**NEUTRAL, **own}.items():
        s.read.add(name)
        if name in s and s.raw[name] not in neutral:
            right = f"only {' or '.join(repr(value) for value in neutral)} is" if neutral else "no value is"
            raise ConfigError(
                f"{name} {s.raw[name]!r} is not supported and would change results; {right} supported. Remove it only if "
                "the model was trained without it"
            )


def not_followed(s: Settings) -> list[str]:
    """The settings of a config.json that are not read and might change results, with their values: unknown settings, and
    those of a training with transformers."""
    unread = [name for name in s.unread() if name not in NOTES and s.raw[name] not in ONLY_IN_TRAINING.get(name, ())]
    return [f"{name} {s.raw[name]!r:.60}" for name in unread]
