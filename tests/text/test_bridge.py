"""The device splits and encodes text as the `tokenizers` library does, and knows which boundaries are final."""

import json
import random
import unicodedata
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from tessy_jax.text.bridge import device_bridge
from tessy_jax.text.encoding import UNSPELLED
from tessy_jax.text.host_bridge import HostBridge
from tessy_jax.text.split import DEEPSEEK3, DIGITS_GPT2, GPT2, LLAMA3, O200K, QWEN2, QWEN3_5, SPLITS
from tessy_jax.text.vocab import read_vocabulary, same_vocabulary
from tessy_jax.text.words import Table, bucket_of, find_merges, merge_table
from tests.text.chunks import chunk
from tests.text.feed import encode, pieces, read_all, splits

B, P = 256, 128
HEAVY = [pytest.mark.slow, pytest.mark.heavy]
RULES = (GPT2, DIGITS_GPT2, LLAMA3, QWEN2, O200K, DEEPSEEK3, QWEN3_5)


def batch(texts):
    data, counts = np.zeros((B, P), np.uint8), np.zeros(B, np.int32)
    for i, text in enumerate(texts):
        data[i, : len(text)], counts[i] = np.frombuffer(text, np.uint8), len(text)
    return data, counts


def library(content, normalize=False):
    """The tokenizer without added tokens, and without its normalizer."""
    plain = {**content, "added_tokens": [], "post_processor": None}
    return Tokenizer.from_str(json.dumps(plain if normalize else {**plain, "normalizer": None}))


def compare(content, count, prepare=lambda text: text, normalize=False):
    """The chunks, of `count` random ones, whose ids differ from the library's; their bytes must not differ."""
    bridge, rng = device_bridge(content), random.Random(5)
    theirs = library(content, normalize)
    vocabulary = read_vocabulary(content, max(content["model"]["vocab"].values()) + 3000)
    differing = []
    for first in range(0, count, 4096):
        texts = []
        while len(texts) < min(4096, count - first):
            text = prepare(chunk(rng)).encode()
            texts += [text] if 0 < len(text) <= P else []
        for text, ids_, ends, _ in read_all(bridge, [(text, [len(text)]) for text in texts], wide=P):
            ids = ids_.tolist()
            spelled = [b"\0" if t == UNSPELLED else vocabulary.bytes_of([t]) for t in ids]
            assert [len(s) for s in spelled] == np.diff([0, *ends]).tolist()
            if UNSPELLED in ids:  # the library omits such characters
                continue
            assert b"".join(spelled) == text
            if ids != theirs.encode(text.decode(), add_special_tokens=False).ids:
                differing.append(text.decode())
    return differing


@pytest.mark.parametrize("count", [5_000, pytest.param(100_000, marks=HEAVY)])
@pytest.mark.parametrize("name", ["qwen3", "gpt-oss", "deepseek-v3"])
def test_the_device_agrees_with_the_library_on_real_tokenizers(shared, name, count):
    content = json.loads((shared / "tokenizers" / name / "tokenizer.json").read_text("utf-8"))
    differing = compare(content, count)
    print(f"{name}: {len(differing)} of {count} chunks differ: {differing}")
    assert len(differing) <= count / 10_000, differing
    if content["normalizer"] and content["normalizer"]["type"] == "NFC":
        assert len(compare(content, count, partial(unicodedata.normalize, "NFC"), normalize=True)) <= count / 10_000


@pytest.mark.slow
@pytest.mark.heavy
def test_the_device_agrees_with_the_library_on_smollm2(real_models):
    content = json.loads((real_models / "smollm2" / "tokenizer.json").read_text("utf-8"))
    differing = compare(content, 20_000)
    print(f"smollm2: {len(differing)} of 20000 chunks differ: {differing}")
    assert len(differing) <= 2, differing


def trained(rule):
    """A small tokenizer with a split rule."""
    return json.loads(_trained(rule))


