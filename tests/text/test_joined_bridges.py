"""One bridge of several vocabularies gives each lane the tokens of its own; only tokens that stay are sure."""

import json
import random

import jax
import numpy as np
import pytest

from tessy_jax.text.bridge import DeviceBridge, device_bridge
from tessy_jax.text.bridges import SeparateBridges, joined, make_bridge
from tessy_jax.text.split import GPT2, O200K, QWEN2
from tessy_jax.text.vocab import read_vocabulary
from tests.text.chunks import chunk
from tests.text.feed import encode, is_text, library, read, splits
from tests.text.kinds import gemma, unigram
from tests.text.test_bridge import B, P, batch, trained
from tests.text.test_kinds import with_model
from tests.text.test_words import closed_words, windows

HEAVY = [pytest.mark.slow, pytest.mark.heavy]


def texts(rng, ends=(b"",)):
    """Random texts of at most P bytes, each with one of some ends."""
    drawn = []
    while len(drawn) < B:
        data = (chunk(rng) + chunk(rng)).encode() + rng.choice(ends)
        drawn += [data] if len(data) <= P else []
    return drawn


def real(name):
    return lambda shared: json.loads((shared / "tokenizers" / name / "tokenizer.json").read_text("utf-8"))


def fewer_merges(content):
    """Another vocabulary with the same split rule."""
    return with_model(content, merges=content["model"]["merges"][:-200])


@pytest.mark.parametrize(
    ("contents", "kind"),
    [
        pytest.param([lambda _: trained(GPT2), lambda _: trained(O200K)], DeviceBridge, marks=HEAVY),
        pytest.param([lambda _: trained(QWEN2), lambda _: fewer_merges(trained(QWEN2))], DeviceBridge, marks=HEAVY),
        pytest.param([real("qwen3"), real("gpt-oss"), real("deepseek-v3")], DeviceBridge, marks=HEAVY),
        pytest.param([real("gpt-oss"), lambda _: unigram("first", False)], SeparateBridges, marks=HEAVY),
        pytest.param([lambda _: gemma(), lambda _: trained(GPT2)], SeparateBridges, marks=HEAVY),
    ],
    ids=["two rules", "one rule", "real", "device and host", "two devices"],
)
def test_each_lane_has_the_tokens_of_its_own_vocabulary(shared, contents, kind):
    contents = [content(shared) for content in contents]
    bridges = [make_bridge(c, read_vocabulary(c, 1 << 18), shared) for c in contents]
    both, rng = joined(bridges), random.Random(4)
    assert isinstance(both, kind)
    text = batch(texts(rng, ends=(b"", b" ", b"\xe4\xb8", b"\xff")))
    alone = [jax.device_get(encode(bridge, *text)) for bridge in bridges]
    v_B = np.array([rng.randrange(len(bridges)) for _ in range(B)], np.int32)
    ours = jax.device_get(encode(both, *text, v_B))
    for name in ("ids_BP", "ends_BP", "tokens_B"):
        expected = np.stack([getattr(encoding, name) for encoding in alone])[v_B, np.arange(B)]
        np.testing.assert_array_equal(getattr(ours, name), expected)
    assert len({tuple(encoding.tokens_B.tolist()) for encoding in alone}) == len(alone), "the vocabularies differ"


def test_the_next_words_of_each_lane_have_the_tokens_of_its_own_library():
    contents = [trained(GPT2), trained(O200K)]
    both, libraries, rng = joined([device_bridge(c) for c in contents]), [library(c) for c in contents], random.Random(6)
    some = [rng.choice(["'tis ", "CamelCase's ", "1234 "]) + chunk(rng) for _ in range(64)]
    v_B, ended_B = np.arange(64, dtype=np.int32) % 2, np.arange(64) % 3 == 0
    words = jax.device_get(closed_words(both, *windows([text.encode() for text in some]), ended_B, v_B))
    for i, text in enumerate(some):
        ids, theirs = words.ids_BP[i, : words.tokens_B[i]].tolist(), [library.encode(text).ids for library in libraries]
        assert ids == theirs[v_B[i]][: len(ids)], text
        assert len(ids) == len(theirs[v_B[i]]) or words.more_B[i] or words.long_B[i] or not ended_B[i], text
    assert words.tokens_B.sum() > 500


