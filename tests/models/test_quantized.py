"""Quantised checkpoints load to the values of the dequantisation in transformers."""

import json
import shutil

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.integrations.finegrained_fp8 import Fp8Dequantize
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from tessy_jax.errors import CheckpointError
from tessy_jax.models import hf
from tessy_jax.models.checkpoint import open_checkpoint
from tessy_jax.models.quantized import BlockFp8, Mxfp4
from tests.models.tiny import hf_logits, reference, tokens


def mxfp4_folder(tmp_path):
    """The tiny GPT-OSS, hidden size 72 → 96 so that it splits into groups of 32, with random MXFP4 experts."""
    tmp_path.mkdir(exist_ok=True)
    config = transformers.AutoConfig.from_pretrained(reference("gpt_oss-untied").folder)
    config.hidden_size, config.intermediate_size = 96, 64
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        torch.nn.init.normal_(p, std=0.12)
        if "norm" in name:
            p.data += 1
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, into, out = tensors.pop(name).shape
        tensors[f"{name}_blocks"] = rng.integers(0, 256, (experts, out, into // 32, 16), np.uint8)
        tensors[f"{name}_scales"] = rng.integers(117, 123, (experts, out, into // 32), np.uint8)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "mxfp4"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return tmp_path


def fp8_folder(tmp_path):
    """The tiny DeepSeek with every projection in float8, in blocks of 2 × 4, which divide it, as transformers requires."""
    shutil.copytree(reference("deepseek_v3-untied").folder, tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    rng = np.random.default_rng(0)
    for name in [name for name in tensors if name.endswith("_proj.weight") or "kv_a_proj" in name]:
        rows, columns = tensors[name].shape
        factors = rng.uniform(0.5, 2, (rows // 2, columns // 4)).astype(np.float32)
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        tensors[f"{name}_scale_inv"] = factors
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [2, 4], "activation_scheme": "dynamic"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    return tmp_path


def logits(folder):
    model = hf.load(folder)
    return np.asarray(model.logits(model(jnp.asarray(tokens()))[0]))


def test_mxfp4_weights_equal_those_of_transformers_to_the_bit(tmp_path):
    tensors = open_checkpoint(mxfp4_folder(tmp_path))
    raw = load_file(tmp_path / "model.safetensors")
    for name in ("gate_up_proj", "down_proj"):
        key = f"model.layers.1.mlp.experts.{name}"
        ours = Mxfp4(tensors[f"{key}_blocks"], tensors[f"{key}_scales"])
        packed = torch.from_numpy(raw[f"{key}_blocks"]), torch.from_numpy(raw[f"{key}_scales"])
        theirs = convert_moe_packed_tensors(*packed).float().numpy()
        assert ours.shape == theirs.shape
        for index in [
            (slice(None),) * 3,
            (slice(2, 5), slice(20, 75), slice(3, 31)),
            (slice(7, 8), slice(32, 64), slice(1, 2)),
        ]:
            np.testing.assert_array_equal(ours.read(index).astype(np.float32), theirs[index])


def test_a_gpt_oss_folder_in_mxfp4_gives_the_logits_of_transformers(tmp_path):
    folder = mxfp4_folder(tmp_path)
    quantization = transformers.Mxfp4Config(dequantize=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", quantization_config=quantization
    )
    np.testing.assert_allclose(logits(folder), hf_logits(theirs.float().eval()), rtol=0, atol=2e-4)


def test_fp8_weights_equal_those_of_transformers_to_the_bit(tmp_path):
    tensors = open_checkpoint(fp8_folder(tmp_path))
    name = "model.layers.1.self_attn.q_b_proj.weight"
    ours = BlockFp8(tensors[name], tensors[f"{name}_scale_inv"], (2, 4))
    dequantised = ours.read((slice(None), slice(None)))
    weight = torch.from_numpy(tensors[name].read((slice(None), slice(None))).view(np.uint8)).view(torch.float8_e4m3fn)
    factors = torch.from_numpy(tensors[f"{name}_scale_inv"].read((slice(None), slice(None))))
    theirs = Fp8Dequantize(None)._dequantize_one(weight, factors, torch.float32).numpy()
    np.testing.assert_array_equal(dequantised, theirs)
    np.testing.assert_array_equal(ours.read((slice(3, 20), slice(5, 14))), theirs[3:20, 5:14])


def test_a_deepseek_folder_in_fp8_gives_the_logits_of_transformers(tmp_path):
    folder = fp8_folder(tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    np.testing.assert_allclose(logits(folder), hf_logits(theirs.float().eval()), rtol=0, atol=2e-4)


def test_the_last_blocks_are_smaller_where_blocks_do_not_divide_a_matrix(tmp_path):
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(9, 10)).astype(ml_dtypes.float8_e4m3fn)
    factors = rng.uniform(1, 2, (3, 3)).astype(np.float32)
    save_file({"w": weight, "s": factors}, tmp_path / "model.safetensors")
    tensors = open_checkpoint(tmp_path)
    expected = np.array([[float(weight[i, j]) * factors[i // 4, j // 4] for j in range(10)] for i in range(9)], np.float32)
    np.testing.assert_array_equal(BlockFp8(tensors["w"], tensors["s"], (4, 4)).read((slice(None), slice(None))), expected)


@pytest.mark.parametrize("missing", ["scales", "shape", "dtype"])
def test_quantised_tensors_without_matching_scales_are_refused_by_name(tmp_path, missing):
    folder = mxfp4_folder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.experts.down_proj_scales"
    value = tensors.pop(name)
    if missing == "shape":
        tensors[name] = value[:, :-1]
    if missing == "dtype":
        tensors[name] = value.astype(np.float32)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.experts\.down_proj_scales"):
        hf.load(folder)


def test_factors_of_fp8_are_floats(tmp_path):
    weight, factors = np.ones((4, 4), ml_dtypes.float8_e4m3fn), np.ones((1, 1), np.int32)
    save_file({"w": weight, "s": factors}, tmp_path / "model.safetensors")
    tensors = open_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="tensor s has dtype I32, expected F64 or F32"):
        BlockFp8(tensors["w"], tensors["s"], (4, 4)).check()


def test_a_quantised_model_is_exported_dequantised(tmp_path):
    from tessy_jax.models.export import export

    model = hf.load(mxfp4_folder(tmp_path / "in"), dtype=jnp.bfloat16)
    export(model, tmp_path / "out")
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    again = hf.load(tmp_path / "out", dtype=jnp.bfloat16)
    for (path, a), (_, b) in zip(hf.parameter_paths(nnx.state(model)), hf.parameter_paths(nnx.state(again)), strict=True):
        np.testing.assert_array_equal(np.asarray(a[...]), np.asarray(b[...]), err_msg=str(path))
