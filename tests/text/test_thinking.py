"""Thinking in any usual form is found with its exact ends, and markers elsewhere are never taken for text."""

import pytest

from tessy_jax.errors import DataError
from tessy_jax.records import CLOSE, OPEN
from tessy_jax.text.thinking import check, find

ANSWER = "    4\nis 2 + 2"


def parts(content, markers=(OPEN, CLOSE)):
    thinking = find(content, *markers)
    check(content, thinking, *markers)
    return None if thinking is None else (content[thinking.start : thinking.end], content[thinking.answer :])


@pytest.mark.parametrize(
    "content",
    [
        f"{OPEN}two\n  and two{CLOSE}{ANSWER}",
        f"<think>two\n  and two</think>\n{ANSWER}",
        f"\n\n<think>\r\ntwo\n  and two\n\n</think>\r\n\r\n{ANSWER}",
        f"<think> two\n  and two </think>\n\n\n{ANSWER}",
        f"two\n  and two\n</think>\n\n{ANSWER}",
        f"\ntwo\n  and two</think>  \n{ANSWER}",
        f"<thinking>\ntwo\n  and two\n</thinking>\n{ANSWER}",
        f"<THINK>two\n  and two</Think>\n{ANSWER}",
    ],
)
@pytest.mark.parametrize("markers", [(OPEN, CLOSE), ("<reason>", "</reason>")])
def test_every_usual_form_has_the_same_thinking_and_answer(content, markers):
    assert parts(content, markers) == ("two\n  and two", ANSWER)


def test_the_students_own_markers_keep_every_character_between_them():
    assert parts(f"{OPEN} a \n{CLOSE}\n b") == (" a \n", "\n b")
    assert parts("<reason>a</reason>b", ("<reason>", "</reason>")) == ("a", "b")
    assert parts(f"{OPEN}{CLOSE}a") == ("", "a")
    assert parts("<think></think>a") == ("", "a")
    assert parts("<think>a</think>") == ("a", "")


def test_an_answer_without_markers_or_with_tags_in_code_has_no_thinking():
    assert parts("a < b, I [think]") is None
    assert parts("Write `<think>` first and `</think>` last, or `<think> </think>`.") is None
    assert parts("So:\n```xml\n<think>a</think>\n```\nor\n~~~\n<|channel|>analysis\n~~~") is None
    assert parts("Give a <reason>, <rethink>, <think-tank> or <a_thought>.") is None
    assert parts("You said: here is my thought process: none.") is None
    assert parts("<think>a `</think>` b</think>c `<think>`") == ("a `</think>` b", "c `<think>`")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("<think>a", "opens its thinking with '<think>' and never closes it with '</think>'"),
        (f"{OPEN}a", "never closes"),
        ("<thinking>a", "never closes it with '</thinking>'"),
        ("a</think>b", r"has '</think>' at character 1, where it would be learnt as plain text"),
        ("Well.\n<think>a</think>\nb", r"has '<think>' at character 6"),
        ("<think>a</think>b\n<think>c</think>", r"has '<think>' at character 18"),
        ("<think>a<think>b</think>c", "has '<think>' at character 8"),
        ("<think>\n<think>\na\n</think>\n\nb", "has '<think>' at character 8"),
        ("<think>a\n```\n</think>\n```\n</think>\n```\nb\n```", "has '</think>' at character"),
        ("`<think>\na\n</think>\n\nb", "has '<think>' at character 1"),
        (" <reasoning>a</reasoning>b", "has '<reasoning>' at character 1"),
        ("&lt;think&gt;a&lt;/think&gt;b", "has '&lt;think' at character 0"),
        ("\u25c1think\u25b7a\u25c1/think\u25b7b", "at character 0"),
        ("<|channel|>final<|message|>a", r"has '<\|channel\|>' at character 0"),
        ("<|begin_of_thought|>a<|end_of_thought|>b", r"has '<\|begin_of_thought\|>' at character 0"),
        ("<|START_THINKING|>a<|END_THINKING|>b", r"has '<\|START_THINKING\|>' at character 0"),
        ("<longcat_think>a</longcat_think>b", "has '<longcat_think>' at character 0"),
        ("<|think_start|>a<|think_end|>b", r"has '<\|think_start\|>' at character 0"),
        ("<unused94>thought\na<unused95>b", "has '<unused94>' at character 0"),
        ("Here is my thought process:\na\nHere is my response:\nb", "has 'Here is my thought process:' at character 0"),
        ("[THINK]a[/THINK]b", r"has '\[THINK\]' at character 0"),
    ],
)
def test_markers_in_any_other_place_are_refused_with_their_place(content, says):
    with pytest.raises(DataError, match=says):
        parts(content)


def test_markers_that_are_ordinary_words_are_read_only_where_they_open_the_answer():
    words = ("Thought:", "Answer:")
    assert parts("Thought: six. Answer: 42", words) == (" six. ", " 42")
    assert parts("So.\nAnswer:\n42", words) is None
