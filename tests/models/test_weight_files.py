"""Sets of weights and tensor names are read as in transformers. What cannot be read is refused with the reason."""

import json
import shutil

import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch
from transformers import AutoModelForCausalLM

from tessy_jax.errors import CheckpointError, ConfigError, TokenizerError
from tessy_jax.models import hf
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.labels import CLASSES, check_labels
from tessy_jax.text.tokenizer import Tokenizer
from tests.models.tiny import reference
from tests.text.tiny_tokenizer import build

UP = "model.layers.2.mlp.up_proj.weight"


def copy_of(name, tmp_path):
    return shutil.copytree(reference(name).folder, tmp_path / "model")


def tensors_of(folder):
    return load_file(folder / "model.safetensors")


def save(folder, tensors):
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def renamed(folder, rename):
    save(folder, {rename(name): value for name, value in tensors_of(folder).items()})


def set_config(folder, **change):
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, **change}))


def assert_same(folder, name):
    """Both read the weights of the reference."""
    ours, expected = (nnx.state(hf.load(place)) for place in (folder, reference(name).folder))
    for (path, a), (_, b) in zip(hf.parameter_paths(ours), hf.parameter_paths(expected), strict=True):
        np.testing.assert_array_equal(a[...], b[...], err_msg=str(path))
    theirs, own = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32) for place in (folder, reference(name).folder)
    )
    for (path, a), b in zip(theirs.state_dict().items(), own.state_dict().values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=path)


def refusal(folder, kind=CheckpointError):
    with pytest.raises(kind) as caught:
        hf.load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("shards_exist", [True, False])
def test_model_safetensors_is_read_beside_an_index_with_a_warning(tmp_path, caplog, shards_exist):
    folder = copy_of("qwen2-tied", tmp_path)
    tensors = tensors_of(folder)
    where = {name: f"model-0000{i % 2 + 1}-of-00002.safetensors" for i, name in enumerate(sorted(tensors))}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    for file in set(where.values()) if shards_exist else ():
        save_file({name: -tensors[name] for name in tensors if where[name] == file}, folder / file)
    assert_same(folder, "qwen2-tied")
    assert "model.safetensors is read, not the shards of" in caplog.text


def test_an_index_decides_which_of_two_shards_with_a_tensor_is_read(tmp_path):
    folder = copy_of("qwen2-tied", tmp_path)
    tensors = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    save_file(tensors, folder / "a.safetensors")
    save_file({UP: -tensors[UP]}, folder / "b.safetensors")
    norm = "model.norm.weight"
    where = {name: "a.safetensors" for name in tensors}
    for chosen, sign in (("a.safetensors", 1), ("b.safetensors", -1)):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {**where, UP: chosen}}))
        layers = hf.load(folder).layers
        np.testing.assert_array_equal(layers[2].mlp.up.kernel[...], sign * tensors[UP].T)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {norm: 3}}))
    assert "places tensors in 3, expected file names" in refusal(folder)


@pytest.mark.parametrize("name", ["qwen2-tied", "llama-untied", "qwen3_moe-untied"])
def test_names_without_the_prefix_of_the_backbone_are_read(name, tmp_path):
    folder = copy_of(name, tmp_path)
    renamed(folder, lambda tensor: tensor.removeprefix("model."))
    assert_same(folder, name)


def test_a_tied_head_without_embedding_is_the_embedding(tmp_path):
    folder = copy_of("qwen2-tied", tmp_path)
    renamed(folder, lambda tensor: "lm_head.weight" if tensor == "model.embed_tokens.weight" else tensor)
    assert_same(folder, "qwen2-tied")
    renamed(folder, lambda tensor: tensor.removeprefix("model."))
    assert_same(folder, "qwen2-tied")


@pytest.mark.parametrize(
    ("rename", "words"),
    [
        (lambda name: f"_orig_mod.{name}", ["_orig_mod.", "torch.compile", "38 of 38"]),
        (lambda name: f"module.{name}", ["module.", "data-parallel"]),
        (lambda name: name.replace("self_attn.", "_orig_mod.self_attn."), ["_orig_mod.", "21 of 38"]),
        (lambda name: name.replace("layers.", "layers._checkpoint_wrapped_module."), ["activation checkpointing"]),
        (lambda name: f"base_model.model.{name}", ["base_model.model.", "PEFT"]),
        (lambda name: f"language_model.{name}", ["unexpected", "nearest language_model.model."]),
        (lambda name: name.replace("up_proj.weight", "up_proj.base_layer.weight"), ["3 tensors are missing", "base_layer"]),
        (lambda name: name.replace("up_proj.weight", "up_proj.qweight"), ["up_proj.weight", "GPTQ or AWQ", "dequantised"]),
        (lambda name: name.replace("up_proj.weight", "up_proj.weight_packed"), ["quantised", "dequantised"]),
    ],
)
def test_names_of_another_form_are_refused_with_what_is_left_over(tmp_path, rename, words):
    folder = copy_of("qwen2-tied", tmp_path)
    renamed(folder, rename)
    message = refusal(folder)
    for word in words:
        assert word in message
    assert "incomplete" not in message


