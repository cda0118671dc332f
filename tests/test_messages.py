"""Messages of data sets: every field is used as it means or refused by name, and no thinking is lost."""

import pytest

from tessy_jax.errors import DataError
from tessy_jax.records import CLOSE, OPEN
from tessy_jax.store.messages import messages_of
from tessy_jax.train.data import row_of

FORMS = ("messages", "prompt", "conversations")
USER = {"role": "user", "content": "6 × 7?"}
SAID = [USER, {"role": "assistant", "content": "42"}]
THOUGHT = [USER, {"role": "assistant", "content": f"{OPEN}six sevens{CLOSE}42"}]


def of(row):
    return messages_of(row, FORMS)[1]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_the_reasoning_of_a_message_or_of_a_completion_is_its_thinking(field):
    assert of({"messages": [USER, {"role": "assistant", field: "six sevens\n", "content": "42"}]}) == THOUGHT
    assert of(
        {"conversations": [{"from": "human", "value": "6 × 7?"}, {"from": "gpt", field: "six sevens", "value": "42"}]}
    ) == (THOUGHT)
    assert list(row_of({"prompt": "6 × 7?", field: "six sevens", "completion": "42"}, 0).messages) == THOUGHT
    assert of({"messages": [USER, {"role": "assistant", field: None, "content": "42"}]}) == SAID


def test_text_parts_are_one_text_and_lists_side_by_side_are_messages():
    parts = [{"type": "text", "text": "6 × ", "image_url": None}, {"type": "text", "text": "7?"}]
    assert of({"prompt": [{"role": "user", "content": parts}]}) == [USER]
    assert of({"conversations": {"from": ["human", "gpt"], "value": ["6 × 7?", "42"]}}) == SAID
    assert of({"messages": {"role": ["user", "assistant"], "content": ["6 × 7?", "42"], "name": [None, None]}}) == SAID


def test_the_system_message_of_a_row_precedes_its_messages_once():
    system = {"role": "system", "content": "Be brief."}
    assert of({"system": "Be brief.", "conversations": [{"from": "human", "value": "6 × 7?"}]}) == [system, USER]
    assert of({"system": "Be brief.", "messages": [system, USER]}) == [system, USER]
    assert of({"system": "", "tools": "[]", "prompt": "6 × 7?"}) == [USER]
    row = row_of({"system": "Be brief.", "prompt": "6 × 7?", "completion": "42"}, 0)
    assert list(row.messages) == [system, *SAID]


@pytest.mark.parametrize("role", ["developer", "tool"])
def test_roles_that_only_some_templates_know_are_read(role):
    given = [{"role": role, "content": "a"}, USER]
    assert of({"messages": given}) == given
    assert of({"conversations": [{"from": m["role"], "value": m["content"]} for m in given]}) == given


CALL = [{"function": {"name": "f", "arguments": "{}"}}]
REFUSED = [
    ({"messages": [SAID[1] | {"content": None, "tool_calls": CALL}]}, r"messages\[0\] \(assistant\) holds `tool_calls`"),
    ({"messages": [USER | {"name": "Ann", "weight": 0}]}, r"\[0\] \(user\) holds `name` and `weight`, which would"),
    ({"messages": [USER | {"reasoning": "hm"}]}, r"messages\[0\] \(user\) holds `reasoning`"),
    ({"conversations": [{"from": "human", "value": "a", "loss": False}]}, "holds `loss`, which would be dropped; write"),
    ({"prompt": "a", "tools": CALL}, "has tools, which no model would see"),
    ({"prompt": "a", "system": 3}, "system is the number 3; it should be the text"),
    ({"system": "a", "messages": [{"role": "system", "content": "b"}, USER]}, "has `system` and another system message"),
    ({"messages": [USER | {"content": [{"type": "image", "url": 1}]}]}, r"is a list whose part 0 is .*'image'.* only texts"),
    ({"messages": [USER | {"content": []}]}, r"content is an empty list; it should be a string, or a list of text parts"),
    ({"messages": {"role": ["user"], "content": ["a", "b"]}}, r"different lengths \(1 in `role`, 2 in `content`\)"),
    ({"messages": {"role": "user", "content": "a"}}, "messages is an object of `content` and `role`; it should be a list"),
    ({"messages": [SAID[1] | {"reasoning": "on"}]}, "reasoning is the string 'on'; it should be the text of the thinking"),
    ({"messages": [SAID[1] | {"thinking": 3}]}, r"messages\[0\].thinking is the number 3"),
    ({"messages": [SAID[1] | {"thinking": "a", "reasoning": "b"}]}, "different thinking in `reasoning` and `thinking`"),
    ({"messages": [THOUGHT[1] | {"reasoning": "b"}]}, r"\[0\].reasoning holds thinking, and the text has <think>"),
    ({"messages": [SAID[1] | {"reasoning": "b</THINK>"}]}, r"reasoning holds thinking, and its field has </THINK>"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "says"), REFUSED)
def test_what_would_be_dropped_is_refused_by_name_with_its_value(row, says):
    with pytest.raises(DataError, match=says):
        of(row)


def test_a_column_of_thinking_beside_messages_is_in_the_last_message_or_refused():
    for held in (None, "", "on", "six sevens"):
        assert list(row_of({"messages": THOUGHT, "reasoning": held}, 0).messages) == THOUGHT
    with pytest.raises(DataError, match="has `reasoning` beside its messages, which would be dropped; write it into"):
        row_of({"messages": SAID, "reasoning": "six sevens"}, 0)
