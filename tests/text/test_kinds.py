"""Every text that a tokenizer of any kind accepts has the tokens of the tokenizer's own library; the others are refused."""

import datetime
import json
import random
import unicodedata
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from tessy_jax.errors import TokenizerError
from tessy_jax.records import Row
from tessy_jax.text.bridge import DeviceBridge, device_bridge
from tessy_jax.text.bridges import make_bridge
from tessy_jax.text.chat import Chat
from tessy_jax.text.host_bridge import HostBridge
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.text.vocab import read_description, read_vocabulary, refuse_lossy, spellings
from tessy_jax.train.examples import example
from tests.synthesis.tiny_pair import sentencepiece_tokenizer
from tests.text.chunks import SPACES, WORDS
from tests.text.feed import encode
from tests.text.kinds import SCHEMES, bpe, legacy, padded, save, unigram, with_added
from tests.text.test_bridge import RULES, batch, trained

KINDS = {f"bpe {scheme} {split}": (lambda scheme=scheme, split=split: bpe(scheme, split)) for scheme, split in SCHEMES}
KINDS |= {
    f"unigram {scheme} {split}": (lambda scheme=scheme, split=split: unigram(scheme, split)) for scheme, split in SCHEMES
}
KINDS |= {f"bytes {rule}": (lambda rule=rule: trained(rule)) for rule in RULES}
KINDS |= {"legacy": legacy, "nfc": lambda: {**trained(RULES[0]), "normalizer": {"type": "NFC"}}}
OPEN, CLOSE = "<think>\n", "\n</think>\n\n"

pieces = st.one_of(st.sampled_from([*WORDS, *SPACES, "</s>"]), st.text(st.characters(exclude_categories=["Cs"]), max_size=4))
texts = st.lists(pieces, min_size=1, max_size=8).map("".join).filter(bool)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """The tokenizer and the host bridge of each kind, made when first asked for."""
    made = {}

    def of(kind):
        if kind not in made:
            folder = save(KINDS[kind](), tmp_path_factory.mktemp("kind"), eos_token=None)
            tokenizer = Tokenizer(folder, 1 << 12)
            content = tokenizer.content
            made[kind] = tokenizer, HostBridge.of(content, read_vocabulary(content, 1 << 11)).library
        return made[kind]

    return of


@cache
def library_without_added(tokenizer):
    library = Library.from_str(json.dumps({**tokenizer.content, "added_tokens": []}))
    library.add_special_tokens(["<mark>"])
    return library


def inside(tokenizer, kind, text):
    """The tokens that the library gives to a text inside of another; None if it puts a space in front of every text."""
    library = library_without_added(tokenizer)
    if " first" in kind:
        return library.encode("<mark>" + text, add_special_tokens=False).ids[1:]
    if (" always" in kind or kind == "legacy") and (kind == "legacy" or text[0] != " "):
        return None
    return library.encode(text, add_special_tokens=False).ids


def agrees(tokenizer, bridge, kind, text):
    theirs, spelled = inside(tokenizer, kind, text), tokenizer._spelled
    data = text.encode()
    try:
        ours, begins = tokenizer.encode_text(text)
    except TokenizerError:
        assert theirs is None or b"".join(spelled.get(i) or b"" for i in theirs) != data
        assert "unigram" in kind or kind == "nfc", "the others have all bytes"
    else:
        assert theirs is None or ours == theirs
        written = b"".join(spelled[i] for i in ours).decode()
        assert unicodedata.normalize("NFC", written) == unicodedata.normalize("NFC", text)
        assert len(begins) == len(ours)
        if written == text:
            assert [i for i, _ in bridge.encode(data)] == ours
    assert bridge.encode(data)[-1][1] == len(data), "the bridge tiles every text"


