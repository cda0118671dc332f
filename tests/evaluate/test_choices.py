"""A choice is named, and a whole number given, as the rules say; published tables of both kinds become problems."""

import json
import re
import time
from string import ascii_uppercase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import DataError
from tessy_jax.evaluate import choices, integers
from tessy_jax.evaluate.boxed import Boxed
from tessy_jax.evaluate.choices import INSTRUCTION, Choice, chosen
from tessy_jax.evaluate.integers import Integer, integer
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.evaluate.tasks import Problem

ANIMALS = ("red fox", "blue whale", "1/2", "an ant")
PIECES = [
    "\\boxed{",
    "}",
    "{",
    "\\text{",
    "(",
    ")",
    "**",
    "answer is ",
    "Answer:",
    "A",
    "C",
    "c",
    "0",
    "45",
    "\n",
    ".",
    ",",
    "−",
    "²",
    "\ud800",
]
hostile = st.one_of(st.text(st.characters()), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))


def problem(reference, texts=()):
    return Problem("t/1", "t", None, [{"role": "user", "content": "?"}], reference, tuple(texts))


def table(tmp_path, verifier, *rows, **options):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = Task(name="a", path=str(file), verifier=verifier, **options)
    return TASK_KINDS[verifier].problems(task)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Answer: C", "C"),
        ("answer: c", "C"),
        ("**Answer:** **C**", "C"),
        ("The answer is (C) 1/2.", "C"),
        ("The correct answer is option C, because of that", "C"),
        ("Answer: A because it is red", "A"),
        ("Answer: $\\boxed{C}$", "C"),
        ("\\boxed{C}", "C"),
        ("\\boxed{\\text{C}}", "C"),
        ("$\\boxed{\\textbf{(C)}}$", "C"),
        ("\\boxed{C. 1/2}", "C"),
        ("\\boxed{0.5}", "C"),
        ("\\boxed{A} no, \\boxed{C}", "C"),
        ("Answer: A\nthat is \\boxed{C}", "C"),
        ("Answer: A. No.\nAnswer: C", "C"),
        ("so it is (A) or rather (C)", "C"),
        ("I choose **C**", "C"),
        ("**C.**", "C"),
        ("clearly\nC", "C"),
        ("clearly\nC)\n", "C"),
        ("Let me think.\n**Red fox**.", "A"),
        ("C) 1/2", "C"),
        ("**C) 1/2**", "C"),
        ("A) red fox\nB) blue whale\nC) 1/2\nD) an ant\n\nAnswer: C", "C"),
        ("The answer is a matter of taste", None),
        ("The answer is A matter of taste", None),
        ("The answer is not A", None),
        ("\\boxed{E}", None),
        ("Answer: CD", None),
        ("I think so", None),
        ("", None),
    ],
)
def test_the_choice_is_the_one_that_the_rules_say(answer, expected):
    assert chosen(answer, ANIMALS) == expected
    verdict = Choice().verify(problem("C", ANIMALS), answer)
    assert verdict.why == ("no_answer" if expected is None else "right" if expected == "C" else "wrong_answer")


@pytest.mark.parametrize(
    "form", ["Answer: {}", "({})", "\\boxed{{{}}}", "\\boxed{{\\text{{{}}}}}", "**{}**", "{}", "the answer is {}."]
)
@given(st.integers(2, 26), st.integers(0, 25))
def test_only_letters_that_choices_have_are_choices(form, count, number):
    texts = tuple(f"text {i}" for i in range(count))
    letter = ascii_uppercase[number]
    assert chosen(form.format(letter), texts) == (letter if number < count else None)
    assert chosen(form.format(letter), ()) == letter


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("\\boxed{045}", "45"),
        ("\\boxed{000}", "0"),
        ("$\\boxed{\\text{45}}$", "45"),
        ("\\boxed{m+n = 45}", "45"),
        ("\\boxed{45^\\circ}", "45"),
        ("\\boxed{1} so \\boxed{2}, 3", "2"),
        ("\\boxed{2024}", "2024"),
        ("\\boxed{-7}", "-7"),
        ("\\boxed{x}, thus 45", "x"),
        ("\\boxed{} 45", "45"),
        ("The answer is 45. I checked 3 cases", "45"),
        ("The answer is $m+n = 12+33 = 45$.", "45"),
        ("first 7, then 045", "45"),
        ("45\n\n**", "45"),
        ("it is 12/5, 1.5, 1,234, −7, x^2 or 2024", None),
        ("none", None),
    ],
)
def test_the_integer_is_read_by_the_documented_rules(answer, expected):
    assert integer(answer) == expected


