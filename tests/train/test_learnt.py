"""Rows in every form, with any text: the text of a row is learnt token for token, or the row is refused by name."""

import datetime
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tessy_jax.errors import DataError
from tessy_jax.text.chat import Chat
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.train.data import row_of
from tessy_jax.train.examples import example
from tests.text.tiny_tokenizer import save_tokenizer

SPEAKERS = {"user": "human", "assistant": "gpt"}
EXAMPLES = pytest.mark.parametrize("examples", [200, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.by_hand])])
MARKS = re.compile(r"</?think(?:ing)?>|\s", re.IGNORECASE)
SUSPECT = re.compile(r"think|channel|reason|thought|scratchpad", re.IGNORECASE)

PLAIN = ["a", "42", " ", "\n", "\r\n", "\t", "`", "```\n", "<", "|", "<|end|>", "<|user|>", "<|assistant|>", "[A]", "&lt;"]
PRIVATE = [
    "\uf8fe",
    "\uf8ff",
    "\uf8fe0\uf8ff",
    "\uf8fe1\uf8ff9",
    "\u2028",
    "\u2029",
    "\x85",
    "\x00",
    "\ufeff",
    "👍🏽",
    "e\u0301",
]
TAGS = [
    "<think>",
    "</think>",
    "<think>\n",
    "\n</think>\n\n",
    "</THINK>\n",
    "<thinking>",
    "</thinking>",
    "<|channel|>",
    "[THINK]",
]
plain = st.lists(
    st.one_of(st.sampled_from(PLAIN + PRIVATE), st.text(st.characters(exclude_categories=["Cs"]), max_size=4)), max_size=6
).map("".join)
tagged = st.lists(st.one_of(st.sampled_from(TAGS), plain), max_size=5).map("".join)
broken = st.text(st.characters(categories=["Cs"]), min_size=1, max_size=1)
nothing = st.dictionaries(
    st.sampled_from(["name", "tool_calls", "weight", "refusal", "metadata", "id"]),
    st.sampled_from([None, "", [], {}]),
    max_size=2,
)


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tmp_path_factory.mktemp("student")
    save_tokenizer(folder)
    tokenizer = Tokenizer(folder, 1 << 12).hf
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(folder)
    return Chat(Tokenizer(folder, 1 << 12), open=None, close=None, variables={}, system=None, date=datetime.date(2026, 1, 2))


def rendered(turns, thinking, answer):
    """The text that the student reads and learns, written without the package."""
    context = "".join(f"<|{role}|>{text}<|end|>" for role, text in turns)
    thought = "" if thinking is None else f"<think>\n{thinking}\n</think>\n\n"
    return f"{context}<|assistant|>{thought}{answer}<|end|>"


def learnt(chat, row):
    """The text and the added tokens that are learnt, or why the row is refused."""
    try:
        return *spelled(chat, row), ""
    except DataError as error:
        return "", [], str(error)


def spelled(chat, row):
    tokens = example(chat, row_of(row, 0)).tokens.tolist()
    hf = chat._tokenizer.hf
    text = hf.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text, [token for token in tokens if token in hf.added_tokens_decoder]


@st.composite
def conversations(draw, texts):
    """Turns, thinking, answer, and a row that holds them in one of the forms."""
    speakers = ["user", *draw(st.sampled_from([[], ["assistant", "user"], ["assistant", "user", "assistant", "user"]]))]
    turns = [(role, draw(texts)) for role in speakers]
    if draw(st.booleans()):
        turns.insert(0, ("system", draw(texts)))
    thinking = draw(st.one_of(st.none(), texts.map(str.strip)))
    answer = draw(texts)
    way = draw(st.sampled_from(["field", "tags", "bare", "capitals"]))
    form = draw(st.sampled_from(["messages", "dialogs", "conversations", "lists", "completion", "system"]))
    last = {"content": answer}
    if thinking is not None and way == "field":
        last |= {draw(st.sampled_from(["reasoning_content", "reasoning", "thinking"])): thinking or "\n"}
    elif thinking is not None:
        opens, closes = {
            "tags": ("<think>\n", "\n</think>\n\n"),
            "bare": ("<think>", "</think>"),
            "capitals": ("<THINK>\n", "</Think>\n"),
        }[way]
        last = {"content": f"{opens}{thinking}{closes}{answer}"}
    return turns, thinking, answer, row_in(draw, form, turns, last)


