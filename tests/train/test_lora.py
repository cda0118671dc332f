"""Adapters change only their targets, and PEFT reads them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from flax import nnx
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tessy_jax.config import Lora
from tessy_jax.errors import ConfigError
from tessy_jax.models import hf
from tessy_jax.models.export import export
from tessy_jax.models.layers import LoraParam
from tessy_jax.sharding import Partitioner, make_mesh, parse_mesh
from tessy_jax.train.lora import add_lora, export_lora, merge_lora
from tessy_jax.train.step import State, train_step
from tests.models.tiny import VARIANTS, hf_logits, reference, tokens
from tests.train.test_step import WEIGHTS, packed, stacked

CONFIG = Lora(rank=4, alpha=12.0, targets=["q_proj", "v_proj", "down_proj"])


def trained(name, devices=1):
    """A model whose adapters have made two steps, and its parts before and after."""
    partitioner = Partitioner() if devices == 1 else Partitioner(make_mesh(parse_mesh(VARIANTS[name].mesh)))
    model = hf.load(reference(name).folder, partitioner=partitioner, stacked=True)
    add_lora(model, CONFIG, seed=1)
    graph, params, frozen = nnx.split(model, LoraParam, ...)
    optimizer = optax.sgd(0.5)
    state = State(params, optimizer.init(params), jnp.int32(0))
    for _ in range(2):
        state, _, _ = train_step(
            graph, optimizer, jnp.float32, "none", state, frozen, stacked(packed(), 1, partitioner), jnp.asarray(WEIGHTS)
        )
    return graph, params, state.params, frozen


@pytest.mark.parametrize(("name", "devices"), [("llama-untied", 1), pytest.param("qwen2-tied", 8, marks=pytest.mark.slow)])
def test_an_adapter_loads_in_peft_and_a_merged_model_in_transformers_with_equal_logits(name, devices, tmp_path):
    graph, _, params, frozen = trained(name, devices)
    model = nnx.merge(graph, params, frozen)
    ours = np.asarray(model.logits(model(tokens())[0]))
    assert np.abs(ours - reference(name).logits).max() > 1e-2, "the adapters have changed nothing"

    export_lora(model, CONFIG, tmp_path / "adapter", base=str(reference(name).folder))
    base = AutoModelForCausalLM.from_pretrained(reference(name).folder, dtype=torch.float32, attn_implementation="eager")
    theirs = hf_logits(PeftModel.from_pretrained(base, tmp_path / "adapter").eval())
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-4)

    export(merge_lora(model), tmp_path / "model")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    np.testing.assert_allclose(ours, hf_logits(merged.eval()), rtol=0, atol=2e-4)


def test_only_the_targets_have_adapters_and_a_new_one_changes_nothing():
    model = hf.load(reference("llama-untied").folder, stacked=True)
    add_lora(model, CONFIG, seed=1)
    _, params, frozen = nnx.split(model, LoraParam, ...)
    names = {".".join(map(str, path)) for path, _ in hf.parameter_paths(params)}
    assert names == {f"layers.0.{part}.lora_{x}" for part in ("attn.q", "attn.v", "mlp.down") for x in "ab"}
    assert not {path for path, _ in hf.parameter_paths(frozen)} & {path for path, _ in hf.parameter_paths(params)}
    np.testing.assert_allclose(np.asarray(model.logits(model(tokens())[0])), reference("llama-untied").logits, atol=2e-4)


def test_a_target_that_the_model_lacks_is_named():
    model = hf.load(reference("llama-untied").folder, stacked=True)
    with pytest.raises(ConfigError, match=r"no c_attn; it has down_proj, gate_proj, k_proj"):
        add_lora(model, Lora(targets=["q_proj", "c_attn"]), seed=0)