@given(st.integers(0, 999), st.integers(1, 5), st.sampled_from(["{}", "\\boxed{{{}}}", "The answer is {}.", "5 and {}"]))
def test_zeros_in_front_do_not_count(value, width, form):
    text = form.format(str(value).zfill(width))
    assert Integer().verify(problem(str(value)), text).right
    assert not Integer().verify(problem(str((value + 1) % 1000)), text).right
    assert integers.ground_truth({"answer": str(value).zfill(width)}, "answer", "x").reference == str(value)


@given(hostile, st.sampled_from([(), ANIMALS]))
def test_a_verdict_is_given_on_any_text(text, texts):
    for verifier, reference in ((Choice(), "C"), (Integer(), "45")):
        verdict = verifier.verify(problem(reference, texts), text)
        assert (verdict.why == "right") == verdict.right
        assert (verdict.answer is None) == (verdict.why == "no_answer")
    assert Choice().verify(problem("C", texts), text.replace("\\", "") + "\n\\boxed{C}").right
    assert Integer().verify(problem("45"), text.replace("\\", "") + "\n\\boxed{045}").right


@given(
    st.dictionaries(
        st.sampled_from([*choices.COLUMNS, "answer", "prompt"]),
        st.one_of(hostile, st.lists(hostile), st.integers(), st.none()),
    )
)
def test_a_row_has_a_choice_that_is_right_or_is_refused(row):
    try:
        letter, texts, _ = choices.ground_truth(choices.shown(row, "answer"), "answer", "x")
    except DataError:
        return
    assert letter in (ascii_uppercase[: len(texts)] if texts else ascii_uppercase)


def test_a_long_answer_is_read_in_a_moment():
    started = time.perf_counter()
    for piece in (
        "\\boxed{",
        "{",
        "(",
        "\\text{",
        "**",
        "answer is ",
        "A",
        "(A) ",
        "C)\n",
        " ",
        "0",
        "1",
        "1,",
        "−",
        "=",
        "^",
    ):
        Choice().verify(problem("C", ANIMALS), piece * 100_000)
        Integer().verify(problem("45"), piece * 100_000)
    assert time.perf_counter() - started < 20


@pytest.mark.parametrize(
    ("own", "reference"),
    [
        ({"choices": list(ANIMALS), "answer": "C"}, "C"),
        ({"choices": list(ANIMALS), "answer": "(c)"}, "C"),
        ({"options": list(ANIMALS), "answer": 2}, "C"),
        ({"choices": list(ANIMALS), "answer": "2"}, "C"),
        ({"choices": list(ANIMALS), "answer": "0.5"}, "C"),
        ({"choices": ["7", "2", "0"], "answer": "2"}, "B"),
        ({"choices": {"text": list(ANIMALS), "label": list("ABCD")}, "answer": "Red fox."}, "A"),
        ({"answer": "\\boxed{C}"}, "C"),
    ],
)
def test_the_right_choice_is_a_letter_a_number_or_a_text(tmp_path, own, reference):
    (question,) = table(tmp_path, "choice", {"prompt": "Which?", "id": 1, **own})
    assert (question.reference, question.messages[0]["content"]) == (reference, "Which?")
    given_texts = own.get("choices", own.get("options", []))
    assert list(question.choices) == (given_texts["text"] if isinstance(given_texts, dict) else given_texts)
    assert question.to_json().get("choices", []) == list(question.choices)


