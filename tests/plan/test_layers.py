"""A decode step with scanned layers, compiled for an absent TPU."""

import importlib.util
import json
import subprocess
import sys

import pytest

from tessy_jax.plan.targets import environment, parse_target
from tests.conftest import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (the extra plan-tpu)"),
]

STEP = """
import json, sys
from pathlib import Path

import jax, jax.numpy as jnp
from flax import nnx
from jax.experimental.layout import Format, Layout
from tessy_jax.backend import tracing_for
from tessy_jax.decode.cache import new_cache
from tessy_jax.models.hf import abstract
from tessy_jax.models.hf_config import read_config, shortened
from tessy_jax.models.pages import Rows
from tessy_jax.plan.hlo import Module, large_copies
from tessy_jax.plan.targets import parse_target, target_mesh_devices
from tessy_jax.sharding import Partitioner, make_mesh

target = parse_target("v5p:2x2x1")
partitioner = Partitioner(make_mesh({"tensor": 4}, target_mesh_devices(target, {"tensor": 4})), absent=True)
config = shortened(read_config(Path(sys.argv[1])), 6)
with tracing_for(target.backend), jax.sharding.use_abstract_mesh(partitioner.mesh.abstract_mesh):
    model = abstract(config, dtype=jnp.bfloat16, partitioner=partitioner)
    assert model.stacked
    cache = new_cache(config, 32, 1024, slack=256, dtype=jnp.bfloat16, partitioner=partitioner)
    graph, params = nnx.split(model)
    numbers = jax.ShapeDtypeStruct((32,), jnp.int32, sharding=partitioner.sharding(("lanes",)))

    def step(params, kv, tokens, starts, counts):
        rows = Rows(starts, counts, jnp.arange(32, dtype=jnp.int32))
        return nnx.merge(graph, params)(tokens[:, None], cache=kv, rows=rows)

    chosen = jax.tree.map(lambda x: Format(Layout.AUTO, x.sharding), params)
    jitted = jax.jit(step, donate_argnums=1, in_shardings=(chosen, None, None, None, None))
    compiled = jitted.trace(params, cache.kv, numbers, numbers, numbers).lower(lowering_platforms=("tpu",)).compile()
module = Module.parse(compiled.as_text())
keys = params["layers"][0]["attn"]["k"]["kernel"].value
weight = keys.size * keys.dtype.itemsize // keys.shape[0] // 4  # on one device
print(json.dumps({"copies": large_copies(module, weight), "temporaries": compiled.memory_analysis().temp_size_in_bytes}))
"""


@pytest.mark.parametrize("name", ["qwen3-8b", "gpt-oss-20b"])
def test_scanned_layers_read_their_weights_where_they_are_and_write_pages_in_place(name):
    env = environment(parse_target("v5p:2x2x1"))
    done = subprocess.run(
        [sys.executable, "-c", STEP, str(ROOT / "configs" / "models" / name)],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["copies"] == []
    assert found["temporaries"] < 20_000_000
