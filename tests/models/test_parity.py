"""Our decoder computes the same function as transformers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForTokenClassification

from tessy_jax.decode.cache import new_cache
from tessy_jax.models import hf
from tessy_jax.models.export import export
from tessy_jax.models.pages import Rows
from tessy_jax.sharding import Partitioner, make_mesh, parse_mesh, put
from tests.models.tiny import LANES, LENGTH, VARIANTS, hf_logits, reference, tokens

TOLERANCE = 2e-4
NAMES = sorted(VARIANTS)


def crossed(name: str, devices: int) -> bool:
    """Whether the default suite runs a variant on so many devices. Every family runs with and without tied embeddings, and
    on one and on eight devices, but not in all four combinations, because compilation is slow."""
    return VARIANTS[name].tied == (devices == 1)


def marked(*case, default: bool):
    """A case of the default suite, or a slow case. The slow cases are all combinations for families with their own layers;
    dense families differ only in sizes, biases and norms."""
    return pytest.param(*case, marks=() if default else pytest.mark.slow) if default or case[0] in ALL_WAYS else None


def cases(*candidates):
    return [case for case in candidates if case is not None]


ALL_WAYS = [name for name in NAMES if name.partition("-")[0] in ("gpt_oss", "deepseek_v3", "qwen3_moe")]
CROSSED = cases(*(marked(name, devices, default=crossed(name, devices)) for name in NAMES for devices in (1, 8)))
FORMS = ("unrolled", "stacked")


def layout_of(name: str, devices: int) -> Partitioner:
    return Partitioner() if devices == 1 else Partitioner(make_mesh(parse_mesh(VARIANTS[name].mesh)))


def labels_of(name: str) -> int:
    return 3 if VARIANTS[name].tied else 2


@jax.jit
def forward(model, tokens_BT):
    return model.logits(model(tokens_BT)[0])


@jax.jit
def step(model, tokens_BT, cache, counts_B):
    cache, ok_B = cache.reserve(cache.lengths_B + counts_B)
    hidden, kv = model(tokens_BT, cache=cache.kv, rows=Rows(cache.lengths_B, counts_B))
    return model.logits(hidden), cache.filled(kv, cache.lengths_B + counts_B), ok_B.all()


def assert_close(ours, theirs):
    assert np.isfinite(theirs).all()
    assert np.abs(theirs).max() > 1.0, "logits this small would agree for any model"
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "form", "devices"),
    cases(
        *(
            marked(name, form, devices, default=crossed(name, devices) and (form == "stacked") == (devices == 8))
            for name in NAMES
            for form in FORMS
            for devices in (1, 8)
        )
    ),
)
def test_complete_sequences_give_the_logits_of_transformers(name, form, devices):
    partitioner = layout_of(name, devices)
    model = hf.load(reference(name).folder, partitioner=partitioner, stacked=form == "stacked")
    assert_close(forward(model, put(tokens(), partitioner, ("lanes", None))), reference(name).logits)


def logits_by_chunks(name: str, partitioner: Partitioner, form: str) -> np.ndarray:
    """The logits of all lanes' tokens, read in chunks of up to 64 of different lengths, and the last 12 one by one."""
    model = hf.load(reference(name).folder, partitioner=partitioner, stacked=form == "stacked")
    known = tokens()
    ours = np.full(reference(name).logits.shape, np.nan, np.float32)
    cache = new_cache(model.config, LANES, LENGTH, slack=64, dtype=jnp.float32, partitioner=partitioner)
    rng = np.random.default_rng(1)
    lengths = np.zeros(LANES, int)

    def feed(size, counts):
        nonlocal cache, lengths
        chunk = np.zeros((LANES, size), int)
        for lane, count in enumerate(counts):
            chunk[lane, :count] = known[lane, lengths[lane] : lengths[lane] + count]
        given = put(chunk, partitioner, ("lanes", None)), cache, put(counts, partitioner, ("lanes",))
        logits, cache, reserved = step(model, *given)
        assert reserved
        for lane, count in enumerate(counts):
            ours[lane, lengths[lane] : lengths[lane] + count] = np.asarray(logits)[lane, :count]
        lengths = lengths + counts
        np.testing.assert_array_equal(np.asarray(cache.lengths_B), lengths)

    while lengths.min() < LENGTH - 12:
        counts = np.minimum(rng.integers(0, 65, LANES), LENGTH - 12 - lengths)
        feed(64, counts)
    for _ in range(12):
        feed(1, np.ones(LANES, int))
    return ours


@pytest.mark.parametrize(("name", "devices"), CROSSED)
def test_chunks_of_any_length_per_lane_and_single_tokens_give_the_logits_of_transformers(name, devices):
    assert_close(logits_by_chunks(name, layout_of(name, devices), "unrolled"), reference(name).logits)


@pytest.mark.parametrize(
    "name",
    [
        "gpt_oss-untied",  # two kinds of windows, and an odd number of layers
        pytest.param("deepseek_v3-untied", marks=pytest.mark.slow),  # latent attention after a dense layer
        pytest.param("qwen3_moe-untied", marks=pytest.mark.slow),  # a dense layer among sparse ones
    ],
)
def test_stacked_layers_with_a_cache_give_the_logits_of_transformers(name):
    assert_close(logits_by_chunks(name, layout_of(name, 8), "stacked"), reference(name).logits)


