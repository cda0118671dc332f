"""Packing, splitting and sharding do not change a step, which counts every target by its kind."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from tessy_jax.models import hf, layers
from tessy_jax.models.config import ModelConfig, Rope
from tessy_jax.models.loss import token_losses
from tessy_jax.models.transformer import REMAT, Decoder
from tessy_jax.sharding import Partitioner, make_mesh, parse_mesh, put
from tessy_jax.train.pack import NO_TARGET, Batch, Example, assemble, pack
from tessy_jax.train.step import State, loss_sums, train_step
from tests.models.tiny import VARIANTS, VOCAB, reference

SIZE, KINDS = 64, 4
LENGTHS = (20, 33, 9, 64, 12, 1, 40, 25, 7, 30, 51, 18)
WEIGHTS = np.array([0, 1, 1, 1], np.float32)


@cache
def examples() -> list[Example]:
    rng = np.random.default_rng(3)
    return [
        Example(tokens := rng.integers(1, VOCAB, n).astype(np.int32), tokens, rng.integers(0, KINDS, n).astype(np.uint8))
        for n in LENGTHS
    ]


def load(name: str, devices: int = 1) -> tuple:
    partitioner = Partitioner() if devices == 1 else Partitioner(make_mesh(parse_mesh(VARIANTS[name].mesh)))
    return partitioner, *nnx.split(hf.load(reference(name).folder, partitioner=partitioner, stacked=True), nnx.Param, ...)


def stacked(rows: list, splits: int, partitioner: Partitioner) -> Batch:
    """Rows as `splits` micro-batches [A, B, T]."""
    per = -(-len(rows) // splits)
    ways = partitioner.num_shards("lanes")
    per = -(-per // ways) * ways
    rows = rows + [[]] * (per * splits - len(rows))
    batch = assemble(rows, SIZE)
    return jax.tree.map(lambda x: put(x.reshape(splits, per, SIZE), partitioner, (None, "lanes", None)), batch)


def run(name: str, rows: list, splits: int = 1, devices: int = 1, weights=WEIGHTS, remat: str = "none") -> tuple:
    """The loss sums, and the change of the parameters in one step of plain gradient descent, which is the gradient."""
    partitioner, graph, params, frozen = load(name, devices)
    optimizer = optax.sgd(1.0)
    state = State(params, optimizer.init(params), jnp.int32(0))
    step = jax.jit(lambda s, b, w: train_step(graph, optimizer, jnp.float32, remat, s, frozen, b, w))
    new, total, norm = step(state, stacked(rows, splits, partitioner), jnp.asarray(weights))
    change = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), params, new.params)
    assert int(new.step) == 1
    np.testing.assert_allclose(norm, optax.tree.norm(change), rtol=1e-4)
    return total, jax.tree.leaves(change)


def assert_same(ours: tuple, theirs: tuple) -> None:
    (total, gradient), (other, expected) = ours, theirs
    np.testing.assert_allclose(total.loss / total.weight, other.loss / other.weight, rtol=1e-5)
    np.testing.assert_allclose(total.tokens_C, other.tokens_C)
    np.testing.assert_allclose(total.loss_C, other.loss_C, rtol=1e-5)
    assert any(np.abs(g).max() > 1e-3 for g in expected)
    for a, b in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(1.0, float(np.abs(b).max())))


def packed() -> list:
    return [[examples()[i] for i in row] for row in pack(LENGTHS, SIZE, seed=0, epoch=0)]


@cache
def unpacked(name: str) -> tuple:
    return run(name, [[example] for example in examples()])


@pytest.mark.parametrize(
    ("name", "splits", "devices"),
    [
        ("llama-untied", 1, 1),
        ("llama-untied", 3, 1),
        ("qwen3-tied", 2, 8),
        pytest.param("gpt_oss-untied", 2, 8, marks=pytest.mark.slow),
    ],
)
def test_packing_splitting_and_sharding_change_neither_loss_nor_gradient(name, splits, devices):
    rows = packed()
    assert len(rows) < len(LENGTHS) / 1.5
    assert_same(run(name, rows, splits, devices), unpacked(name))


@pytest.mark.parametrize("remat", [name for name in REMAT if name != "none"])
def test_rematerialisation_does_not_change_the_gradient(remat):
    assert_same(run("llama-untied", packed(), remat=remat), unpacked("llama-untied"))


def test_the_losses_of_all_kinds_add_up_to_the_loss():
    total, _ = unpacked("llama-untied")
    kinds = np.concatenate([example.kinds[1:] for example in examples()])
    np.testing.assert_array_equal(total.tokens_C, [0, *np.bincount(kinds)[1:]])
    np.testing.assert_allclose(total.loss_C.sum(), total.loss, rtol=1e-6)
    assert total.weight == (kinds != NO_TARGET).sum()


def test_a_weight_acts_only_on_the_targets_of_its_kind():
    """Weight 0 equals tokens without targets; weight ½ equals the mean of the sums with weights 0 and 1."""
    without = [e._replace(kinds=np.where(e.kinds == 2, NO_TARGET, e.kinds).astype(np.uint8)) for e in examples()]
    total, gradient = run("llama-untied", [[e] for e in examples()], weights=np.array([0, 1, 0, 1], np.float32))
    other, expected = run("llama-untied", [[e] for e in without])
    assert total.weight == other.weight
    np.testing.assert_allclose(total.loss, other.loss, rtol=1e-6)
    for a, b in zip(gradient, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    half, mixed = run("llama-untied", [[e] for e in examples()], weights=np.array([0, 1, 0.5, 1], np.float32))
    full, full_gradient = unpacked("llama-untied")
    np.testing.assert_allclose(half.weight, (full.weight + other.weight) / 2)
    for a, b, c in zip(mixed, full_gradient, expected, strict=True):
        np.testing.assert_allclose(a * half.weight, (b * full.weight + c * other.weight) / 2, rtol=0, atol=2e-3)


def test_computing_in_bfloat16_leaves_the_master_weights_in_float32():
    _, graph, params, frozen = load("llama-untied")
    batch = jax.tree.map(lambda x: x[0], stacked(packed(), 1, Partitioner()))

    def loss(params, dtype):
        sums = loss_sums(graph, params, frozen, batch, jnp.asarray(WEIGHTS), dtype, "none")
        return sums.loss / sums.weight

    rough, gradient = jax.jit(jax.value_and_grad(lambda p: loss(p, jnp.bfloat16)))(params)
    exact = jax.jit(lambda p: loss(p, jnp.float32))(params)
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(gradient))
    assert rough != exact
    np.testing.assert_allclose(rough, exact, rtol=2e-2)


@pytest.mark.parametrize(
    ("name", "devices"),
    [
        ("llama-untied", 1),
        ("qwen3_moe-untied", 8),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("gpt_oss-untied", 8), ("deepseek_v3-untied", 1))),
    ],
)
def test_the_gradient_in_bfloat16_is_near_that_which_jax_derives_for_every_family(name, devices, monkeypatch):
    """Not near float32's: a router that chooses another expert turns it."""
    partitioner, graph, params, frozen = load(name, devices)
    batch = jax.tree.map(lambda x: x[0], stacked(packed(), 1, partitioner))

    def gradient():
        def loss(params):
            sums = loss_sums(graph, params, frozen, batch, jnp.asarray(WEIGHTS), jnp.bfloat16, "full")
            return sums.loss / sums.weight

        return [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(jax.jit(jax.grad(loss))(params))]

    ours = gradient()
    monkeypatch.setattr(layers, "_half_matmul", layers._matmul)
    monkeypatch.setattr(layers, "_half_einsum", layers.einsum_f32_reference)
    for a, b in zip(ours, gradient(), strict=True):
        norms = np.linalg.norm(a), np.linalg.norm(b)
        if norms[1] > 1e-3:
            np.testing.assert_allclose(norms[0], norms[1], rtol=0.02)
            assert a @ b / (norms[0] * norms[1]) > 0.999, "another direction"


