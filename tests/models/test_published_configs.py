"""Published configurations of the supported families are read as in transformers. Settings that would change results and are
not implemented are refused by name, whatever a hand-edited config.json holds."""

import copy
import json
import logging
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from tessy_jax.errors import ConfigError
from tessy_jax.models.foreign_settings import NEUTRAL
from tessy_jax.models.hf_config import FAMILIES, as_classifier, parse_config, read_config
from tests.models.published import DEEPSEEK_V3, GPT_OSS, PUBLISHED, QWEN_3, QWEN_3_MOE, SIZES

EXAMPLES = int(os.environ.get("TESSY_CONFIG_EXAMPLES", "200"))
"""The number of edited configurations; by hand, 10,000."""
ROPE_KEYS = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "truncate", "attention_factor")


def check_agreement(raw, config):
    """Compares our configuration with that of transformers. Returns whether transformers reads it at all."""
    logging.disable(logging.WARNING)
    try:
        theirs = AutoConfig.for_model(**copy.deepcopy(raw))
    except Exception:  # its classes raise many types, and refuse more than they need
        return False
    finally:
        logging.disable(logging.NOTSET)
    latent = config.family == "deepseek_v3"
    rope = theirs.rope_parameters
    experts = getattr(theirs, "n_routed_experts" if latent else "num_local_experts", None)
    if rope["rope_theta"] is None or (config.experts and experts is None):  # its classes accept that, and its models fail
        return False
    assert config.rope.kind == rope["rope_type"]
    assert config.rope.theta == rope["rope_theta"]
    for name in ROPE_KEYS if config.rope.kind != "default" else ():
        if rope.get(name) is not None and hasattr(config.rope, name) and name != "attention_factor":
            assert getattr(config.rope, name) == rope[name] or (name == "factor" and config.rope.kind == "default"), name
    if config.rope.kind in ("llama3", "yarn"):
        assert config.rope.original_positions == rope["original_max_position_embeddings"]
    for ours, name in (
        ("vocab", "vocab_size"),
        ("layers", "num_hidden_layers"),
        ("embed", "hidden_size"),
        ("heads", "num_attention_heads"),
        ("ffn", "intermediate_size"),
        ("eps", "rms_norm_eps"),
        ("tied", "tie_word_embeddings"),
        ("max_positions", "max_position_embeddings"),
    ):
        assert getattr(config, ours) == getattr(theirs, name), name
    if latent:
        assert config.latent.q_rank == theirs.q_lora_rank
        assert config.latent.v_dim == theirs.v_head_dim
        assert (config.experts.groups, config.experts.active_groups) == (theirs.n_group, theirs.topk_group)
        assert config.rope.interleaved == theirs.rope_interleave
        assert config.sparse == tuple(i >= theirs.first_k_dense_replace for i in range(config.layers))
    else:
        own_dim = getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads
        assert (config.kv_heads, config.head_dim) == (theirs.num_key_value_heads, own_dim)
    if config.experts:
        assert config.experts.active == theirs.num_experts_per_tok
        assert config.family == "gpt_oss" or config.experts.normalize == theirs.norm_topk_prob
        assert config.experts.count == experts
    if config.family in ("qwen2", "qwen3", "gpt_oss"):
        window = theirs.sliding_window
        assert config.windows == tuple(window if kind == "sliding_attention" else None for kind in theirs.layer_types)
    return True


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_published_configuration_is_read_as_in_transformers(name):
    assert check_agreement(PUBLISHED[name], parse_config(PUBLISHED[name]))


