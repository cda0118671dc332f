"""Generation equals a plain loop of whole forward passes, whatever else is in the batch and wherever it runs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tessy_jax.decode import generate as module
from tessy_jax.decode.generate import bucket, generate
from tessy_jax.decode.sampling import Sampling, position_keys, sample
from tessy_jax.models import hf
from tessy_jax.sharding import Partitioner, make_mesh, parse_mesh
from tests.models.tiny import VARIANTS, reference, tokens

SEED = 11


@partial(jax.jit, static_argnums=0)
def next_token(graph, params, tokens_1T, length, sample_id, sampling):
    model = nnx.merge(graph, params)
    logits = model.logits(model(tokens_1T)[0])[:, length - 1]
    key = position_keys(jnp.uint32(SEED), sample_id[None], jnp.array([0]), length[None])
    return sample(logits, key, sampling)[0]


def oracle(model, prompt, new, eos, temperature, sample_id):
    """One whole forward pass per token, no cache, no batch, no loop on the device."""
    graph, params = nnx.split(model)
    ids = list(prompt)
    while len(ids) < len(prompt) + new:
        padded = np.zeros((1, 128), np.int32)
        padded[0, : len(ids)] = ids
        numbers = np.int32(len(ids)), np.int32(sample_id)
        ids.append(int(next_token(graph, params, padded, *numbers, Sampling.of(temperature))))
        if ids[-1] in eos:
            return ids[len(prompt) :], "stop"
    return ids[len(prompt) :], "length"


def prompts_of(lengths):
    return [tokens()[i, :length].tolist() for i, length in enumerate(lengths)]


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    "name",
    [
        "llama-untied",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("gpt_oss-untied", "deepseek_v3-untied", "qwen3_moe-tied")),
    ],
)
def test_generation_equals_a_plain_loop_over_whole_sequences(name, temperature, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(module, "NEW_TOKENS", 1)  # the pool grows
    model = hf.load(reference(name).folder)
    prompts = prompts_of([1, 17, 40, 3])
    eos = [5, 77, 130, 201]
    expected = [oracle(model, p, 60, eos, temperature, i) for i, p in enumerate(prompts)]
    ours = generate(model, prompts, max_new_tokens=60, eos_ids=eos, temperature=temperature, seed=SEED)
    assert [(c.token_ids, c.finish_reason) for c in ours] == expected
    if temperature:
        assert {reason for _, reason in expected} == {"stop", "length"} or name != "llama-untied"


def test_a_continuation_does_not_depend_on_batch_order_or_devices():
    folder = reference("gpt_oss-untied").folder
    options = {"max_new_tokens": 40, "eos_ids": [5], "temperature": 1.0, "seed": SEED}
    prompts = prompts_of([30, 5, 60, 12, 1])
    model = hf.load(folder)
    in_batch = generate(model, prompts, **options)
    alone = [generate(model, [p], samples=[i], **options)[0] for i, p in enumerate(prompts)]
    assert alone == in_batch
    reverse = generate(model, prompts[::-1], samples=[4, 3, 2, 1, 0], **options)
    assert reverse[::-1] == in_batch
    sharded = hf.load(folder, partitioner=Partitioner(make_mesh(parse_mesh(VARIANTS["gpt_oss-untied"].mesh))))
    assert generate(sharded, prompts, **options) == in_batch


def test_samples_differ_and_seeds_differ():
    model = hf.load(reference("qwen3-untied").folder)
    prompt = prompts_of([20])[0]
    options = {"max_new_tokens": 20, "eos_ids": [], "temperature": 1.0}
    a, b = generate(model, [prompt, prompt], seed=1, **options)
    assert a != b
    assert generate(model, [prompt], seed=2, **options)[0] != a


def test_nothing_is_asked_for_and_nothing_is_written():
    model = hf.load(reference("qwen3-untied").folder)
    (only,) = generate(model, prompts_of([20]), max_new_tokens=0, eos_ids=[])
    assert (only.token_ids, only.finish_reason) == ([], "length")
    assert generate(model, [], max_new_tokens=5, eos_ids=[]) == []


def test_bfloat16_runs_and_its_one_lane_equals_the_same_lane_among_others():
    model = hf.load(reference("qwen3-untied").folder, dtype=jnp.bfloat16)
    prompts = prompts_of([20, 33])
    in_batch = generate(model, prompts, max_new_tokens=10, eos_ids=[])
    assert generate(model, prompts[:1], max_new_tokens=10, eos_ids=[])[0] == in_batch[0]


def test_buckets_hold_the_tokens_and_at_most_half_as_many_more():
    assert [bucket(n) for n in (1, 256, 257, 385, 512, 513, 40_000)] == [256, 256, 384, 512, 512, 768, 49_152]
    assert all(n <= bucket(n) < 1.5 * n + 1 for n in range(256, 5000))


def test_a_program_is_compiled_once_for_similar_prompts_and_again_when_the_pool_has_grown():
    model = hf.load(reference("qwen2-tied").folder)
    module.decode.clear_cache()
    for seed in range(3):
        generate(model, prompts_of([50 + seed]), max_new_tokens=30, eos_ids=[1], temperature=0.5 * seed, seed=seed)
    assert module.decode._cache_size() == 2  # greedy and drawn
    generate(model, prompts_of([50]), max_new_tokens=600, eos_ids=[])
    assert module.decode._cache_size() == 4  # for 768 tokens, with pages for 384 and for 768 tokens a lane


def test_the_cache_is_updated_in_place():
    """Nothing as large as the cache is held beside it while decoding in float32."""
    model = hf.load(reference("llama-untied").folder)
    graph, params = nnx.split(model)
    lanes = module._start(model, [[1] * 8000], [0], 4)
    cache_bytes = sum(x.nbytes for x in lanes.cache.kv.pages)
    program = module.decode.lower(graph, params, lanes, jnp.array([1]), Sampling.of(0.0), jnp.uint32(0)).compile()
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= cache_bytes
    assert memory.temp_size_in_bytes < cache_bytes