def test_each_distinct_rule_splits_once():
    bridges = [device_bridge(trained(rule)) for rule in (GPT2, QWEN2, GPT2)]
    both, text = joined(bridges), batch(texts(random.Random(2)))
    found = jax.device_get(jax.jit(lambda bridge, *text: bridge.splits(*text))(both, *text))
    assert len(found) == 2
    for (starts_BP, final_B), bridge in zip(found, bridges, strict=False):
        expected_BP, expected_B = splits(bridge, *text)
        np.testing.assert_array_equal(starts_BP, expected_BP)
        np.testing.assert_array_equal(final_B, expected_B)


def test_equal_bridges_count_once():
    student, teacher = device_bridge(trained(GPT2)), device_bridge(trained(O200K))
    assert joined([student, student]) is student
    assert joined([student, teacher, student]).rules == (GPT2, O200K)


def found(bridge, some, ended):
    """The tokens of at most B texts, all of which end or none, and how many are sure."""
    text_BP, counts_B = batch(some)
    ended_B1, v_B = np.full((B, 1), ended), np.zeros(B, np.int32)
    result = jax.device_get(read(bridge, text_BP, counts_B[:, None], ended_B1, v_B, P))
    return [
        (result.ids_BY[i, :n].tolist(), result.ends_BY[i, :n].tolist(), int(result.sure_BK[i, 0]))
        for i, n in enumerate(result.tokens_B[: len(some)].tolist())
    ]


@pytest.mark.parametrize("rule", [GPT2, pytest.param(O200K, marks=HEAVY), pytest.param(QWEN2, marks=HEAVY)])
def test_sure_tokens_are_those_of_closed_words_and_stay_whatever_follows(rule):
    content = trained(rule)
    bridge, theirs, rng = device_bridge(content), library(content), random.Random(8)
    some = texts(rng, ends=(b"", b"", b" ", b"'", b"\xe4\xb8", b"\xf0\x9f\x91"))
    kept = 0
    for text, ended, closed in zip(some, found(bridge, some, True), found(bridge, some, False), strict=True):
        ids, ends, sure = ended
        assert closed == (ids[:sure], ends[:sure], sure), text
        assert ends[-1] == len(text)
        finished = text.decode("utf-8", "ignore")
        for _ in range(8):
            following = [*theirs.encode(finished + rng.choice(["", "s", "'", " ", "\n", "1", "中"]) + chunk(rng)).ids]
            assert following[:sure] == ids[:sure], text
        if is_text(text):
            assert ids == theirs.encode(finished).ids
        kept += sure
    assert kept > 10 * B


LONG = ["x" * 90, "x" * 300, "=" * 90, "=" * 300, " " * 300, "漢" * 50, "漢" * 100, "Ab" * 45]
LONG += ["e" * 129, "e" * 128, "e" * 127]


def test_words_beyond_a_window_are_read_in_the_widest_one_and_beyond_it_in_parts():
    content, wide = trained(QWEN2), 128
    bridge, theirs = device_bridge(content), library(content)
    names = {i: name for name, i in content["model"]["vocab"].items()}
    some = [a + word + b for word in LONG for a in ("", "so it is") for b in ("", ".\nso it is the end of it")]
    data, counts = np.zeros((64, 512), np.uint8), np.zeros(64, np.int32)
    for i, text in enumerate(some):
        data[i, : len(text.encode())], counts[i] = np.frombuffer(text.encode(), np.uint8), len(text.encode())
    ended = jax.device_get(encode(bridge, data, counts, wide=wide))
    for i, text in enumerate(some):
        ids = ended.ids_BP[i, : ended.tokens_B[i]].tolist()
        assert ended.ends_BP[i, ended.tokens_B[i] - 1] == counts[i]
        spelled = "".join(names[token] for token in ids)
        words = [word for word, _ in theirs.pre_tokenizer.pre_tokenize_str(text)]
        if max(map(len, words)) <= wide:
            assert ids == theirs.encode(text).ids, text
        assert spelled == "".join(words)
