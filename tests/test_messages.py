"""Messages of data sets: every field is used as it means or refused by name, and no thinking is lost."""

import re

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
    assert of({"prompt": [{"role": "user", "content": ["6 × ", {"type": "input_text", "text": "7?"}]}]}) == [USER]
    assert of({"conversations": {"from": ["human", "gpt"], "value": ["6 × 7?", "42"]}}) == SAID
    assert of({"messages": {"role": ["user", "assistant"], "content": ["6 × 7?", "42"], "name": [None, None]}}) == SAID


def test_speaker_and_text_have_either_pair_of_names_in_every_form():
    turns = [{"from": "human", "value": "6 × 7?"}, {"from": "gpt", "value": "42"}]
    assert of({"conversations": SAID}) == of({"messages": turns}) == of({"messages": SAID, "conversations": turns}) == SAID


@pytest.mark.parametrize("name", ["system_prompt", "system_message"])
def test_the_system_message_of_a_row_has_the_names_that_data_sets_give_it(name):
    system = {"role": "system", "content": "Be brief."}
    assert of({name: "Be brief.", "system": "", "prompt": "6 × 7?"}) == [system, USER]
    assert of({name: "Be brief.", "system": "Be brief.", "messages": [system, *SAID]}) == [system, *SAID]


def test_columns_that_hold_nothing_do_not_matter():
    empty = {"images": [], "tools": "[]", "chat_template_kwargs": {"thinking": None, "custom_instructions": ""}, "input": ""}
    assert of({"prompt": "6 × 7?", **empty}) == [USER]


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
    ({"conversations": [{"from": "human", "value": "a", "loss": False}]}, "holds `loss`, which would be dropped; move"),
    ({"prompt": "a", "tools": CALL}, "has `tools` beside `prompt`, which no model would see"),
    ({"messages": SAID, "tools": '[{"type": "function"}]'}, "has `tools` beside `messages`, which no model would see"),
    ({"messages": SAID, "images": ["a.png"]}, "has `images` beside `messages`, which no model would see"),
    ({"messages": SAID, "chat_template_kwargs": {"enable_thinking": False}}, "has `chat_template_kwargs` beside"),
    ({"prompt": "Add.", "input": "6, 7"}, "has `input` beside `prompt`, which no model would see"),
    ({"prompt": "Who?", "context": "Ann came."}, "has `context` beside `prompt`, .* move what the model should see"),
    ({"prompt": "a", "system": "b", "system_prompt": "c"}, "different system messages in `system` and `system_prompt`"),
    ({"prompt": "a", "system_prompt": ["b"]}, "system_prompt is a list of 1; it should be the text"),
    ({"messages": SAID, "conversations": [{"from": "human", "value": "8?"}]}, "different conversations in `messages` and"),
    ({"messages": [{"role": "r" * 9999, "content": "a"}]}, r"role is 'r{56}…; use `system`, `developer`"),
    ({"messages": [USER | {"k" * 9999: 1}]}, r"\[0\] \(user\) holds `k{57}…`, which would be dropped"),
    ({"prompt": "a", "system": 3}, "system is the number 3; it should be the text"),
    ({"system": "a", "messages": [{"role": "system", "content": "b"}, USER]}, "has `system` and a different system message"),
    ({"messages": [USER | {"content": [{"type": "image", "url": 1}]}]}, r"content\[0\] is .*'image'.*should be a text part"),
    ({"messages": [USER | {"content": []}]}, r"content is an empty list; it should be a string, or a list of text parts"),
    ({"messages": {"role": ["user"], "content": ["a", "b"]}}, r"different lengths \(1 in `role`, 2 in `content`\)"),
    ({"messages": {"role": "user", "content": "a"}}, "messages is an object of `content` and `role`; it should be a list"),
    ({"messages": [SAID[1] | {"reasoning": "on"}]}, "reasoning is the string 'on'; it should be the text of the thinking"),
    ({"messages": [SAID[1] | {"thinking": 3}]}, r"messages\[0\].thinking is the number 3"),
    ({"messages": [SAID[1] | {"thinking": "a", "reasoning": "b"}]}, "different thinking in `reasoning` and `thinking`"),
    ({"messages": [THOUGHT[1] | {"reasoning": "b"}]}, r"\[0\].reasoning holds thinking, and the text has <think>"),
    ({"messages": [SAID[1] | {"reasoning": "b</THINK>"}]}, r"reasoning holds thinking, and contains the tag </THINK>"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "says"), REFUSED)
def test_a_field_that_would_be_dropped_is_refused_by_name_with_its_value(row, says):
    with pytest.raises(DataError, match=says):
        of(row)


def test_a_column_of_thinking_beside_messages_is_in_the_last_message_or_refused():
    for value in (None, "", "on", "six sevens"):
        assert list(row_of({"messages": THOUGHT, "reasoning": value}, 0).messages) == THOUGHT
    with pytest.raises(DataError, match="has a column `reasoning` beside its messages, which would be dropped; move"):
        row_of({"messages": SAID, "reasoning": "six sevens"}, 0)


ANSWERED = {"prompt": "6 × 7?", "completion": "42"}
UNLEARNT = [
    (ANSWERED | {"label": False}, "has `label` false, which marks an answer that should not be learnt; leave out such rows"),
    (ANSWERED | {"train": "False"}, "has `train` false"),
    (ANSWERED | {"weight": 0}, "has the weight 0, but rows cannot have weights"),
    (ANSWERED | {"thought": "six sevens"}, "has a column `thought` beside its messages, which would be dropped"),
    (ANSWERED | {"messages": [USER, {"role": "assistant", "content": "41"}]}, "`prompt` and `completion` and in `messages`"),
    (ANSWERED | {"completion": " \n"}, "the assistant's last message is empty; it should hold an answer"),
    ({"messages": [USER]}, "the last message is of 'user'; it should be the assistant's"),
    (ANSWERED | {"prompt": '[{"role": "user", "content": "6 × 7?"}]'}, "prompt is a text that holds a list of messages"),
    (
        ANSWERED | {"prompt": "[{'content': '6 × 7?', 'role': 'user'}\n {'content'"},
        "prompt is a text that holds a list of",
    ),
    (ANSWERED | {"prompt": "<|im_start|>user\n6 × 7?<|im_end|>\n"}, "prompt begins with '<|im_start|>', so a chat"),
    (ANSWERED | {"prompt": "<s>[INST] 6 × 7? [/INST]"}, "prompt begins with '<s>[INST]', so a chat template has"),
    (ANSWERED | {"completion": "42<|im_end|>\n"}, "completion ends with '<|im_end|>\\n', so a chat template has"),
    ({"messages": [USER, {"role": "assistant", "content": "42<|eot_id|>"}]}, "messages[1] ends with '<|eot_id|>'"),
]


@pytest.mark.parametrize(("row", "says"), UNLEARNT)
def test_a_row_that_should_not_be_learnt_as_it_is_is_refused_by_name(row, says):
    with pytest.raises(DataError, match=re.escape(says)):
        row_of(row, 0)


def test_marks_that_say_learn_and_texts_that_mention_control_tokens_are_used():
    row = ANSWERED | {"label": True, "train": True, "weight": 1, "thought": "", "messages": SAID}
    assert list(row_of(row, 0).messages) == SAID
    for text in ("It ends with `<|im_end|>`", "A turn opens with <|im_start|>user", '[{"price": 3}]'):
        assert row_of({"prompt": text, "completion": text}, 0).content == text