@pytest.mark.parametrize(
    ("extra", "meaning"),
    [
        ("model.layers.0.mlp.up_proj.lora_A.weight", "LoRA adapter: merge it"),
        ("model.layers.0.mlp.up_proj.absmax", "bitsandbytes"),
        ("model.layers.0.mlp.up_proj.scales", "MLX"),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", "of a quantised model: save it dequantised"),
        ("model.layers.0.mlp.up_proj.activation_scale", "of a quantised model: save it dequantised"),
        ("model.layers.0.self_attn.sinks", "not of the same model"),
        ("embed_tokens.weight", "first embed_tokens.weight"),
    ],
)
def test_unexpected_tensors_are_refused_with_what_they_are(tmp_path, extra, meaning):
    folder = copy_of("qwen2-tied", tmp_path)
    save(folder, tensors_of(folder) | {extra: np.ones(4, np.float32)})
    message = refusal(folder)
    assert extra in message
    assert meaning in message


def test_missing_tensors_alone_are_incomplete_weights(tmp_path):
    folder = copy_of("qwen2-tied", tmp_path)
    tensors = tensors_of(folder)
    del tensors[UP]
    save(folder, tensors)
    assert f"tensor {UP} is missing, 1 in all; the weights are incomplete" in refusal(folder)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (torch.float8_e4m3fn, "is in FP8 without a tensor {UP}_scale_inv of its factors"),
        (torch.float8_e5m2, "has dtype F8_E5M2; supported are"),
        (torch.uint8, "has dtype U8, expected a float"),
    ],
)
def test_weights_of_another_quantisation_are_to_be_saved_dequantised(tmp_path, kind, words):
    folder = copy_of("qwen2-tied", tmp_path)
    tensors = {name: torch.from_numpy(value) for name, value in tensors_of(folder).items()}
    save_torch(tensors | {UP: tensors[UP].to(kind)}, folder / "model.safetensors")
    message = refusal(folder)
    assert words.replace("{UP}", UP) in message
    assert "save the model dequantised" in message


@pytest.mark.parametrize(("value", "kind"), [(np.nan, np.float32), (np.inf, np.float32), (1e300, np.float64)])
@pytest.mark.parametrize("name", ["model.norm.weight", UP])
def test_weights_that_are_no_numbers_are_refused(tmp_path, name, value, kind):
    folder = copy_of("qwen2-tied", tmp_path)
    tensors = tensors_of(folder)
    changed = tensors[name].astype(kind)
    changed[..., 3] = value
    save(folder, tensors | {name: changed})
    with np.errstate(over="ignore"):
        message = refusal(folder)
    assert f"tensor {name}" in message
    assert "NaN or infinite as float32" in message


@pytest.mark.parametrize("rounding", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_rotary_frequencies_that_the_configuration_does_not_give_are_named(tmp_path, caplog, rounding):
    folder = copy_of("qwen2-tied", tmp_path)
    tensors = {name: torch.from_numpy(value) for name, value in tensors_of(folder).items()}
    for theta, warned in ((777.0, False), (10000.0, True)):
        frequencies = (theta ** (-torch.arange(0, 24, 2) / 24)).to(rounding)
        stored = {"model.layers.0.self_attn.rotary_emb.inv_freq": frequencies}
        save_torch(tensors | stored, folder / "model.safetensors")
        hf.load(folder)
        assert ("rope_theta 777 of config.json, which counts" in caplog.text) == warned


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data_offsets": [0, 23040]}, "begins at byte 0"),
        ({"data_offsets": [0.0, 23040.0]}, f"entry of tensor {UP} is damaged"),
        ({"shape": ["80", "72"]}, f"entry of tensor {UP} is damaged"),
        ({"shape": [-80, -72]}, f"entry of tensor {UP} is damaged"),
    ],
)
def test_a_header_that_places_tensors_upon_each_other_is_damaged(tmp_path, change, words):
    folder = copy_of("qwen2-tied", tmp_path)
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header[UP] |= change
    edited = json.dumps(header).encode()
    file.write_bytes(len(edited).to_bytes(8, "little") + edited + data[8 + length :])
    assert words in refusal(folder)