@pytest.mark.parametrize("name", NEUTRAL)
def test_a_setting_of_another_family_passes_only_with_its_neutral_values_or_null(name):
    for value in (*NEUTRAL[name], None):
        parse_config({**PUBLISHED["qwen3"], name: value})
    with pytest.raises(ConfigError, match=f"^{name} 7.5 is not supported"):
        parse_config({**PUBLISHED["qwen3"], name: 7.5})


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("qwen3", {"use_qk_norm": False}, ["use_qk_norm False"]),
        ("llama-3", {"use_qk_norm": True}, ["use_qk_norm True"]),
        ("llama-3", {"query_pre_attn_scalar": 256}, ["query_pre_attn_scalar 256", "16"]),
        ("llama-3", {"rope_interleave": True}, ["rope_interleave True"]),
        ("llama-3", {"use_sliding_window": True}, ["use_sliding_window True"]),
        ("llama-3", {"layer_types": ["sliding_attention"] * 4}, ["layer_types", "sliding_attention"]),
        ("qwen3-moe", {"layer_types": ["sliding_attention"] * 4}, ["layer_types", "sliding_attention"]),
        ("qwen3-moe", {"mlp_only_layers": ["1"]}, ["mlp_only_layers"]),
        ("llama-3", {"sliding_window": 4096}, ["sliding_window 4096", "8192"]),
        ("llama-3", {"norm_eps": 1e-3}, ["norm_eps 0.001", "1e-05"]),
        ("qwen2.5", {"rotary_emb_base": 10000}, ["rotary_emb_base 10000", "1000000.0"]),
        ("qwen2.5", {"qkv_bias": False}, ["qkv_bias False", "only True"]),
        ("qwen3-moe", {"shared_expert_intermediate_size": 64}, ["shared_expert_intermediate_size 64"]),
        ("qwen2.5", {"rotary_dim": 8}, ["rotary_dim 8", "only 16"]),
        ("qwen2.5", {"num_nextn_predict_layers": 1}, ["num_nextn_predict_layers 1"]),
        ("qwen3-moe", {"routed_scaling_factor": 2.5}, ["routed_scaling_factor 2.5"]),
        ("qwen3-moe", {"scoring_func": "sigmoid"}, ["scoring_func 'sigmoid'"]),
        ("gpt-oss", {"norm_topk_prob": False}, ["norm_topk_prob False"]),
        ("llama-3", {"architectures": ["MistralForCausalLM"]}, ["MistralForCausalLM", "LlamaForCausalLM"]),
        ("llama-3", {"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification"]),
        ("gpt-oss", {"architectures": ["PeftModelForCausalLM"]}, ["PeftModelForCausalLM", "GptOssForCausalLM"]),
        ("qwen3-moe", {"num_local_experts": 16}, ["num_experts 8", "num_local_experts 16"]),
        ("gpt-oss", {"experts_per_token": 2}, ["num_experts_per_tok 4", "experts_per_token 2"]),
        ("gpt-oss", {"sliding_window": None}, ["sliding_window is null"]),
        ("deepseek-v3", {"n_group": None}, ["n_group is null"]),
        ("deepseek-v3", {"norm_topk_prob": None}, ["norm_topk_prob is null"]),
        ("deepseek-v3", {"num_nextn_predict_layers": "1"}, ["num_nextn_predict_layers", "'1'"]),
        ("llama-3.1", {"rope_theta": 1e400}, ["rope_theta is inf"]),
        ("llama-3.1", {"rope_theta": 10**400}, ["rope_theta is 1000", "positive number"]),
        ("llama-3.1", {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}}, ["linear, yarn"]),
        ("qwen3", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "attn_factor": 2.0}}, ["attn_factor 2.0"]),
        ("qwen3", {"rope_scaling": {"factor": 4.0}}, ["'default'", "factor 4.0"]),
        ("qwen3", {"rope_scaling": {"rope_type": "mrope"}}, ["mrope", "supported are default"]),
        ("qwen3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}}, ["rope_theta is 1000000.0", "5.0"]),
        (
            "qwen3-yarn",
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 2.0}},
            ["rope_scaling has factor 4.0", "rope_parameters has 2.0"],
        ),
        ("llama-3", {"quantization_config": {"quant_method": "gptq", "bits": 4}}, ["gptq", "dequantised"]),
        ("llama-3", {"quantization_config": {"quant_method": "awq", "bits": 4}}, ["awq", "dequantised"]),
        ("llama-3", {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ["bitsandbytes"]),
        ("llama-3", {"quantization_config": {"load_in_4bit": True}}, ["quantization_config", "None"]),
        ("llama-3", {"quantization": {"group_size": 64, "bits": 4}}, ["quantization", "group_size", "dequantised"]),
        ("llama-3", {"compression_config": {"format": "pack-quantized"}}, ["compression_config", "dequantised"]),
        ("qwen3-fp8", {"quantization_config": {"quant_method": "fp8", "weight_block_size": [0, 4]}}, ["weight_block_size"]),
    ],
)
def test_a_setting_that_would_be_misread_is_refused_by_name(name, change, words):
    with pytest.raises(ConfigError) as caught:
        parse_config({**PUBLISHED[name], **change})
    for word in words:
        assert word in str(caught.value)


def read(folder, raw, caplog):
    """The configuration of a model folder, and the warnings."""
    caplog.clear()
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(raw))
    read_config(folder)
    return read_config(folder), [record.getMessage() for record in caplog.records]


def test_published_configurations_hold_no_setting_that_is_not_followed(tmp_path, caplog):
    for name in PUBLISHED.keys() - {"converted-to-llama"}:
        assert read(tmp_path / name, PUBLISHED[name], caplog)[1] == []
    for name in FAMILIES:
        assert read(tmp_path / f"class of {name}", AutoConfig.for_model(name).to_dict(), caplog)[1] == []