@pytest.mark.parametrize("name", ["gpt_oss-untied", "qwen2-untied", "deepseek_v3-untied"])
def test_a_rollback_of_at_most_the_slack_does_not_change_later_logits(name):
    model = hf.load(reference(name).folder)
    known, slack, size = tokens(), 20, 20
    cache = new_cache(model.config, LANES, LENGTH, slack=slack, dtype=jnp.float32)
    rng = np.random.default_rng(2)
    ours = np.full(reference(name).logits.shape, np.nan, np.float32)
    lengths = np.zeros(LANES, int)
    while lengths.min() < LENGTH:
        keep = np.minimum(rng.integers(0, size + 1, LANES), LENGTH - lengths)
        chunk = rng.integers(1, 300, (LANES, size))  # tokens beyond `keep` are random and rolled back
        for lane, count in enumerate(keep):
            chunk[lane, :count] = known[lane, lengths[lane] : lengths[lane] + count]
        counts = np.minimum(size, LENGTH - lengths)
        logits, cache, reserved = step(model, jnp.asarray(chunk), cache, jnp.asarray(counts))
        assert reserved
        for lane, count in enumerate(keep):
            ours[lane, lengths[lane] : lengths[lane] + count] = np.asarray(logits)[lane, :count]
        lengths = lengths + keep
        cache = cache.rollback(jnp.asarray(lengths, jnp.int32))
    assert_close(ours, reference(name).logits)


@pytest.mark.parametrize(
    ("name", "form"),
    cases(*(marked(name, form, default=VARIANTS[name].tied == (form == "unrolled")) for name in NAMES for form in FORMS)),
)
def test_an_exported_model_gives_the_same_logits_in_transformers(name, form, tmp_path):
    model = hf.load(reference(name).folder, stacked=form == "stacked")
    export(model, tmp_path / "out", shard_bytes=100_000)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists()
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32, attn_implementation="eager")
    assert_close(hf_logits(theirs.eval()), reference(name).logits)


@pytest.mark.parametrize(
    ("name", "devices"),
    cases(*(marked(name, devices, default=VARIANTS[name].tied and devices == 1) for name in NAMES for devices in (1, 8))),
)
def test_a_token_classifier_gives_the_scores_of_transformers_complete_in_chunks_and_by_token(name, devices):
    labels, partitioner = labels_of(name), layout_of(name, devices)
    expected = reference(name, labels)
    model = hf.load(expected.folder, partitioner=partitioner)
    assert model.config.labels == labels
    assert_close(forward(model, put(tokens(), partitioner, ("lanes", None))), expected.logits)
    cache = new_cache(model.config, LANES, LENGTH, slack=170, dtype=jnp.float32, partitioner=partitioner)
    ours = []
    for start, stop in ((0, 170), (170, 340), (340, 510), (510, 511), (511, 512)):
        counts = put(np.full(LANES, stop - start), partitioner, ("lanes",))
        scores, cache, reserved = step(model, put(tokens()[:, start:stop], partitioner, ("lanes", None)), cache, counts)
        assert reserved
        ours.append(scores)
    assert_close(np.concatenate(ours, axis=1), expected.logits)


@pytest.mark.parametrize("name", NAMES)
def test_a_token_classifier_survives_an_export(name, tmp_path):
    expected = reference(name, labels_of(name))
    export(hf.load(expected.folder), tmp_path / "out")
    theirs = AutoModelForTokenClassification.from_pretrained(
        tmp_path / "out", dtype=torch.float32, attn_implementation="eager"
    )
    assert_close(hf_logits(theirs.eval()), expected.logits)


@pytest.mark.parametrize("name", ["qwen2-untied", "gpt_oss-tied", "deepseek_v3-untied"])
def test_the_first_layers_of_a_model_are_those_of_transformers_also_after_an_export(name, tmp_path):
    folder, options = reference(name).folder, {"dtype": torch.float32, "attn_implementation": "eager"}
    config = AutoConfig.from_pretrained(folder)
    config.num_hidden_layers = 2
    config.layer_types = config.layer_types[:2] if getattr(config, "layer_types", None) else None
    expected = hf_logits(AutoModelForCausalLM.from_pretrained(folder, config=config, **options).eval())
    ours = hf.load(folder, layers=2, stacked=True)
    assert_close(forward(ours, jnp.asarray(tokens())), expected)
    assert np.abs(expected - reference(name).logits).max() > 0.1
    export(ours, tmp_path / "short")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "short", **options)
    assert again.config.num_hidden_layers == 2
    np.testing.assert_array_equal(hf_logits(again.eval()), expected)


@pytest.mark.parametrize("name", ["llama-untied", "gpt_oss-tied", "deepseek_v3-untied"])
def test_documents_packed_into_one_row_do_not_see_each_other(name):
    model = hf.load(reference(name).folder, stacked=True)
    lengths = [100, 1, 300, 60]
    row, segments = np.zeros((1, LENGTH), int), np.zeros((1, LENGTH), int)
    start = 0
    for i, length in enumerate(lengths):
        row[0, start : start + length] = tokens()[i, :length]
        segments[0, start : start + length] = i + 1
        start += length
    hidden, _ = model(jnp.asarray(row), segments_BT=jnp.asarray(segments))
    ours = np.asarray(model.logits(hidden))[0]
    start = 0
    for i, length in enumerate(lengths):
        assert_close(ours[start : start + length], reference(name).logits[i, :length])
        start += length


def test_query_blocks_of_long_sequences_do_not_change_results_or_gradients(monkeypatch):
    from tessy_jax.models import attention

    model = hf.load(reference("gpt_oss-untied").folder, stacked=True)
    graph, state = nnx.split(model)

    def loss(state):
        merged = nnx.merge(graph, state)
        return (merged.logits(merged(jnp.asarray(tokens()))[0]) ** 2).mean()

    expected, expected_gradient = jax.value_and_grad(loss)(state)
    monkeypatch.setattr(attention, "QUERY_BLOCK", 120)  # 512 tokens are four complete blocks and a shorter one
    value, gradient = jax.value_and_grad(loss)(state)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for ours, theirs in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected_gradient), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-5 * max(1.0, float(np.abs(theirs).max())))