def test_a_question_with_choices_becomes_a_prompt_that_shows_them_in_their_order(tmp_path):
    (question,) = table(tmp_path, "choice", {"question": "Which?", "choices": list(ANIMALS), "answer": 3, "subject": "law"})
    assert question.messages[0]["content"] == f"Which?\n\nA) red fox\nB) blue whale\nC) 1/2\nD) an ant\n\n{INSTRUCTION}"
    assert (question.reference, question.family, question.choices) == ("D", "law", ANIMALS)


@pytest.mark.parametrize(
    ("choices", "answer", "reference"),
    [
        ({"text": ["air", "iron", "ice"], "label": ["1", "2", "3"]}, "1", "A"),
        ({"text": ["air", "iron", "ice"], "label": ["1", "2", "3"]}, 3, "C"),
        ({"text": ["air", "iron", "ice"], "label": [1, 2, 3]}, "2", "B"),
        ({"text": ["3", "2", "1"], "label": ["1", "2", "3"]}, "3", "C"),
        ({"text": ["air", "iron", "ice"], "label": ["1", "2", "3"]}, "ice", "C"),
        ({"text": ["air", "iron", "ice"], "label": ["A", "B", "C"]}, 1, "B"),
        ({"text": ["air", "iron", "ice"], "label": ["B", "C", "A"]}, "A", "C"),
        ({"text": ["air", "iron", "ice"], "label": ["F", "G", "H"]}, "g", "B"),
        ({"A": "air", "B": "iron", "C": "ice", "D": None}, "C", "C"),
        ([{"label": "1", "text": "air"}, {"label": "2", "text": "iron"}], "2", "B"),
        ([{"key": "A", "value": "air"}, {"key": "B", "value": "iron"}], "B", "B"),
        ([{"text": "air"}, {"text": "iron"}], 1, "B"),
        ([{"id": "1", "content": "air"}, {"id": "2", "content": "iron"}], "2", "B"),
        ({"key": ["A", "B"], "value": ["air", "iron"]}, "B", "B"),
        ({"id": ["1", "2"], "content": ["air", "iron"]}, 2, "B"),
        ({"text": ["air", "iron"], "label": None}, "iron", "B"),
    ],
)
def test_the_right_choice_follows_the_labels_of_its_row(tmp_path, choices, answer, reference):
    (question,) = table(tmp_path, "choice", {"question": "Which?", "choices": choices, "key": answer}, answer="key")
    assert question.reference == reference
    assert question.messages[0]["content"].startswith(f"Which?\n\nA) {question.choices[0]}\nB) ")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answer": "0"}, r"a label \(1, 2\)"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answer": 3}, r"answer is '3'; .*\(1, 2\)"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1"]}, "answer": "1"}, "label for each choice"),
        ({"question": "q", "choices": {"text": ["a", "b"], "label": ["1", "1"]}, "answer": "1"}, "different label"),
        ({"prompt": "q", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answer": "1"}, "answers name letters"),
        (
            {"question": "q", "choices": [{"a": "1", "b": "x"}] * 2, "answer": "1"},
            r"the choice {'a': '1', 'b': 'x'}; .*`text`",
        ),
        (
            {"question": "q", "choices": {"a": ["1"], "b": ["x"]}, "answer": "1"},
            r"choices is {'a': \['1'\], 'b': \['x'\]}; ",
        ),
        ({"question": "q", "choices": [{"id": 1, "text": "x"}, {"id": 2}], "answer": 1}, r"the choice {'id': 2}; "),
        ({"question": "q", "choices": [{"text": "x", "image": "f"}] * 2, "answer": 1}, "and nothing else"),
    ],
)
def test_labels_that_answers_cannot_name_are_refused(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        table(tmp_path, "choice", row)


def test_rows_as_gpqa_has_them_are_shuffled_by_their_ids_alone(tmp_path):
    rows = [
        {
            "Record ID": f"rec{i}",
            "Question": f"Which is {i}?",
            "Correct Answer": "right",
            **{f"Incorrect Answer {k}": f"wrong {k}" for k in (1, 2, 3)},
        }
        for i in range(40)
    ]
    questions = table(tmp_path, "choice", *rows)
    of_reversed_rows = table(tmp_path, "choice", *rows[::-1])
    assert {p.id: p for p in questions} == {p.id: p for p in of_reversed_rows}
    assert [p.own_id for p in questions] == [row["Record ID"] for row in rows]
    assert {p.reference for p in questions} == set("ABCD")
    for question in questions:
        assert sorted(question.choices) == ["right", "wrong 1", "wrong 2", "wrong 3"]
        listed = dict(re.findall(r"^([A-D])\) (.*)$", question.messages[0]["content"], re.MULTILINE))
        assert listed[question.reference] == "right"
        assert tuple(listed.values()) == question.choices
    (other,) = table(tmp_path, "choice", {"question": "q", "correct_answer": "x", "incorrect_answers": ["y", "z"], "id": 1})
    assert other.choices[ascii_uppercase.index(other.reference)] == "x"


@pytest.mark.parametrize(
    ("verifier", "row", "message"),
    [
        (
            "choice",
            {"prompt": "a", "answer": "E", "choices": list(ANIMALS)},
            "answer is 'E'; it should be one of the 4 choices",
        ),
        (
            "choice",
            {"prompt": "a", "answer": 4, "choices": list(ANIMALS)},
            "answer is 4; the number of a choice should be 0 to 3",
        ),
        ("choice", {"prompt": "a", "answer": -1}, "answer is -1"),
        ("choice", {"prompt": "a", "answer": "some text"}, "it should be a letter"),
        ("choice", {"prompt": "a", "answer": "A", "choices": "ABCD"}, "choices is 'ABCD'; it should be a list of texts"),
        ("choice", {"prompt": "a", "answer": "A", "options": ["x"]}, "options holds 1 choices; it should hold 2 to 26"),
        ("choice", {"prompt": "a", "answer": "A", "choices": ["x"] * 27}, "holds 27 choices"),
        ("choice", {"prompt": "a", "choices": list(ANIMALS)}, "has no `answer`"),
        ("choice", {"question": "a", "answer": "A"}, "has a question and no choices"),
        ("choice", {"answer": "A"}, "it should hold `messages`"),
        ("integer", {"prompt": "a", "answer": "1000"}, "answer is '1000'; it should be a whole number from 0 to 999"),
        ("integer", {"prompt": "a", "answer": 1.5}, "answer is '1.5'"),
        ("integer", {"prompt": "a", "answer": "x"}, "or use verifier exact or boxed"),
    ],
)
def test_a_row_without_a_right_answer_is_named_with_its_place(tmp_path, verifier, row, message):
    good = {"prompt": "b", "answer": 1}
    with pytest.raises(DataError, match=rf"problems\.jsonl:2: .*{message}"):
        table(tmp_path, verifier, good, row)


def test_tables_as_the_aime_and_math_have_them_are_read_by_the_names_of_their_columns(tmp_path):
    (aime,) = table(
        tmp_path, "integer", {"ID": "2024-I-1", "Problem": "p?", "Answer": 45}, prompt="Problem", answer="Answer"
    )
    assert (aime.messages[0]["content"], aime.reference) == ("p?", "45")
    row = {
        "problem": "Halve $\\sqrt 2$.",
        "solution": "It is $\\frac{\\sqrt{2}}{2}$, so $\\boxed{\\frac{\\sqrt{2}}{2}}$.",
        "answer": "\\frac{\\sqrt{2}}{2}",
        "subject": "Algebra",
    }
    with Boxed() as verifier:
        for column in ("solution", "answer"):
            (exercise,) = table(tmp_path, "boxed", row, prompt="problem", answer=column)
            assert (exercise.messages[0]["content"], exercise.family) == (row["problem"], "Algebra")
            assert verifier.verify(exercise, "Thus \\boxed{\\frac{1}{\\sqrt 2}}.").right
            assert verifier.verify(exercise, "Thus \\boxed{\\sqrt 2}.").why == "wrong_answer"
    with pytest.raises(DataError, match=r"has no `question`, which should hold the prompt; it holds `answer`"):
        table(tmp_path, "boxed", row, prompt="question")
