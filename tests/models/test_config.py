"""config.json of any transformers version is read as in transformers, or refused with the key's name."""

import dataclasses
import json

import pytest
from transformers import AutoConfig

from tessy_jax.errors import ConfigError
from tessy_jax.models.hf_config import parse_config, read_config
from tests.conftest import ROOT

BASE = {
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize("name", ["type", "rope_type"])
def test_the_rope_layouts_of_old_and_new_transformers_mean_the_same(name):
    scaling = {"factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 20}
    old = parse_config({**BASE, "rope_theta": 5e5, "rope_scaling": {name: "yarn", **scaling}})
    new = parse_config({**BASE, "rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5, **scaling}})
    assert dataclasses.replace(old, raw="") == dataclasses.replace(new, raw="")
    assert old.rope.theta == 5e5
    assert old.rope.kind == "yarn"


def test_a_rope_scaling_of_null_is_the_default_rope():
    rope = parse_config({**BASE, "rope_theta": 1e6, "rope_scaling": None}).rope
    assert (rope.kind, rope.theta) == ("default", 1e6)


def test_sliding_windows_come_from_layer_types_or_from_max_window_layers():
    with_types = {
        "use_sliding_window": True,
        "sliding_window": 16,
        "layer_types": ["full_attention", "sliding_attention"] * 2,
    }
    assert parse_config({**BASE, **with_types}).windows == (None, 16, None, 16)
    by_depth = {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 3}
    assert parse_config({**BASE, **by_depth}).windows == (None, None, None, 16)
    assert parse_config({**BASE, "sliding_window": 16}).windows == (None,) * 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "qwen3_mo"}, ["qwen3_mo", "nearest: qwen3_moe"]),
        ({"model_type": "mamba"}, ["mamba", "llama"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"hidden_size": None}, ["hidden_size", "missing"]),
        ({"rope_theta": "abc"}, ["rope_theta", "abc"]),
        ({"rms_norm_eps": -1}, ["rms_norm_eps", "-1"]),
        ({"rms_norm_eps": True}, ["rms_norm_eps", "True"]),
        ({"layer_types": 3}, ["layer_types", "3", "list"]),
        ({"rope_scaling": "yarn"}, ["rope_scaling", "object"]),
        ({"rope_scaling": {"type": "yarn", "factor": "x"}}, ["factor", "'x'"]),
        ({"architectures": ["Qwen3ForTokenClassification"], "num_labels": "a"}, ["num_labels", "'a'"]),
        ({"model_type": "qwen3_moe", "decoder_sparse_step": 0}, ["decoder_sparse_step", "0"]),
        ({"model_type": "deepseek_v3", "first_k_dense_replace": -1}, ["first_k_dense_replace", "-1"]),
        ({"tie_word_embeddings": "yes"}, ["tie_word_embeddings", "yes"]),
        ({"num_hidden_layers": "four"}, ["num_hidden_layers", "four"]),
        ({"num_attention_heads": 3}, ["num_attention_heads 3", "num_key_value_heads 2"]),
        ({"head_dim": 7}, ["7", "even"]),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, ["dynamic", "yarn"]),
        ({"rope_scaling": {"rope_type": "linear"}}, ["linear", "factor"]),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, ["llama3", "low_freq_factor"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, ["layer type"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "1", "4"]),
        ({"layer_types": ["linear_attention"] * 4}, ["linear_attention"]),
        ({"layer_types": ["sliding_attention"] * 4}, ["sliding_window"]),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, ["Qwen3ForSequenceClassification"]),
        ({"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 8}, ["8", "4"]),
        ({"model_type": "deepseek_v3", "scoring_func": "softmax"}, ["scoring_func", "softmax"]),
        ({"model_type": "deepseek_v3", "n_routed_experts": 6, "n_group": 4}, ["6", "4"]),
    ],
)
def test_an_unsupported_configuration_is_refused_with_key_and_value(change, words):
    with pytest.raises(ConfigError) as caught:
        parse_config({**BASE, **change})
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "gpt_oss", "deepseek_v3"])
@pytest.mark.parametrize("sliding", [False, True])
def test_omitted_keys_have_the_defaults_of_transformers(family, sliding):
    """A config.json with only the required keys gives the same `ModelConfig` as the one that transformers completes."""
    keys = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 30, "num_attention_heads": 32}
    bare = {"model_type": family, **keys}
    if sliding and family.startswith("qwen"):
        bare["use_sliding_window"] = True
    theirs = AutoConfig.for_model(**bare).to_dict()
    ours, full = parse_config(bare), parse_config({**theirs, "architectures": None})
    skip = {"raw": "", "max_positions": 0}  # llama's 2048 is no limit of ours
    assert dataclasses.replace(ours, **skip) == dataclasses.replace(full, **skip)


def test_an_omitted_yarn_factor_is_the_ratio_of_the_lengths():
    yarn = {"type": "yarn", "original_max_position_embeddings": 1024, "mscale": 1.0, "mscale_all_dim": 1.0}
    config = parse_config({**BASE, "model_type": "deepseek_v3", "rope_scaling": yarn})
    assert config.rope.factor == 4.0
    assert config.query_scale > (128 + 64) ** -0.5


@pytest.mark.parametrize("text", [None, "{", "[1]", '{"model_type": "gpt5"}'])
def test_an_unusable_config_is_refused_with_the_name_of_the_file(tmp_path, text):
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        read_config(tmp_path)


def test_a_token_classifier_has_as_many_labels_as_the_config_names(tmp_path):
    names = {"architectures": ["Qwen3ForTokenClassification"]}
    assert parse_config({**BASE, **names}).labels == 2
    (tmp_path / "config.json").write_text(json.dumps({**BASE, **names, "id2label": {"0": "a", "1": "b", "2": "c"}}))
    assert read_config(tmp_path).labels == 3


def test_configurations_that_differ_only_in_raw_are_equal_and_share_programs():
    raw = json.loads((ROOT / "tessy_jax" / "mini" / "checkpoints" / "student-0" / "config.json").read_text())
    config, other = parse_config(raw), parse_config(raw | {"dtype": "float32", "transformers_version": "5.0.0"})
    assert config.raw != other.raw
    assert config == other
    assert hash(config) == hash(other)
    assert parse_config(raw | {"rms_norm_eps": 1e-5}) != config