@cache
def _trained(rule):
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule in (GPT2, DIGITS_GPT2))
    steps = [pre_tokenizers.Digits(individual_digits=True)] if rule == DIGITS_GPT2 else []
    if rule not in (GPT2, DIGITS_GPT2):
        expressions = next(key for key, value in SPLITS.items() if value == rule)
        steps = [pre_tokenizers.Split(Regex(e), behavior="isolated") for e in expressions]
    built = Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence([*steps, last]) if steps else last
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False)
    rng = random.Random(1)
    built.train_from_iterator([chunk(rng) for _ in range(400)], trainer)
    return built.to_str()


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_is_recognised_and_agrees_with_the_library(rule):
    content = trained(rule)
    assert device_bridge(content).rule == rule
    assert compare(content, 2_000) == []


PIECES = [bytes([byte]) for byte in (0x80, 0xBF, 0xA0, 0xC0, 0xC3, 0xE0, 0xE2, 0xF0, 0xF4, 0xFF) * 2]
PIECES += [part.encode() for part in ("'", "s", "ſ", "l", " ", "\n", "1", "a", "A", "=", "/", "é", "中", "\u0301", "😀")]
PIECES += [b"\xe4\xb8", b"\xf0\x9f\x98"]


@pytest.mark.parametrize("rule", [QWEN2, *(pytest.param(rule, marks=HEAVY) for rule in (O200K, DEEPSEEK3))])
def test_bytes_that_are_not_utf_8_have_the_same_tokens_in_whatever_pieces_they_arrive(rule):
    bridge, rng = device_bridge(trained(rule)), random.Random(9)
    texts = [b"".join(rng.choice(PIECES) for _ in range(rng.randrange(3, 24))) for _ in range(1_000)]
    tasks = [(text, ends) for text in texts for ends in ([len(text)], *(pieces(rng, len(text), 8) for _ in range(4)))]
    found = {}
    for text, ids, ends, _ in read_all(bridge, tasks, wide=P):
        assert ends[-1] == len(text)
        found.setdefault(text, set()).add((*ids.tolist(), *ends.tolist()))
    assert [text for text, different in found.items() if len(different) > 1] == []


@pytest.mark.parametrize("rule", RULES)
def test_no_following_text_changes_final_boundaries(rule):
    content = trained(rule)
    bridge, theirs, rng = device_bridge(content), library(content), random.Random(9)
    for _ in range(12):
        texts, prefixes = [], []
        while len(texts) < B:
            text = chunk(rng) + chunk(rng)
            if 1 < len(text.encode()) <= P:
                texts.append(text)
                prefixes.append(text[: rng.randrange(1, len(text))])
        starts_BP, final_B = jax.device_get(splits(bridge, *batch([prefix.encode() for prefix in prefixes])))
        for i, (text, prefix) in enumerate(zip(texts, prefixes, strict=True)):
            spans = [a for _, (a, _) in theirs.pre_tokenizer.pre_tokenize_str(text)]
            later = {len(text[:a].encode()) for a in spans}
            now, final = set(np.flatnonzero(starts_BP[i]).tolist()), int(final_B[i])
            assert {a for a in later if a <= final} == {a for a in now if a <= final}, (text, prefix, final)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("text", "at"), [("walk ", 4), ("walk.", 4), ("one two (", 7), ("walk\n", 4), ("7 ", 1)])
def test_common_boundaries_are_final_immediately(rule, text, at):
    starts_BP, final_B = splits(device_bridge(trained(rule)), *batch([text.encode()]))
    assert bool(starts_BP[0, at])
    assert int(final_B[0]) >= at