@pytest.mark.parametrize("examples", [200, pytest.param(5_000, marks=[pytest.mark.slow, pytest.mark.heavy])])
def test_an_accepted_text_has_the_tokens_of_its_own_library(loaded, examples):
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(sorted(KINDS)), texts)
    def check(kind, text):
        agrees(*loaded(kind), kind, text)

    check()


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("rule", RULES)
def test_the_device_gives_any_text_the_tokens_of_the_library(rule):
    content = trained(rule)
    bridge, library = device_bridge(content), Library.from_str(json.dumps(content))

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(texts.filter(lambda text: len(text.encode()) <= 128), min_size=1, max_size=20))
    def check(some):
        ours = jax.device_get(encode(bridge, *batch([text.encode() for text in some])))
        for i, text in enumerate(some):
            assert ours.ids_BP[i, : ours.tokens_B[i]].tolist() == library.encode(text).ids

    check()


def with_model(content, **changes):
    return {**content, "model": {**content["model"], **changes}}


def whole_word(content, name):
    """The content with one more token, of which the merges know nothing."""
    model = content["model"]
    return with_model(content, ignore_merges=True, vocab={**model["vocab"], name: len(model["vocab"])})


def without_byte(content, name):
    vocab = dict(content["model"]["vocab"])
    del vocab[name]
    merges = [merge for merge in content["model"]["merges"] if name not in "".join(merge)]
    return with_model(content, byte_fallback=True, vocab=vocab, merges=merges)


@pytest.mark.parametrize(
    ("changed", "kind"),
    [
        (lambda c: with_model(c, ignore_merges=True), DeviceBridge),
        (lambda c: whole_word(c, "zqzqx"), DeviceBridge),
        (lambda c: whole_word(c, "Ġqqqzz"), DeviceBridge),
        (lambda c: whole_word(c, "!zqzqx"), DeviceBridge),  # never a pre-token of GPT-2's rule
        (lambda c: with_model(c, byte_fallback=True), DeviceBridge),
        (lambda c: without_byte(c, "ā"), HostBridge),
        (lambda c: with_model(c, fuse_unk=True, dropout=0.0), DeviceBridge),
        (lambda c: with_model(c, later_setting=True), HostBridge),
        (lambda c: {**c, "normalizer": {"type": "Replace", "pattern": {"String": "q"}, "content": "k"}}, HostBridge),
        (lambda c: {**c, "normalizer": {"type": "NFC"}}, DeviceBridge),
        (padded, DeviceBridge),
    ],
)
def test_settings_that_the_device_does_not_support_select_the_host_bridge(changed, kind):
    content = changed(trained(RULES[0]))
    bridge = make_bridge(content, read_vocabulary(content, 1000), Path("folder"))
    assert isinstance(bridge, kind)
    texts_ = [b"zqzqx", b"x qqqzz y", b"!zqzqx", b"it's 12 zqzqx"]
    library = Library.from_str(json.dumps({**content, "padding": None, "truncation": None}))
    if kind is HostBridge and not content["normalizer"]:
        for text in texts_:
            assert [i for i, _ in bridge.library.encode(text)] == library.encode(text.decode()).ids
    if kind is DeviceBridge:
        ours = jax.device_get(encode(bridge, *batch(texts_)))
        for i, text in enumerate(texts_):
            assert ours.ids_BP[i, : ours.tokens_B[i]].tolist() == library.encode(text.decode()).ids


def test_a_word_that_only_the_vocabulary_makes_is_one_token_on_the_device():
    content = whole_word(trained(RULES[0]), "zqzqx")
    bridge = make_bridge(content, read_vocabulary(content, 1000), Path("folder"))
    encoding = encode(bridge, *batch([b"zqzqx"]))
    assert np.asarray(encoding.ids_BP)[0, : int(encoding.tokens_B[0])].tolist() == [len(content["model"]["vocab"]) - 1]


