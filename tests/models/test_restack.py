"""A student decodes, trains and decodes again without being loaded a second time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tessy_jax.models import hf
from tessy_jax.models.restack import restack
from tessy_jax.sharding import Partitioner, make_mesh, parse_mesh, put
from tests.models.tiny import VARIANTS, reference, tokens


def parts(model):
    return {".".join(map(str, path)): parameter for path, parameter in hf.parameter_paths(nnx.state(model))}


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["llama-untied", "gpt_oss-tied", "deepseek_v3-untied"])
def test_restacking_and_unstacking_changes_no_array_and_keeps_the_mesh(name, devices):
    partitioner = Partitioner() if devices == 1 else Partitioner(make_mesh(parse_mesh(VARIANTS[name].mesh)))
    folder = reference(name).folder
    loaded = {form: parts(hf.load(folder, partitioner=partitioner, stacked=form)) for form in (False, True)}
    model = hf.load(folder, partitioner=partitioner)
    for stacked in (True, False):
        before = [parameter[...] for parameter in parts(model).values()]
        model = restack(model, stacked=stacked)
        restacked = parts(model)
        assert restacked.keys() == loaded[stacked].keys()
        kept = [parameter[...] for parameter in restacked.values()]
        assert all(x.is_deleted() or any(x is other for other in kept) for x in before)
        for path, parameter in restacked.items():
            expected = loaded[stacked][path]
            np.testing.assert_array_equal(np.asarray(parameter[...]), np.asarray(expected[...]))
            assert parameter[...].sharding.is_equivalent_to(expected[...].sharding, parameter.ndim), path
    logits = model.logits(model(put(tokens(), partitioner, ("lanes", None)))[0])
    np.testing.assert_allclose(np.asarray(logits), reference(name).logits, rtol=0, atol=2e-4)


def test_restacking_converts_arrays_to_a_dtype():
    model = restack(hf.load(reference("llama-untied").folder), stacked=True, dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(jnp.bfloat16)}
    assert model.stacked