def row_in(draw, form, turns, last):
    context = [{"role": role, "content": parted(draw, text)} for role, text in turns]
    row = {"id": draw(st.sampled_from([None, 7, "seven"]))}
    if form == "completion":
        prompt = context[0]["content"] if len(context) == 1 and isinstance(context[0]["content"], str) else context
        reasoning = {name: text for name, text in last.items() if name != "content"}
        return row | {"prompt": prompt, "completion": last["content"], **reasoning}
    if form == "system" and turns[0][0] == "system" and turns[0][1]:
        row, context = row | {"system": turns[0][1]}, context[1:]
    messages = [message | draw(nothing) for message in (*context, {"role": "assistant", **last})]
    if form == "conversations":
        messages = [
            {"from": SPEAKERS.get(m["role"], m["role"]), "value": m["content"]}
            | {name: value for name, value in m.items() if name not in ("role", "content")}
            for m in messages
        ]
    if form == "lists":
        names = {name for message in messages for name in message}
        return row | {"messages": {name: [message.get(name) for message in messages] for name in names}}
    return row | {form if form in ("dialogs", "conversations") else "messages": messages}


def parted(draw, text):
    """The text, or parts of it."""
    if not text or draw(st.booleans()):
        return text
    cut = draw(st.integers(0, len(text)))
    return [{"type": "text", "text": part, "image_url": None} for part in (text[:cut], text[cut:])]


def checked(examples, check, *strategies):
    settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))(given(*strategies)(check))()


@EXAMPLES
def test_a_row_of_any_form_is_learnt_as_its_text_says(chat, examples):
    control = {name: chat._tokenizer.hf.convert_tokens_to_ids(name) for name in ("<|end|>", "<think>", "</think>")}

    def check(case):
        turns, thinking, answer, row = case
        text = rendered(turns, thinking, answer)
        row = json.loads(json.dumps(row))
        if SUSPECT.search(f"{thinking}{answer}"):
            return
        learnt_text, added, refused = learnt(chat, row)
        if not answer.strip():
            assert re.search("last message is empty|no answer after it", refused)
            return
        if "`" in answer and "never closes it" in refused:
            return  # backticks of the thinking and of the answer enclose the closing tag
        assert not refused
        if thinking is None or row_of(row, 0).content.startswith("<think>\n"):
            assert learnt_text == text
        assert MARKS.sub("", learnt_text) == MARKS.sub("", text)
        spoken = [control["<|end|>"]] * (len(turns) + 1)
        assert [token for token in added if token in spoken] == spoken
        assert [added.count(control[name]) for name in ("<think>", "</think>")] == [thinking is not None] * 2

    checked(examples, check, conversations(plain))


@EXAMPLES
def test_rows_with_tags_anywhere_lose_no_text_and_repeat_no_tag(chat, examples):
    def check(case):
        turns, thinking, answer, row = case
        learnt_text, added, refused = learnt(chat, row)
        if refused:
            assert re.search("think|learnt as plain text|last message is empty", refused)
            return
        assert MARKS.sub("", learnt_text) == MARKS.sub("", rendered(turns, thinking, answer))
        names = chat._tokenizer.hf.convert_ids_to_tokens(added)
        assert (names.count("<think>"), names.count("</think>")) in ((0, 0), (1, 1))

    checked(examples, check, conversations(tagged))


@EXAMPLES
def test_a_row_with_something_that_would_be_dropped_is_refused_by_its_name(examples):
    def check(case, name, value, number):
        _, _, _, row = case
        form = next((form for form in ("messages", "dialogs", "conversations") if isinstance(row.get(form), list)), None)
        if form is None:
            return
        message = row[form][number % len(row[form])]
        message[name] = value
        with pytest.raises(DataError, match=f"`{name}`|tools"):
            row_of(row, 0)

    names = st.sampled_from(["tool_calls", "name", "loss", "audio", "thought", "refusal"])
    checked(examples, check, conversations(plain), names, st.sampled_from([0, False, "x", [1], {"a": 1}]), st.integers(0, 9))


@EXAMPLES
def test_any_json_is_a_row_or_is_refused(chat, examples):
    words = st.sampled_from(["messages", "role", "content", "user", "assistant", "prompt", "completion", "text", "type"])
    leaves = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), plain, tagged, broken, words)
    keys = st.one_of(words, st.sampled_from(["conversations", "from", "value", "system", "reasoning", "spans", "id"]), plain)
    values = st.recursive(
        leaves, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)), max_leaves=12
    )

    def check(value):
        _, added, refused = learnt(chat, value)
        assert bool(added) != bool(refused)

    checked(examples, check, values)


def test_half_a_surrogate_pair_is_refused_with_its_field(chat):
    for row, field in (
        ({"prompt": "a\ud800", "completion": "b"}, "prompt"),
        ({"prompt": "a", "completion": "b\udc00"}, "completion"),
        ({"prompt": "a", "completion": "b", "reasoning": "\ud800"}, "reasoning"),
        ({"prompt": "a", "completion": "b", "id": "\ud800"}, "id"),
        ({"system": "\ud800", "messages": [{"role": "user", "content": "a"}]}, "system"),
    ):
        with pytest.raises(DataError, match=f"{field} holds half of a surrogate pair"):
            row_of(row, 0)