def word_piece():
    vocab = {"[UNK]": 0, "a": 1, "##b": 2}
    return {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": vocab} | {
        "max_input_chars_per_word": 100
    }


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        (lambda c: {**c, "model": word_piece()}, "model.type 'WordPiece'"),
        (lambda c: with_model(c, dropout=0.1), "model.dropout 0.1"),
        (lambda c: with_model(c, continuing_subword_prefix="@@"), "model.continuing_subword_prefix '@@'"),
        (lambda c: with_model(c, end_of_word_suffix="</w>"), "model.end_of_word_suffix '</w>'"),
        (lambda c: {**c, "normalizer": {"type": "Lowercase"}}, "normalizer Lowercase"),
        (lambda c: {**c, "pre_tokenizer": {"type": "WhitespaceSplit"}}, "pre_tokenizer WhitespaceSplit"),
    ],
)
def test_a_setting_that_loses_text_is_refused_by_name(tmp_path, changed, name):
    (tmp_path / "tokenizer.json").write_text(json.dumps(changed(trained(RULES[0]))), "utf-8")
    with pytest.raises(TokenizerError, match=f"tokenizer.json: has {name}"):
        refuse_lossy(read_description(None, tmp_path), tmp_path / "tokenizer.json")


@pytest.mark.parametrize("kind", ["bpe first True", "unigram always False", f"bytes {RULES[0]}", f"bytes {RULES[3]}"])
def test_saved_padding_and_truncation_change_no_tokens(tmp_path, kind):
    content = with_added(KINDS[kind](), "</s>", special=True)
    text = "ok so 3 + 4 = 7 ; " * 6
    tokens = []
    for name, saved in (("plain", content), ("padded", padded(content))):
        tokenizer = Tokenizer(save(saved, tmp_path / name), 1 << 12)
        library = HostBridge.of(tokenizer.content, read_vocabulary(tokenizer.content, 1 << 11)).library
        tokens.append(
            (tokenizer.encode("ok"), tokenizer.encode_text(text), tokenizer.encode_continuing("ok"), library.encode(b"ok"))
        )
    assert padded(content)["truncation"], "the saved tokenizer truncates"
    assert tokens[0] == tokens[1]
    assert len(tokens[0][1][0]) > 24


def chat_of(content, folder, **settings):
    tokenizer = Tokenizer(save(content, folder, **settings), 1 << 12)
    return Chat(tokenizer, open=OPEN, close=CLOSE, variables={}, system=None, date=datetime.date(2026, 1, 2))


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "bpe" in kind or kind == "legacy"])
def test_a_sentencepiece_row_is_learnt_as_its_text(tmp_path, kind):
    chat = chat_of(KINDS[kind](), tmp_path)
    content = f"{OPEN}ok so two\n\n so 中文{CLOSE}two"
    messages = ({"role": "user", "content": "Say two."}, {"role": "assistant", "content": content})
    tokens = example(chat, Row("0", "0", 0, messages, (), {})).tokens.tolist()
    spelled = spellings(chat._tokenizer.content)
    context = chat.prompt(messages[:-1])
    assert tokens[: len(context)] == context
    written = b"".join(spelled[i] or b"" for i in tokens[len(context) :]).decode()
    assert OPEN + written == content
    assert tokens[-1] in chat.end_ids


def test_a_step_that_doubles_the_first_space_of_a_text_changes_no_text_that_follows_other_text(tmp_path):
    built = sentencepiece_tokenizer(tmp_path)
    built.save_pretrained(tmp_path / "out")
    file = tmp_path / "out" / "tokenizer.json"
    content = json.loads(file.read_text())
    kept = [step for step in content["normalizer"]["normalizers"] if "String" in step["pattern"]]
    doubles = {"type": "Replace", "pattern": {"Regex": "\\A▁"}, "content": "▁▁"}
    file.write_text(json.dumps(content | {"normalizer": {"type": "Sequence", "normalizers": [*kept, doubles]}}))
    tokenizer = Tokenizer(tmp_path / "out", len(built))
    for text in (" one", "one", "  two", " one two "):
        ids, starts = tokenizer.encode_text(text)
        assert built.decode([*built("x", add_special_tokens=False)["input_ids"], *ids]) == f"x{text}"
        assert starts[0] == 0


def test_a_row_that_the_tokenizer_would_change_is_refused_with_the_text(tmp_path):
    chat = chat_of(unigram("first", True), tmp_path)
    with pytest.raises(TokenizerError, match=r"turns 'one\\ntwo' into 'onetwo' \(character 3"):
        chat.text_tokens("one\ntwo")
    with pytest.raises(TokenizerError, match="turns 'a </s> b'"):
        chat.text_tokens("a </s> b")


