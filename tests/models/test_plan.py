"""`tessy inspect` gives published sizes from configurations alone, and exactly the bytes that loading takes."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tessy_jax import cli
from tessy_jax.decode.cache import new_cache
from tessy_jax.errors import ShardingError
from tessy_jax.models import hf
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.plan import plan
from tessy_jax.sharding import Partitioner, make_mesh, parse_mesh
from tests.models.tiny import VARIANTS, reference

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "models"

# total parameters (billions) from the model cards, cache KiB per token from their shapes in bfloat16
PUBLISHED = {
    "gpt-oss-20b": (20.91, 24),
    "gpt-oss-120b": (116.83, 36),
    "qwen3-0.6b-base": (0.596, 112),
    "qwen3-8b": (8.19, 144),
    "qwen3-30b-a3b": (30.53, 96),
    "qwen3-235b-a22b-thinking": (235.09, 188),
    "deepseek-r1": (671.03, 68.625),
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_models_have_their_published_size_and_cache(name):
    total, kib = PUBLISHED[name]
    result = plan(read_config(CONFIGS / name), dtype="bfloat16", slack=128)
    assert abs(result["parameters"]["total"] / 1e9 / total - 1) < 0.005
    assert result["kv"]["bytes_per_token"] == kib * 1024


@pytest.mark.parametrize(("name", "active"), [("gpt-oss-20b", 3.61), ("gpt-oss-120b", 5.13)])
def test_active_parameters_are_counted_as_the_gpt_oss_model_card_counts_them(name, active):
    result = plan(read_config(CONFIGS / name), dtype="bfloat16", slack=128)
    assert abs(result["parameters"]["active"] / 1e9 / active - 1) < 0.005


@pytest.mark.parametrize(("name", "active"), [("qwen3-30b-a3b", 3.35), ("qwen3-235b-a22b-thinking", 22.19)])
def test_active_parameters_with_the_embedding_are_those_of_the_qwen_model_cards(name, active):
    parameters = plan(read_config(CONFIGS / name), dtype="bfloat16", slack=128)["parameters"]
    assert abs((parameters["active"] + parameters["embedding"]) / 1e9 / active - 1) < 0.005


@pytest.mark.parametrize("name", sorted(VARIANTS))
def test_the_plan_names_the_bytes_that_weights_and_cache_take_on_every_device(name):
    sizes = parse_mesh(VARIANTS[name].mesh)
    partitioner = Partitioner(make_mesh(sizes))
    model = hf.load(reference(name).folder, partitioner=partitioner, dtype=jnp.bfloat16)
    result = plan(model.config, dtype="bfloat16", mesh=sizes, lanes=8, context=256, slack=64)
    state = nnx.state(model)
    weights = [p[...] for _, p in hf.parameter_paths(state)]
    cache = jax.tree.leaves(new_cache(model.config, 8, 256, slack=64, dtype=jnp.bfloat16, partitioner=partitioner).kv.pages)

    def on_each_device(arrays):
        device = jax.devices()[0]
        return sum(s.data.nbytes for x in arrays for s in x.addressable_shards if s.device == device)

    assert result["parameters"]["total"] == sum(x.size for x in weights)
    assert result["weights"]["bytes"] == sum(x.nbytes for x in weights)
    assert result["weights"]["bytes_per_device"] == on_each_device(weights)
    assert result["kv"]["bytes"] == sum(x.nbytes for x in cache)
    assert result["kv"]["bytes_per_device"] == on_each_device(cache)


def test_a_plan_needs_no_devices_and_refuses_a_mesh_that_does_not_divide_the_model():
    config = read_config(CONFIGS / "qwen3-235b-a22b-thinking")
    result = plan(config, dtype="bfloat16", mesh={"tensor": 4, "expert": 128}, lanes=128, slack=128)
    assert result["devices"] == 512
    assert result["weights"]["bytes_per_device"] < result["weights"]["bytes"] / 20
    with pytest.raises(ShardingError, match="num_key_value_heads is 4"):
        plan(config, dtype="bfloat16", mesh={"tensor": 8}, slack=128)


def test_inspect_prints_one_json_object_or_a_text_and_reads_no_weights(capsys):
    path = str(CONFIGS / "gpt-oss-120b")
    assert (
        cli.main(["inspect", "--model", path, "--mesh", "tensor=8", "--lanes", "100", "--context", "40960", "--json"]) == 0
    )
    result = json.loads(capsys.readouterr().out)
    assert result["kv"]["lanes"] == 100
    assert result["kv"]["bytes"] == 100 * (40960 * 36 * 1024 + 18 * (128 + 256) * 2048)
    assert cli.main(["inspect", "--model", path]) == 0
    text = capsys.readouterr().out
    for part in ("116.83B total", "5.13B active", "36 KiB per token", "217.61 GiB"):
        assert part in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "./nowhere"], ["nowhere", "no such folder"]),
        (["--model", str(CONFIGS / "gpt-oss-20b"), "--mesh", "tensor=7"], ["num_attention_heads is 64", "tensor=7"]),
        (["--model", str(CONFIGS / "gpt-oss-20b"), "--mesh", "tonsor=7"], ["tonsor"]),
        (["--model", str(CONFIGS / "gpt-oss-20b"), "--mesh", "data=8", "--lanes", "9"], ["lanes is 9", "data=8"]),
    ],
)
def test_bad_input_to_inspect_is_one_line_and_code_2(arguments, words, capsys):
    assert cli.main(["inspect", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for word in words:
        assert word in err


def test_float32_takes_twice_the_bytes_of_bfloat16():
    config = read_config(CONFIGS / "qwen3-8b")
    half, single = (plan(config, dtype=d, slack=128)["weights"]["bytes"] for d in ("bfloat16", "float32"))
    assert single == 2 * half
    assert np.isclose(half / 2, 8.19e9, rtol=0.005)
