"""SentencePiece BPE on the device gives the tokens and boundaries of the host bridge, for every text."""

import random
from pathlib import Path

import jax
import numpy as np
import pytest
from transformers import AutoTokenizer

from tessy_jax.text.bridges import make_bridge
from tessy_jax.text.host_bridge import HostBridge
from tessy_jax.text.sentencepiece_bridge import SentencePieceBridge
from tessy_jax.text.split import GPT2
from tessy_jax.text.vocab import read_description, read_vocabulary
from tests.text.chunks import chunk
from tests.text.feed import encode, splits
from tests.text.kinds import SCHEMES, across_words, bpe, gemma, legacy, unigram
from tests.text.test_bridge import B, P, batch, trained
from tests.text.test_kinds import with_model

KINDS = {f"{scheme} {split}": (lambda scheme=scheme, split=split: bpe(scheme, split)) for scheme, split in SCHEMES}
KINDS |= {"legacy": legacy, "gemma": gemma, "across words": across_words}
NOT_TEXT = (b"\xff", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xe4\xb8", b"\x80", b"\xf0\x9f")
ODD = [
    "▁",
    " ▁ ",
    "▁▁the",
    "aaaaaaa",
    "     ",
    "\n\n\n\n\n",
    "\x1c",
    "\x1f",
    "\u3000",
    "<b>",
    "<0x41>",
    "</s>",
    "<unk>",
    "한국",
]


def text(rng):
    """Random bytes: mostly text, with insertions of odd text and of bytes that are not UTF-8, sometimes cut."""
    data = chunk(rng).encode()
    for _ in range(rng.choice((0, 0, 1, 2))):
        at, odd = rng.randrange(len(data) + 1), rng.choice(ODD).encode()
        data = data[:at] + (odd if rng.random() < 0.7 else rng.choice(NOT_TEXT)) + data[at:]
    return data[: rng.randrange(1, len(data) + 1)] if rng.random() < 0.3 else data


def texts(rng):
    drawn = []
    while len(drawn) < B:
        data = text(rng)
        drawn += [data] if len(data) <= P else []
    return drawn


def bridges(content):
    vocabulary = read_vocabulary(content, 1 << 11)
    return make_bridge(content, vocabulary, Path("folder")), HostBridge.of(content, vocabulary)


def agree(content, count):
    """Compares both bridges on `count` texts."""
    (device, host), rng = bridges(content), random.Random(7)
    assert isinstance(device, SentencePieceBridge)
    for _ in range(-(-count // B)):
        drawn = texts(rng)
        ours, theirs = jax.device_get(encode(device, *batch(drawn))), host._encode(*batch(drawn))
        for i, data in enumerate(drawn):
            tokens = theirs.tokens_B[i]
            ids = ours.ids_BP[i, : ours.tokens_B[i]].tolist()
            assert ids == theirs.ids_BP[i, :tokens].tolist(), data
            assert ours.ends_BP[i, :tokens].tolist() == theirs.ends_BP[i, :tokens].tolist(), data
            assert host.library.vocabulary.bytes_of(ids) == data
            assert np.flatnonzero(ours.starts_BP[i]).tolist() == np.flatnonzero(theirs.starts_BP[i]).tolist(), data
            assert ours.final_B[i] == theirs.final_B[i], data


SLOW, BY_HAND = [pytest.mark.slow, pytest.mark.heavy], [pytest.mark.slow, pytest.mark.by_hand]


@pytest.mark.parametrize("count", [256, pytest.param(2_000, marks=SLOW), pytest.param(100_000, marks=BY_HAND)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_device_gives_the_tokens_and_boundaries_of_the_host(kind, count):
    agree(KINDS[kind](), count)


@pytest.mark.slow
@pytest.mark.heavy
def test_long_texts_without_spaces_have_the_tokens_of_the_host():
    rng, size = random.Random(3), 2048
    drawn = ["a" * 2000, " " * 2000, "\n" * 2000, "中文字符" * 150, "the end of " * 180, "▁" * 600]
    drawn += ["".join(chunk(rng) for _ in range(80)).replace(" ", "") for _ in range(10)]
    data, counts = np.zeros((len(drawn), size), np.uint8), np.zeros(len(drawn), np.int32)
    for i, part in enumerate(drawn):
        encoded = part.encode()[:size]
        data[i, : len(encoded)], counts[i] = np.frombuffer(encoded, np.uint8), len(encoded)
    for kind in ("gemma", "across words"):
        device, host = bridges(KINDS[kind]())
        ours, theirs = jax.device_get(encode(device, data, counts)), host._encode(data, counts)
        for ours_, theirs_ in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(ours_, theirs_)


def test_no_following_text_changes_final_boundaries():
    (device, _), rng = bridges(gemma()), random.Random(9)
    drawn = texts(rng)
    cuts = [rng.randrange(1, len(data) + 1) for data in drawn]
    prefixes = [data[:cut] for data, cut in zip(drawn, cuts, strict=True)]
    (starts_BP, final_B), (later_BP, _) = jax.device_get([splits(device, *batch(some)) for some in (prefixes, drawn)])
    for i, data in enumerate(drawn):
        inside = slice(1, int(final_B[i]) + 1)
        assert starts_BP[i, inside].tolist() == later_BP[i, inside].tolist(), (data, cuts[i])


def test_boundaries_after_bytes_that_are_not_utf8_are_those_of_the_text():
    _, host = bridges(legacy())
    assert host.library.split(b"a\xff b\xe4\xb8\xad \xf0") == ([0, 2, 7], 7)
    pre_tokens = HostBridge.of(trained(GPT2), read_vocabulary(trained(GPT2), 1 << 10)).library
    assert pre_tokens.split(b"a\xff b\xe4\xb8\xad \xf0") == ([0, 2, 7], 2)


def test_tokens_across_spaces_are_merged():
    content = across_words()
    device, _ = bridges(content)
    encoding = encode(device, *batch([b"so it is the end of the line, and the end is near"]))
    names = {i: name for name, i in content["model"]["vocab"].items()}
    tokens = [names[i] for i in encoding.ids_BP[0, : int(encoding.tokens_B[0])].tolist()]
    assert any("▁" in token.strip("▁") for token in tokens)


def test_a_model_token_that_is_also_an_added_token_is_spelled_as_the_library_decodes_it():
    content = gemma()
    vocabulary = read_vocabulary(content, 1 << 11)
    assert vocabulary.bytes_of([content["model"]["vocab"]["▁▁"]]) == b"  "
    assert vocabulary.bytes_of([content["model"]["vocab"]["<b>"]]) == b"<b>"


def more(content, name, *pair):
    """The content with one more token, which the first merge makes."""
    model = content["model"]
    return with_model(content, vocab={**model["vocab"], name: len(model["vocab"])}, merges=[list(pair), *model["merges"]])


def without_byte(content):
    vocab = {name: i for name, i in content["model"]["vocab"].items() if name != "<0x07>"}
    return with_model(content, vocab=vocab)


SPLIT = {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False}


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        (lambda c: c, SentencePieceBridge),
        (lambda c: with_model(c, fuse_unk=False, dropout=0.0), SentencePieceBridge),
        (lambda c: {**c, "pre_tokenizer": SPLIT}, SentencePieceBridge),
        (lambda c: {**c, "normalizer": None, "pre_tokenizer": SPLIT}, HostBridge),
        (lambda c: {**c, "pre_tokenizer": {"type": "Digits", "individual_digits": True}}, HostBridge),
        (lambda c: {**c, "normalizer": {"type": "Replace", "pattern": {"String": "q"}, "content": "k"}}, HostBridge),
        (lambda c: {**c, "normalizer": None}, HostBridge),
        (lambda c: with_model(c, byte_fallback=False), HostBridge),
        (lambda c: with_model(c, ignore_merges=True), HostBridge),
        (lambda c: with_model(c, later_setting=True), HostBridge),
        (lambda c: with_model(c, unk_token="e"), HostBridge),
        (without_byte, HostBridge),
        (lambda c: more(c, "LLL", "L", "LL"), SentencePieceBridge),
        (lambda c: more(c, "<0x07>e", "<0x07>", "e"), HostBridge),
        (
            lambda c: {**more(c, "LLL", "L", "LL"), "added_tokens": [{"id": 900, "content": "LLL", "special": True}]},
            HostBridge,
        ),
        (lambda c: unigram("first", False), HostBridge),
    ],
)
def test_settings_that_the_device_does_not_support_select_the_host_bridge(changed, kind):
    content = changed(legacy())
    assert isinstance(make_bridge(content, read_vocabulary(content, 1 << 11), Path("folder")), kind)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["llama", "gemma"])
def test_the_device_agrees_on_a_tokenizer_that_sentencepiece_trained(tmp_path, model_type):
    import sentencepiece

    rng = random.Random(6)
    lines = [chunk(rng).replace("\n", " ").replace("\0", "") for _ in range(2000)]
    (tmp_path / "text").write_text("\n".join([*lines, *["so it is the  end of    the line"] * 50]))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "text"),
        model_prefix=str(tmp_path / "tokenizer"),
        vocab_size=1500,
        model_type="bpe",
        byte_fallback=True,
        user_defined_symbols=["\n", "\n\n", "▁▁", "▁▁▁", "<b>"] if model_type == "gemma" else [],
        add_dummy_prefix=model_type == "llama",
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    AutoTokenizer.from_pretrained(tmp_path).save_pretrained(tmp_path / "out")
    agree(read_description(None, tmp_path / "out"), 10_000)
