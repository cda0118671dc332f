"""Tiny random Hugging Face models, one tied and one untied per family. Their rope settings differ from the defaults, their
head counts are unusual, and their biases and norms differ from the initial values, so that no fault stays hidden."""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from tempfile import mkdtemp

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

VOCAB, LENGTH, LANES = 320, 512, 8
YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 8.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 20000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
LINEAR = {"rope_type": "linear", "rope_theta": 3000.0, "factor": 2.5}
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 72,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-5,
}
MOE = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24}
LATENT = {
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 14,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 16,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "moe_intermediate_size": 24,
    "n_shared_experts": 2,
    "first_k_dense_replace": 1,
}


@dataclass(frozen=True)
class Variant:
    """A tiny model's config.json settings, and a mesh of 8 devices that divides it."""

    family: str
    tied: bool
    mesh: str
    settings: tuple[tuple[str, object], ...]

    @property
    def name(self) -> str:
        return f"{self.family}-{'tied' if self.tied else 'untied'}"


def _variant(family: str, tied: bool, mesh: str, rope: dict, **settings: object) -> Variant:
    return Variant(family, tied, mesh, tuple({**COMMON, "rope_parameters": rope, **settings}.items()))


VARIANTS = {
    v.name: v
    for v in (
        _variant(
            "llama", False, "data=2,fsdp=4", LLAMA3,
            num_attention_heads=9, num_key_value_heads=3, head_dim=16, attention_bias=True, mlp_bias=True,
        ),
        _variant("llama", True, "data=4,tensor=2", LINEAR, num_attention_heads=6, num_key_value_heads=2),
        _variant(
            "qwen2", False, "fsdp=4,tensor=2", YARN,
            num_attention_heads=6, num_key_value_heads=2, use_sliding_window=True, sliding_window=40, max_window_layers=1,
        ),
        _variant(
            "qwen2", True, "data=8", {"rope_type": "default", "rope_theta": 777.0},
            num_attention_heads=3, num_key_value_heads=1,
        ),
        _variant(
            "qwen3", False, "tensor=2,data=4", YARN,
            num_attention_heads=10, num_key_value_heads=2, head_dim=12,
        ),
        _variant(
            "qwen3", True, "fsdp=8", {**YARN, "attention_factor": 1.3, "beta_fast": 16.0},
            num_attention_heads=5, num_key_value_heads=5, head_dim=20, attention_bias=True,
        ),
        _variant(
            "qwen3_moe", False, "data=2,tensor=2,expert=2", YARN,
            num_attention_heads=6, num_key_value_heads=2, head_dim=16, norm_topk_prob=True, mlp_only_layers=[1], **MOE,
        ),
        _variant(
            "qwen3_moe", True, "fsdp=2,expert=4", LINEAR,
            num_attention_heads=9, num_key_value_heads=3, head_dim=8, norm_topk_prob=False, **MOE,
        ),
        _variant(
            "gpt_oss", False, "fsdp=2,tensor=2,expert=2", {**YARN, "truncate": False},
            num_attention_heads=6, num_key_value_heads=2, head_dim=16, sliding_window=24,
            num_hidden_layers=5, num_local_experts=8, num_experts_per_tok=2,
        ),
        _variant(
            "gpt_oss", True, "data=4,expert=2", {**YARN, "rope_theta": 900.0},
            num_attention_heads=9, num_key_value_heads=3, head_dim=8, sliding_window=33,
            num_local_experts=6, num_experts_per_tok=4,
        ),
        _variant(
            "deepseek_v3", False, "data=2,tensor=2,expert=2", {**YARN, "mscale": 1.0, "mscale_all_dim": 0.7},
            q_lora_rank=24, norm_topk_prob=True, **LATENT,
        ),
        _variant(
            "deepseek_v3", True, "tensor=2,expert=4", {"rope_type": "default", "rope_theta": 4321.0},
            q_lora_rank=None, rope_interleave=False, norm_topk_prob=False, attention_bias=True, **LATENT,
        ),
    )
}  # fmt: skip


def tokens() -> np.ndarray:
    """[LANES, LENGTH] random token ids."""
    return np.random.default_rng(7).integers(1, VOCAB, (LANES, LENGTH))


@dataclass(eq=False)
class Reference:
    """A saved Hugging Face model."""

    folder: Path
    model: "transformers.PreTrainedModel"

    @cached_property
    def logits(self) -> np.ndarray:
        """Its float32 logits on `tokens()`."""
        return hf_logits(self.model)


@cache
def reference(name: str, labels: int | None = None) -> Reference:
    """Builds, randomises and saves a variant; with labels, as a token classifier with that number of classes."""
    variant = VARIANTS[name]
    extra = {} if labels is None else {"num_labels": labels}
    settings = {key: dict(value) if isinstance(value, dict) else value for key, value in variant.settings}
    config = AutoConfig.for_model(variant.family, tie_word_embeddings=variant.tied, **settings, **extra)
    config._attn_implementation = "eager"
    torch.manual_seed(3)
    auto = AutoModelForCausalLM if labels is None else AutoModelForTokenClassification
    model = auto.from_config(config).float().eval()
    with torch.no_grad():
        for key, value in (*model.named_parameters(), *model.named_buffers()):
            if "inv_freq" in key:
                continue
            noise = torch.randn(value.shape)
            if "norm" in key:
                value.copy_(1 + 0.2 * noise)
            elif value.ndim == 1 or key.endswith("_bias"):
                value.copy_(0.3 * noise)
            else:
                value.copy_(noise * (1.5 / value.shape[-1] ** 0.5 if value.ndim == 3 else 1.2 / value.shape[-1] ** 0.5))
    folder = Path(mkdtemp(prefix=f"tiny-{name}-"))
    model.save_pretrained(folder)
    return Reference(folder, model)


def hf_logits(model: "transformers.PreTrainedModel") -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens()), use_cache=False).logits.float().numpy()