@pytest.mark.parametrize(
    ("file", "meaning"),
    [
        ("pytorch_model.bin", "PyTorch's format"),
        ("pytorch_model-00001-of-00002.bin", "PyTorch's format"),
        ("consolidated.safetensors", "Meta's or Mistral's own code"),
        ("consolidated.00.pth", "Meta's or Mistral's own code"),
        ("model-q4.gguf", "llama.cpp"),
        ("model-00001-of-00002.safetensors", "fetch the index"),
        ("notes.txt", "fetch the weights in the safetensors format"),
    ],
)
def test_a_folder_without_safetensors_is_refused_with_what_it_holds(tmp_path, file, meaning):
    folder = copy_of("qwen2-tied", tmp_path)
    (folder / "model.safetensors").rename(folder / file)
    message = refusal(folder)
    assert "holds neither model.safetensors nor" in message
    assert meaning in message
    assert file in message or file == "notes.txt"


def test_a_pointer_of_git_lfs_is_refused_with_the_remedy(tmp_path):
    folder = copy_of("qwen2-tied", tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    assert "git lfs pull" in refusal(folder)


def test_the_folder_of_an_adapter_is_refused_with_the_remedy(tmp_path):
    folder = copy_of("qwen2-tied", tmp_path)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    assert "merge_and_unload" in refusal(folder, ConfigError)


LABELS = {"architectures": ["Qwen2ForTokenClassification"], "id2label": None, "label2id": None}


@pytest.mark.parametrize(
    "names",
    [
        {"id2label": {"0": "capability", "1": "style"}},
        {"id2label": {"1": "STYLE", "0": "Capability"}},
        {"label2id": {"style": 1, "capability": 0}},
        {"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "num_labels": 2},
        {"id2label": {"0": "capability", "1": "style"}, "label2id": {"LABEL_0": 0, "LABEL_1": 1}},
        {"num_labels": 2},
        {},
    ],
)
def test_labels_in_our_order_and_generic_labels_pass(tmp_path, names):
    folder = copy_of("qwen2-tied", tmp_path)
    set_config(folder, **{**LABELS, **names})
    check_labels(read_config(folder), CLASSES, folder)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ({"id2label": {"0": "style", "1": "capability"}}, ["style, capability", "capability, style", "correct id2label"]),
        ({"label2id": {"style": 0, "capability": 1}}, ["style, capability"]),
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "label2id": {"style": 0, "capability": 1}}, ["style, capability"]),
        ({"id2label": {"0": "LABEL_1", "1": "LABEL_0"}}, ["LABEL_1, LABEL_0"]),
        ({"id2label": {"0": "negative", "1": "positive"}}, ["negative, positive"]),
        ({"id2label": {"0": "a", "1": "b", "2": "c"}}, ["3 labels", "0 capability, 1 style"]),
        (
            {"id2label": {"0": "capability", "1": "style"}, "label2id": {"capability": 1, "style": 0}},
            ["label2id", "contradicts id2label"],
        ),
        ({"id2label": {"0": "capability", "1": "style"}, "num_labels": 3}, ["id2label", "0 to 2", "num_labels"]),
        ({"id2label": {"1": "capability", "2": "style"}}, ["id2label", "0 to 1"]),
        ({"label2id": {"capability": 0, "style": 0}}, ["label2id", "different number"]),
    ],
)
def test_labels_with_another_meaning_are_refused_with_the_remedy(tmp_path, names, words):
    folder = copy_of("qwen2-tied", tmp_path)
    set_config(folder, **{**LABELS, **names})
    with pytest.raises(ConfigError) as caught:
        check_labels(read_config(folder), CLASSES, folder)
    for word in words:
        assert word in str(caught.value)


def test_a_causal_model_with_a_number_of_labels_becomes_a_classifier_with_ours(tmp_path):
    folder = copy_of("qwen2-tied", tmp_path)
    set_config(folder, num_labels=3)
    config = hf.load(folder, classes=CLASSES).config
    assert config.labels == 2
    assert "num_labels" not in json.loads(config.raw)


@pytest.mark.parametrize("added", [1, 30])
def test_a_tokenizer_with_more_tokens_than_embedding_rows_is_refused(tmp_path, added):
    build().save_pretrained(tmp_path)
    size = len(build())
    Tokenizer(tmp_path, size)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    token = {"id": size - 1 + added, "content": "<|new|>", "special": True, "normalized": False}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
    content["added_tokens"].append(token | flags)
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(TokenizerError, match=f"{size}; tokenizer and weights are not of the same model"):
        Tokenizer(tmp_path, size)