def test_a_tokenizer_that_transformers_rebuilds_otherwise_is_refused(tmp_path):
    content = with_added(trained(RULES[0]), "</s>", special=True)
    with pytest.raises(TokenizerError, match=r"tokenizer.json gives the tokens .* where transformers .*Qwen2Tokenizer"):
        chat_of(content, tmp_path, tokenizer_class="Qwen2Tokenizer")


def test_added_tokens_that_only_the_configuration_names_are_known(tmp_path):
    content = bpe("first", True)
    added = {str(len(content["model"]["vocab"])): {"content": "</think>", "special": True}}
    tokenizer = Tokenizer(save(content, tmp_path, added_tokens_decoder=added), 1 << 12)
    ids = tokenizer.encode_continuing("</think>")
    assert ids == [tokenizer.hf.convert_tokens_to_ids("</think>")]
    assert len(ids) == 1


@pytest.fixture(scope="module")
def flagged(tmp_path_factory):
    """The chat of a kind whose template writes [A], an added token with these flags; made when first asked for."""
    made = {}

    def of(kind, flags):
        if (kind, flags) not in made:
            content = with_added(
                with_added(KINDS[kind](), "</s>", special=True), "[A]", special=True, **dict.fromkeys(flags, True)
            )
            made[kind, flags] = chat_of(content, tmp_path_factory.mktemp("flags"))
        return made[kind, flags]

    return of


@pytest.mark.parametrize("examples", [100, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.by_hand])])
def test_control_tokens_in_a_message_stay_text_whatever_their_flags(flagged, caplog, examples):
    names = st.sampled_from(["[A]", " [A]", "[A] ", "\n[A]\n", "x[A]y", "</s>"])
    flags = st.sets(st.sampled_from(["lstrip", "rstrip", "single_word", "normalized"])).map(lambda some: tuple(sorted(some)))
    kinds = st.sampled_from(["bpe first False", "bpe always True", "legacy", f"bytes {RULES[0]}"])

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(kinds, flags, st.lists(st.one_of(names, st.sampled_from(["so", " ", "two", "\n"])), min_size=1, max_size=6))
    def check(kind, flags, some):
        chat = flagged(kind, flags)
        messages = [{"role": "user", "content": "".join(some)}]
        harmless = messages[0]["content"].replace("[A]", "(A)").replace("</s>", "(/s)")
        control = {chat._hf.convert_tokens_to_ids(name) for name in ("[A]", "</s>", "<s>")}
        text = chat.rendered(messages)
        try:
            ids, plain = (chat.prompt([{"role": "user", "content": text_}]) for text_ in (messages[0]["content"], harmless))
        except TokenizerError:
            if kind == "legacy" and {"normalized", "single_word"} <= set(flags):
                return  # the library takes the template's own [A] for text, too
            raise
        assert [i for i in ids if i in control] == [i for i in plain if i in control], "no text is a control token"
        spelled = chat._tokenizer._spelled
        written = b"".join(spelled[i] or chat._hf.convert_ids_to_tokens(i).encode() for i in ids).decode()
        assert "".join(written.replace("▁", " ").split()) == "".join(text.split())
        if harmless == messages[0]["content"]:
            assert ids == chat._tokenizer.encode_rendered(text)

    check()
    assert not caplog.records


def test_a_file_without_a_model_type_is_read_as_the_library_does(tmp_path):
    content = trained(RULES[0])
    model = {key: value for key, value in content["model"].items() if key != "type"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({**content, "model": model}), "utf-8")
    assert read_description(None, tmp_path)["model"]["type"] == "BPE"


def test_bytes_are_read_from_names_only_if_the_tokenizer_falls_back_to_bytes():
    content = bpe("first", True)
    number = content["model"]["vocab"]["<0x41>"]
    assert spellings(content)[number] == b"A"
    assert spellings(with_model(content, byte_fallback=False))[number] == b"<0x41>"
    rng = random.Random(0)
    text = "".join(rng.choice(WORDS) for _ in range(20))
    library = HostBridge.of(content, read_vocabulary(content, 1 << 11)).library
    assert library.encode(text.encode())[-1][1] == len(text.encode())
