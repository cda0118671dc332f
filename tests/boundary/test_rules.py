"""The list of phrases matches any text by its documented rules."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.boundary.rules import Rules, read_lexicon
from tessy_jax.boundary.segments import Segment
from tessy_jax.boundary.spans import Annotation
from tessy_jax.errors import ConfigError

RULES = Rules(None)
pieces = st.lists(
    st.sampled_from(
        ["so", "So", "wait", "Let me check", "x = 3", ".", ",", " ", "\n", "  ", "’", "now", "é", "😀", "(", "- "]
    ),
    max_size=20,
).map("".join)


def matches(text, begins=False, rules=RULES):
    return [text[start:end] for start, end in rules.spans(text, begins=begins)]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("x = 3, wait, y", ["wait,"]),
        ("WAIT a minute. y", ["WAIT a minute."]),
        ("Okay, so the user wants me to add", ["Okay, so the user wants me to"]),
        ("y. Hmm... let’s see:\n  So x", ["Hmm... let’s see:\n  So"]),
        ("x, so y and now z", []),
        ("x. So y; and now z? But first, w", ["So", "and now", "But first,"]),
        ("x:\n- So y\n  2. now z", ["So", "now"]),
        ("waiting so-called wait.x now.year $wait wait(3) `wait` wait=3 await wait's", []),
        ("a.  Second, b. Second b", ["Second,"]),
        ("let me\nthink  about\tthis", ["let me\nthink  about\tthis"]),
        ("I think so", ["I think so"]),
        ("", []),
    ],
)
def test_phrases_are_found_by_the_documented_rules(text, spans):
    assert matches(text) == spans


def test_an_opening_phrase_at_the_start_of_a_text_counts_where_the_trace_begins():
    assert matches("So x") == []
    assert matches("So x", begins=True) == ["So"]
    segments = [Segment("r#0", "r", "train", start, "So x") for start in (0, 7)]
    assert [len(a.spans) for a in RULES.annotate(segments)] == [1, 0]


def test_a_text_without_phrases_is_kept_without_spans():
    segment = Segment("r#0", "r", "train", 0, "x = 3")
    assert RULES.annotate([segment]) == [Annotation(segment, (), "rules")]


@given(st.one_of(pieces, st.text(st.characters(exclude_categories=["Cs"]), max_size=80)), st.booleans())
def test_spans_are_sorted_disjoint_not_blank_and_without_surrounding_white_space(text, begins):
    spans = RULES.spans(text, begins=begins)
    assert spans == RULES.spans(text, begins=begins)
    at = 0
    for start, end in spans:
        assert at <= start < end <= len(text)
        assert text[start:end] == text[start:end].strip()
        assert not text[at:start].isspace() or at == 0
        at = end
    if text.isascii():
        assert RULES.spans(text.upper(), begins=begins) == spans


def test_every_phrase_of_the_shipped_list_is_matched():
    phrases = read_lexicon(None)
    assert sum(map(len, phrases.values())) > 150
    for phrase in phrases["anywhere"]:
        assert matches(f"x {phrase} x") == [phrase]
    for phrase in phrases["opening"]:
        assert matches(f"x. {phrase} x") == [phrase]


def test_a_given_file_replaces_the_list_and_the_longest_phrase_counts(tmp_path):
    file = tmp_path / "own.json"
    file.write_text(json.dumps({"anywhere": ["tja", "tja nun also"], "opening": ["also"]}))
    rules = Rules(str(file))
    assert matches("wait tja x, tja nun also y. Also z", rules=rules) == ["tja", "tja nun also", "Also"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read as JSON"),
        ([], "holds a list; it should hold anywhere and opening"),
        ({"anywhere": ["a"], "always": []}, "holds anywhere, always; it should hold anywhere and opening"),
        ({"anywhere": "wait"}, "anywhere is a str; it should be a list of phrases"),
        ({"anywhere": ["a", 3]}, r"anywhere\[1\] is a int; it should be a phrase"),
        ({"opening": ["so", "  "]}, r"opening\[1\] is '  '; a phrase begins with a letter"),
        ({"opening": [", so"]}, r"opening\[0\] is ', so'; a phrase begins with a letter"),
        ({"opening": [","]}, r"opening\[0\] is ','; a phrase begins with a letter"),
        ({"anywhere": ["Let’s  see"], "opening": ["let's see"]}, r"opening\[0\] is \"let's see\", as is anywhere\[0\]"),
        ({"about": "nothing"}, "holds no phrases; list some under anywhere or opening"),
    ],
)
def test_a_malformed_list_is_refused_with_the_reason(tmp_path, content, message):
    file = tmp_path / "own.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=f"own.json: {message}"):
        Rules(str(file))


def test_a_missing_list_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        Rules(str(tmp_path / "own.json"))
