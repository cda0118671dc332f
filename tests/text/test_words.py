"""The words that the device closes one by one have the tokens of the `tokenizers` library, whatever text follows."""

import json
import random
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tessy_jax.text.bridge import PER_WORD, device_bridge
from tessy_jax.text.words import ABSENT, word_table
from tests.text.chunks import chunk
from tests.text.feed import differing, library
from tests.text.test_bridge import RULES, trained

TOKENIZERS = ["qwen3", "gpt-oss", "deepseek-v3"]


@partial(jax.jit, static_argnames=("widest",))
def closed_words(bridge, data, counts, ended=False, v=0, widest=False):
    """The first words of texts in vocabularies v; `ended`: whether they end."""
    ended_B, v_B = (jnp.broadcast_to(x, counts.shape) for x in (ended, v))
    return bridge.closed(data, counts, ended_B, v_B, widest=widest)


def windows(texts, size=64):
    """The first bytes of at most 64 texts, and the lengths of the texts."""
    data, counts = np.zeros((64, size), np.uint8), np.zeros(64, np.int32)
    for i, text in enumerate(texts):
        data[i, : len(text[:size])], counts[i] = np.frombuffer(text[:size], np.uint8), len(text)
    return data, counts


def test_closed_words_have_the_tokens_that_the_library_gives_to_the_complete_text():
    content = trained(RULES[0])
    bridge, theirs, rng, tokens = device_bridge(content), library(content), random.Random(3), 0
    for _ in range(10):
        texts = [chunk(rng) + chunk(rng) for _ in range(64)]
        words = jax.device_get(closed_words(bridge, *windows([text.encode() for text in texts])))
        for i, text in enumerate(texts):
            ids = words.ids_BP[i, : words.tokens_B[i]].tolist()
            assert ids == theirs.encode(text).ids[: len(ids)], text
            assert int(words.ends_BP[i].max()) == words.end_B[i]
            tokens += len(ids)
    assert tokens > 5_000


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("rule", RULES)
def test_closed_words_of_every_rule_in_random_pieces_have_the_tokens_of_the_library(rule):
    content = trained(rule)
    wrong, tokens, still_open = differing(content, device_bridge(content), 500, seed=3)
    assert wrong == []
    assert tokens > 10_000
    assert still_open <= 3


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("name", TOKENIZERS)
def test_closed_words_of_real_tokenizers_have_the_tokens_of_the_library(shared, name):
    content = json.loads((shared / "tokenizers" / name / "tokenizer.json").read_text("utf-8"))
    wrong, tokens, still_open = differing(content, device_bridge(content), 2_000, seed=4)
    print(f"{name}: {len(wrong)} of 2000 texts differ; {tokens} tokens; at most {still_open} words stayed open")
    assert wrong == []
    assert still_open <= 3


def test_a_call_reports_that_more_words_follow_and_that_a_word_is_longer_than_the_window():
    bridge = device_bridge(trained(RULES[0]))
    texts = [b"a b c d e f g h i j k", b"x" * 64, b"x" * 64 + b" y", b"one two", b"", b"ab\xe4\xb8", b" " * 64]
    words = jax.device_get(closed_words(bridge, *windows(texts)))
    words = type(words)(*(x[: len(texts)] for x in words))
    assert words.end_B.tolist() == [15, 0, 0, 3, 0, 0, 0]
    assert words.sure_B.tolist() == words.tokens_B.tolist()
    assert (words.tokens_B > 0).tolist() == [True, False, False, True, False, False, False]
    assert words.more_B.tolist() == [True, False, False, False, False, False, False]
    assert words.long_B.tolist() == [False, False, True, False, False, False, False]
    ends = [1, 3, 5, 7, 9, 11, 13, 15]
    assert len(ends) == 64 // PER_WORD
    assert [end for end in words.ends_BP[0, : words.tokens_B[0]].tolist() if end % 2] == ends