def test_the_merge_table_has_all_merges_and_no_other_pair(shared):
    content = json.loads((shared / "tokenizers" / "qwen3" / "tokenizer.json").read_text("utf-8"))
    ids = content["model"]["vocab"]
    pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in content["model"]["merges"]]
    rows = np.array([(ids[a], ids[b], rank, ids[a + b]) for rank, (a, b) in enumerate(pairs)], np.int32)
    table = Table.of([merge_table(rows)])

    def found(pairs):
        """The rank and the merged token of each pair."""
        left, right = (jnp.asarray(pairs[None, :, i], jnp.int32) for i in (0, 1))
        return [np.asarray(x[0]) for x in find_merges(table, left, right, jnp.zeros(1, jnp.int32))]

    rank, merged = found(rows)
    np.testing.assert_array_equal(rank, rows[:, 2])
    np.testing.assert_array_equal(merged, rows[:, 3])
    known = {(a, b) for a, b, *_ in rows.tolist()}
    others = np.array(
        [p for p in np.random.default_rng(0).integers(0, len(ids), (5000, 2)).tolist() if tuple(p) not in known]
    )
    assert (found(others)[0] == np.iinfo(np.int32).max).all()
    pair = np.array([7], np.uint32), np.array([9], np.uint32)
    assert int(bucket_of(*pair, 64)[0]) == int(bucket_of(*map(jnp.asarray, pair), 64)[0])


def test_tokens_tile_bytes_that_are_not_text():
    bridge = device_bridge(trained(O200K))
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, 256, rng.integers(1, P), np.uint8).tobytes() for _ in range(B)]
    texts[0], texts[1] = "中".encode()[:2], b"ok \xf0\x9f"
    encoding = jax.device_get(encode(bridge, *batch(texts)))
    for i, text in enumerate(texts):
        ends = encoding.ends_BP[i, : encoding.tokens_B[i]]
        assert ends[-1] == len(text)
        assert (np.diff([0, *ends]) > 0).all()


def test_the_host_bridge_equals_the_device_bridge_inside_a_compiled_loop():
    content = trained(QWEN2)
    vocabulary = read_vocabulary(content, 800)
    host, device = HostBridge.of(content, vocabulary), device_bridge(content)
    rng = random.Random(2)
    texts = []
    while len(texts) < B:
        text = chunk(rng).encode()
        texts += [text] if 0 < len(text) <= P else []

    @jax.jit
    def twice(data, counts):
        shapes = jax.eval_shape(host.encode, data, counts)
        first = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.fori_loop(0, 2, lambda i, _: host.encode(data, jnp.minimum(counts, counts + i)), first)

    ours, theirs = jax.device_get((twice(*batch(texts)), encode(device, *batch(texts))))
    assert host.library.calls == 2
    np.testing.assert_array_equal(ours.tokens_B, theirs.tokens_B)
    for i, count in enumerate(ours.tokens_B):
        np.testing.assert_array_equal(ours.ids_BP[i, :count], theirs.ids_BP[i, :count])
        np.testing.assert_array_equal(ours.ends_BP[i, :count], theirs.ends_BP[i, :count])
    np.testing.assert_array_equal(ours.starts_BP, theirs.starts_BP)


def test_a_character_without_tokens_is_marked():
    content = trained(QWEN2)
    del content["model"]["vocab"]["\u0101"]  # the byte 1
    encoding = encode(device_bridge(content), *batch([b"a\x01b"]))
    assert np.asarray(encoding.ids_BP[0, : int(encoding.tokens_B[0])]).tolist().count(UNSPELLED) == 1


def test_vocabularies_are_equal_with_different_numbers_of_rows():
    content = trained(QWEN2)
    assert same_vocabulary(read_vocabulary(content, 800), read_vocabulary(content, 900))
    assert not same_vocabulary(read_vocabulary(content, 800), read_vocabulary(trained(GPT2), 800))
    added = {"id": 790, "content": "<think>", "special": False}
    control = {"id": 791, "content": "<|end|>", "special": True}
    with_added = read_vocabulary({**content, "added_tokens": [added, control]}, 800)
    assert with_added.bytes_of([790, 791]) == b"<think>"
    assert with_added.control[[790, 791, 799]].tolist() == [False, True, True]