def test_the_loss_needs_no_more_memory_for_longer_sequences():
    """A vocabulary of 152K: logits of 8K tokens alone would be 4.6 GiB."""
    config = ModelConfig(
        family="llama",
        vocab=152_000,
        layers=1,
        embed=32,
        heads=1,
        kv_heads=1,
        head_dim=32,
        ffn=32,
        eps=1e-6,
        tied=True,
        rope=Rope("default", 1e4, 32),
        windows=(None,),
        sparse=(False,),
        max_positions=8192,
        query_scale=1.0,
        labels=None,
    )
    graph, params = nnx.split(nnx.eval_shape(lambda: Decoder(config, nnx.Rngs(0), dtype=jnp.float32)))

    def needed(tokens: int) -> int:
        def loss(params, hidden, targets):
            return token_losses(nnx.merge(graph, params), hidden, targets).sum()

        shapes = jax.ShapeDtypeStruct((2, tokens, 32), jnp.float32), jax.ShapeDtypeStruct((2, tokens), jnp.int32)
        program = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(params, *shapes).compile()
        return int(program.memory_analysis().temp_size_in_bytes)

    short, long = needed(2048), needed(8192)
    logits = 1024 * 152_000 * 4
    assert long < 4 * logits
    assert long - short < logits / 10