@pytest.mark.parametrize("widest", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_words_of_an_ended_text_are_read_to_its_end_if_the_window_shows_it(widest):
    bridge = device_bridge(trained(RULES[0]))
    texts = [b"a b c d e f g h i j k", b"x" * 64, b"x" * 64 + b" y", b"one two", b"", b"ab\xe4\xb8", b" " * 64]
    words = jax.device_get(closed_words(bridge, *windows(texts), ended=True, widest=widest))
    words = type(words)(*(x[: len(texts)] for x in words))
    cut = 64 if widest else 0  # a word that leaves the widest window is cut at its end
    assert words.end_B.tolist() == [15, 64, cut, 7, 0, 4, 64]
    assert words.ends_BP.max(axis=1).tolist() == words.end_B.tolist()
    assert words.more_B.tolist() == [True, False, widest, False, False, False, False]
    assert words.long_B.tolist() == [False, False, not widest, False, False, False, False]
    assert (words.sure_B > 0).tolist() == [True, False, False, True, False, False, False]
    assert (words.sure_B < words.tokens_B).tolist() == [False, True, widest, True, False, True, True]


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("letters", ["etaoin", "x", " "])
def test_words_and_white_space_of_ten_thousand_bytes_close_in_a_window_that_holds_them(letters):
    content = trained(RULES[3])
    rng = random.Random(6)
    data = np.zeros((1, 10_240), np.uint8)
    text = ("".join(rng.choice(letters) for _ in range(10_000)) + " so it is").encode()
    data[0, : len(text)] = np.frombuffer(text, np.uint8)
    words = jax.device_get(closed_words(device_bridge(content), data, np.array([len(text)], np.int32)))
    assert words.end_B[0] >= 9_999
    ids = words.ids_BP[0, : words.tokens_B[0]].tolist()
    assert ids == library(content).encode(text.decode(), add_special_tokens=False).ids[: len(ids)]


def test_a_word_with_the_hash_of_a_token_is_no_token():
    table = word_table({3: b"the", 5: b" fox"})
    forged = replace(table, spelled_XI=table.spelled_XI.at[5, 0].set(ord("_")))
    data = np.frombuffer(b"the foxthe", np.uint8)[None]
    at = np.array([[0, 3, 7, 0]]), np.array([[3, 7, 10, 4]])
    find = jax.jit(lambda table: table.find(jnp.asarray(data), *map(jnp.asarray, at), jnp.zeros(1, jnp.int32)))
    assert find(table)[0].tolist() == [3, 5, 3, ABSENT]
    assert find(forged)[0].tolist() == [3, ABSENT, 3, ABSENT]


@pytest.mark.slow
@pytest.mark.heavy
def test_a_token_that_merges_never_make_closes_as_one_token():
    content = trained(RULES[0])
    model = content["model"]
    name = "Ġ" + "z" * 70  # longer than the usual words of the table
    vocab = {**model["vocab"], name: len(model["vocab"])}
    bridge = device_bridge({**content, "model": {**model, "ignore_merges": True, "vocab": vocab}})
    assert bridge.words.spelled_XI.shape[1] == 128
    words = jax.device_get(closed_words(bridge, *windows([(" " + "z" * 70 + " so").encode()], 128)))
    assert words.ids_BP[0, : words.tokens_B[0]].tolist() == [vocab[name]]


def test_a_word_beyond_the_widest_window_is_cut_between_characters():
    text = "中" * 50
    data, counts = np.frombuffer(text.encode()[:64], np.uint8)[None], np.array([150], np.int32)
    arguments = data, counts, np.ones(1, bool), np.zeros(1, np.int32)
    bridge = device_bridge(trained(RULES[0]))
    words = jax.jit(lambda *given: bridge.closed(*given, widest=True))(*arguments)
    assert (int(words.end_B[0]), bool(words.more_B[0])) == (63, True)
    assert int(words.ends_BP[0, int(words.tokens_B[0]) - 1]) == 63
