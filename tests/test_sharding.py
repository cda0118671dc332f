"""Meshes are parsed or refused by name, and do not change results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tessy_jax.errors import ShardingError
from tessy_jax.models import hf
from tessy_jax.sharding import Partitioner, make_mesh, parse_mesh, put
from tests.models.tiny import VARIANTS, reference, tokens


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tensr=2", ["tensr", "data, fsdp, tensor, expert"]),
        ("tensor", ["tensor", "tensor=8"]),
        ("tensor=0", ["tensor", "'0'"]),
        ("tensor=two", ["two"]),
        ("tensor=2,tensor=4", ["twice"]),
    ],
)
def test_a_mesh_that_cannot_be_read_is_refused_by_name(text, words):
    with pytest.raises(ShardingError) as caught:
        parse_mesh(text)
    for word in words:
        assert word in str(caught.value)


def test_a_mesh_larger_than_the_devices_is_refused_with_both_numbers():
    with pytest.raises(ShardingError, match=r"tensor=4, data=4 needs 16 devices, 8 are available"):
        make_mesh(parse_mesh("tensor=4,data=4"))


@pytest.mark.parametrize(
    ("name", "mesh", "words"),
    [
        ("llama-untied", "tensor=2", ["num_attention_heads is 9", "tensor=2", "1, 3, 9"]),
        ("qwen2-untied", "tensor=4", ["num_attention_heads is 6", "tensor=4"]),
        ("qwen3-untied", "tensor=5", ["num_key_value_heads is 2", "tensor=5"]),
        ("qwen2-tied", "fsdp=5", ["hidden_size is 72", "fsdp=5"]),
        ("gpt_oss-tied", "expert=4", ["experts is 6", "expert=4", "1, 2, 3, 6"]),
    ],
)
def test_a_dimension_that_does_not_divide_is_refused_with_axis_size_and_remedy(name, mesh, words):
    with pytest.raises(ShardingError) as caught:
        hf.load(reference(name).folder, partitioner=Partitioner(make_mesh(parse_mesh(mesh))))
    for word in words:
        assert word in str(caught.value)


def test_lanes_that_do_not_divide_are_refused():
    from tessy_jax.decode.cache import new_cache

    partitioner = Partitioner(make_mesh(parse_mesh("data=4")))
    model = hf.load(reference("qwen2-tied").folder, partitioner=partitioner)
    with pytest.raises(ShardingError, match="number of lanes is 6"):
        new_cache(model.config, 6, 64, slack=16, dtype=jnp.float32, partitioner=partitioner)


@pytest.mark.parametrize("name", sorted(VARIANTS))
@pytest.mark.parametrize("stacked", [False, True], ids=["unrolled", "stacked"])
def test_every_device_has_exactly_its_shard_of_every_weight(name, stacked):
    partitioner = Partitioner(make_mesh(parse_mesh(VARIANTS[name].mesh)))
    model = hf.load(reference(name).folder, partitioner=partitioner, stacked=stacked)
    num_sharded = 0
    for path, parameter in hf.parameter_paths(nnx.state(model)):
        axes = parameter.get_metadata()["axes"]
        expected = partitioner.shard_shape(parameter.shape, axes)
        assert {shard.data.shape for shard in parameter[...].addressable_shards} == {expected}, path
        num_sharded += expected != tuple(parameter.shape)
    assert num_sharded or VARIANTS[name].mesh == "data=8"


@pytest.mark.parametrize(
    "name",
    [
        "qwen3-untied",
        "gpt_oss-untied",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_moe-untied", "deepseek_v3-tied")),
    ],
)
def test_gradients_on_8_devices_equal_those_on_one(name):
    def gradients(partitioner):
        model = hf.load(reference(name).folder, partitioner=partitioner, stacked=True)
        graph, state = nnx.split(model)

        @jax.jit
        def run(state, tokens_BT):
            def loss(state):
                merged = nnx.merge(graph, state)
                return jnp.square(merged.logits(merged(tokens_BT)[0])).mean()

            return jax.value_and_grad(loss)(state)

        value, gradient = run(state, put(tokens()[:, :64], partitioner, ("lanes", None)))
        return float(value), [np.asarray(g) for g in jax.tree.leaves(gradient)]

    expected = gradients(Partitioner())
    sharded = gradients(Partitioner(make_mesh(parse_mesh(VARIANTS[name].mesh))))
    np.testing.assert_allclose(sharded[0], expected[0], rtol=1e-5)
    assert any(np.abs(g).max() > 1e-3 for g in expected[1])
    for a, b in zip(sharded[1], expected[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(np.abs(b).max())))