def test_settings_that_are_not_followed_are_named_once_with_their_values(tmp_path, caplog):
    unknown = {"rope_theta_2": 5.0, "attn_scale": 2, "router_jitter_noise": 0.1, "auto_map": {"AutoModel": "own.Model"}}
    rest = {"attention_dropout": 0.0, "pad_token_id": [1], "sandwich_norm": None, "torch_dtype": "float64"}
    _, warnings = read(tmp_path / "a", {**PUBLISHED["llama-3"], **unknown, **rest}, caplog)
    (warning,) = warnings
    assert all(f"{name} {value!r}" in warning for name, value in unknown.items())
    assert not any(name in warning for name in rest)


def test_a_model_that_fsdp_has_wrapped_is_of_its_family(tmp_path, caplog):
    config, _ = read(tmp_path / "a", {**PUBLISHED["qwen3-moe"], "architectures": ["FSDPQwen3MoeForCausalLM"]}, caplog)
    classifier = as_classifier(config, ["a", "b"])
    assert parse_config(json.loads(classifier.raw)).labels == 2


def test_rope_settings_that_change_nothing_pass():
    rope = {"rope_type": "yarn", "factor": 4.0, "attn_factor": 1.0, "extrapolation_factor": 1, "finetuned": True}
    assert parse_config({**PUBLISHED["qwen3"], "rope_scaling": rope}).rope.factor == 4.0
    assert parse_config({**PUBLISHED["qwen3"], "rope_scaling": {"type": "default", "factor": 1.0}}).rope.kind == "default"


def test_rope_settings_may_stand_in_both_places_if_they_agree():
    both = {"rope_scaling": {"type": "yarn", "factor": 4.0}, "rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}
    assert parse_config({**PUBLISHED["qwen3"], **both}).rope.factor == 4.0


def test_a_theta_of_its_own_does_not_contradict_the_default_rope_of_gpt_oss():
    raw = {key: value for key, value in PUBLISHED["gpt-oss"].items() if key != "rope_scaling"} | {"rope_theta": 5e5}
    config = parse_config(raw)
    assert (config.rope.kind, config.rope.theta) == ("yarn", 5e5)
    assert check_agreement(raw, config)


def test_a_backbone_that_was_saved_alone_is_a_causal_model():
    assert parse_config({**PUBLISHED["qwen3-moe"], "architectures": ["Qwen3MoeModel"]}).labels is None
    with pytest.raises(ConfigError, match="Qwen3Model"):
        parse_config({**PUBLISHED["qwen3-moe"], "architectures": ["Qwen3Model"]})


READ = sorted(
    {
        *SIZES,
        *QWEN_3,
        *QWEN_3_MOE,
        *GPT_OSS,
        *DEEPSEEK_V3,
        *NEUTRAL,
        "tie_word_embeddings",
        "rope_parameters",
        "rms_norm_eps",
        "norm_eps",
        "rotary_dim",
        "rotary_emb_base",
        "attn_scale",
    }
    - {"model_type", "architectures", "auto_map", "torch_dtype", "transformers_version", "use_cache", "initializer_range"}
    - {"attention_dropout", "output_router_logits", "router_aux_loss_coef", "aux_loss_alpha", "seq_aux", "ep_size"}
)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 200),
    st.floats(allow_subnormal=False),
    st.sampled_from(["", "silu", "yarn", "4", "full_attention"]),
    st.sampled_from(
        [[], ["full_attention"] * 4, ["sliding_attention"] * 4, [1], {}, {"rope_type": "linear", "factor": 2.0}]
    ),
    st.just({"type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512, "rope_theta": 1e6}),
)


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(PUBLISHED)), st.dictionaries(st.sampled_from(READ), VALUES, max_size=1), st.data())
def test_an_edited_configuration_is_read_as_in_transformers_or_refused_by_name(name, change, data):
    raw = copy.deepcopy(PUBLISHED[name])
    rope = raw.get("rope_scaling")
    changed = set(change) | ({"rope"} if {"rope_scaling", "rope_parameters"} & set(change) else set())
    raw |= copy.deepcopy(change)
    edit = data.draw(st.sampled_from(["none", "drop", "rope", "drop rope"]))
    if edit == "drop":
        key = data.draw(st.sampled_from(sorted(raw.keys() - {"model_type"})))
        del raw[key]
        changed.add(key)
    elif edit != "none" and rope and raw["rope_scaling"] == rope:
        key = data.draw(st.sampled_from(sorted(rope)))
        raw["rope_scaling"] = {k: v for k, v in rope.items() if k != key}
        changed |= {key, "rope"}
        if edit == "rope":
            raw["rope_scaling"][key] = data.draw(VALUES)
    try:
        config = parse_config(raw)
    except ConfigError as error:
        message = str(error)
    else:
        check_agreement(raw, config)
        return
    assert any(key in message for key in changed), (changed, message)
