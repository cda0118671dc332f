"""Every combination of settings of a tokenizer.json gives the tokens of its own library and keeps text, or is refused."""

import json
import re
import unicodedata
from functools import cache, cached_property

import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Library

from tessy_jax.errors import TokenizerError
from tessy_jax.text.bridges import make_bridge
from tessy_jax.text.host_bridge import HostBridge
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.text.vocab import read_description, read_vocabulary
from tests.text.chunks import SPACES, WORDS
from tests.text.feed import encode
from tests.text.kinds import bpe, legacy, unigram
from tests.text.test_bridge import RULES, P, batch, trained

SIZE = 1 << 11
KINDS = {
    "bytes": lambda: trained(RULES[0]),
    "bytes of qwen": lambda: trained(RULES[3]),
    "bpe": lambda: bpe("first", False),
    "unigram": lambda: unigram("always", True),
    "legacy": legacy,
}


@cache
def base_of(kind):
    return KINDS[kind]()


SPLIT = {"type": "Split", "pattern": {"Regex": r"\s+|\w+"}}
BEHAVIORS = st.sampled_from(["Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous"])
SCHEMES = st.sampled_from(["first", "always", "never"])
same = st.just("as it is")
normalizers = st.one_of(
    same,
    st.none(),
    st.sampled_from(
        [{"type": name} for name in ("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel")]
    ),
    st.builds(lambda a, b: {"type": "Strip", "strip_left": a, "strip_right": b}, st.booleans(), st.booleans()),
    st.builds(
        lambda a, b: {"type": "Replace", "pattern": {"String": a}, "content": b},
        *[st.sampled_from(["q", " ", "▁", "th", "ſ"])] * 2,
    ),
    st.sampled_from([{"type": "Prepend", "prepend": prepended} for prepended in ("▁", "_", " ")]),
)
pre_tokenizers = st.one_of(
    same,
    st.none(),
    st.builds(
        lambda a, b: {"type": "ByteLevel", "add_prefix_space": a, "trim_offsets": True, "use_regex": b},
        st.booleans(),
        st.booleans(),
    ),
    st.builds(
        lambda a, b: {"type": "Metaspace", "replacement": "▁", "prepend_scheme": a, "split": b}, SCHEMES, st.booleans()
    ),
    st.builds(lambda a: {"type": "Digits", "individual_digits": a}, st.booleans()),
    st.builds(lambda a: {"type": "Punctuation", "behavior": a}, BEHAVIORS),
    st.builds(lambda a, b: SPLIT | {"behavior": a, "invert": b}, BEHAVIORS, st.booleans()),
    st.sampled_from([{"type": name} for name in ("Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts")]),
    st.just({"type": "CharDelimiterSplit", "delimiter": "a"}),
    st.just({"type": "FixedLength", "length": 3}),
)
decoders = st.one_of(same, st.none(), st.sampled_from([{"type": "Fuse"}, {"type": "ByteFallback"}]))
models = st.fixed_dictionaries(
    {},
    optional={
        "dropout": st.sampled_from([None, 0.0, 0.5]),
        "unk_token": st.sampled_from([None, "<unk>", "e"]),
        "fuse_unk": st.booleans(),
        "byte_fallback": st.booleans(),
        "ignore_merges": st.booleans(),
        "continuing_subword_prefix": st.sampled_from([None, "", "##"]),
        "end_of_word_suffix": st.sampled_from([None, "", "</w>"]),
    },
)
added = st.lists(
    st.fixed_dictionaries(
        {"content": st.sampled_from(["<think>", "</think>", "[A]", "  ", "\n\n", "the", "é", "\u00a0"])}
        | {flag: st.booleans() for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")}
    ),
    max_size=3,
    unique_by=lambda token: token["content"],
)
around = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
}
around |= {"pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}]}
around |= {"special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
pad = {
    "strategy": {"Fixed": 9},
    "direction": "Left",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "!",
}
BARE = {"truncation": None, "padding": None, "post_processor": None}
frames = st.sampled_from([{}, {"post_processor": around}, {"truncation": cut}, {"padding": pad}])
pieces = st.one_of(
    st.sampled_from([*WORDS, *SPACES, "<think>", "</think>", "[A]", "▁", "<unk>", "q", "ſ"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
)
texts = st.lists(pieces, min_size=1, max_size=8).map("".join).filter(bool)


def steps(drawn, kept, key):
    """A setting of one or two steps."""
    chosen = [part for step in drawn for part in ([kept] if step == "as it is" else [step]) if part]
    return {"type": "Sequence", key: chosen} if len(chosen) > 1 else chosen[0] if chosen else None


@st.composite
def contents(draw):
    base = base_of(draw(st.sampled_from(sorted(KINDS))))
    model = base["model"] | (draw(models) if base["model"]["type"] == "BPE" else {})
    first = max([len(model["vocab"]), *(token["id"] + 1 for token in base["added_tokens"])])
    tokens = [token | {"id": first + i} for i, token in enumerate(draw(added))]
    return {
        **base,
        "model": model,
        "normalizer": steps(draw(st.lists(normalizers, min_size=1, max_size=2)), base["normalizer"], "normalizers"),
        "pre_tokenizer": steps(
            draw(st.lists(pre_tokenizers, min_size=1, max_size=2)), base["pre_tokenizer"], "pretokenizers"
        ),
        "decoder": steps([draw(decoders)], base["decoder"], "decoders"),
        "added_tokens": [*base["added_tokens"], *tokens],
        **draw(frames),
    }


class FileAlone(Tokenizer):
    """The tokenizer of a tokenizer.json without transformers, which would take most of the time."""

    def __init__(self, folder):
        self.folder, self.vocab = folder, SIZE

    @cached_property
    def description(self):
        return read_description(None, self.folder)


def inside(content, text):
    """The tokens that the library gives to a text inside of another; None if it puts a space in front of every text."""
    settings_ = str(content["normalizer"]) + str(content["pre_tokenizer"])
    if "Prepend" in settings_ or "'add_prefix_space': True" in settings_ or "'always'" in settings_:
        return None
    library = Library.from_str(json.dumps({**content, **BARE, "added_tokens": []}))
    library.add_special_tokens(["<mark>"])
    return library.encode("<mark>" + text).ids[1:]


def accepts(content, text, folder, on_device):
    """Checks one text in all ways; returns whether the settings and the text are accepted."""
    try:
        library = Library.from_str(json.dumps({**content, **BARE}))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return False  # no tokenizer to the library itself, which panics at some
    if library.normalizer is not None:
        names = [library.normalizer.normalize_str(token["content"]) for token in content["added_tokens"]]
        if len(set(names)) < len(names):
            return False  # of added tokens with one name, the library takes any
    (folder / "tokenizer.json").write_text(json.dumps(content), "utf-8")
    tokenizer = FileAlone(folder)
    try:
        _ = tokenizer.content
    except TokenizerError as error:
        return re.search("has (model|normalizer|pre_tokenizer)", str(error)) is None
    try:
        complete = library.encode(text, add_special_tokens=False)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        with pytest.raises(TokenizerError, match="the tokenizer fails on the text"):
            tokenizer.encode_with_places(text)
        return False
    assert tokenizer.encode_with_places(text) == [
        (token, *place) for token, place in zip(complete.ids, complete.offsets, strict=True)
    ]
    try:
        ids, begins = tokenizer.encode_text(text)
    except TokenizerError:
        return False
    spelled = b"".join(tokenizer._spelled[i] or b"" for i in ids).decode()
    assert unicodedata.normalize("NFC", spelled) == unicodedata.normalize("NFC", text)
    assert len(begins) == len(ids)
    assert all(0 <= begin < len(text) for begin in begins)
    theirs = inside(content, text)
    assert theirs is None or ids == theirs
    vocabulary = read_vocabulary(tokenizer.content, SIZE)
    tokens, ends = zip(*HostBridge.of(tokenizer.content, vocabulary).library.encode(text.encode()), strict=True)
    assert ends[-1] == len(text.encode())
    bridge = make_bridge(tokenizer.content, vocabulary, folder)
    if spelled == text:
        assert list(tokens) == ids
        if not isinstance(bridge, HostBridge) and on_device and len(text.encode()) <= P:
            encoding = jax.device_get(encode(bridge, *batch([text.encode()])))
            assert encoding.ids_BP[0, : encoding.tokens_B[0]].tolist() == ids
    return True


@pytest.mark.parametrize("examples", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.by_hand])])
def test_every_tokenizer_gives_the_tokens_of_its_library_or_is_refused(tmp_path, examples):
    accepted = []

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(contents(), texts)
    def check(content, text):
        accepted.append(accepts(content, text, tmp_path, on_device=examples > 200))

    check()
    assert sum(accepted) > examples / 20
