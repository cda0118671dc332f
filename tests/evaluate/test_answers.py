"""A verifier finds the final answer as its rule says, compares it exactly, and survives whatever a model writes."""

import json
import os
import signal
import threading
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessy_jax.evaluate.answers import Exact
from tessy_jax.evaluate.boxed import Boxed
from tessy_jax.evaluate.extraction import boxed, final_answer
from tessy_jax.evaluate.readings import normalised, number, same
from tessy_jax.evaluate.tasks import Problem, Verdict
from tessy_jax.mini.evaluation import MiniVerifier
from tessy_jax.mini.tasks import item

PIECES = [
    "\\boxed{",
    "}",
    "{",
    "\\",
    "answer is",
    "**",
    "\n",
    "12",
    "1/0",
    "1e9",
    "\\frac",
    "^",
    "$",
    "\u2028",
    "\ud800",
    "½",
    " ",
]
hostile = st.one_of(st.text(st.characters()), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))


def problem(reference):
    return Problem("t/1", "t", None, [{"role": "user", "content": "?"}], reference)


@pytest.fixture(scope="module")
def mathematics():
    with Boxed() as verifier:
        yield verifier


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("so it is\n42\n\n", "42"),
        ("The answer is 42. Really.\nGoodbye", "42. Really."),
        ("**Answer:** 42", "** 42"),
        ("The Answer**:\n\n 7", "7"),
        ("answer = 3", "3"),
        ("The answer is 1\nno, the answer is: 2\nbye", "2"),
        ("the answer is", "the answer is"),
        ("\\boxed{1} and so \\boxed{ {2} }\nthe answer is 9", "{2}"),
        ("$\\boxed{1}$ and $\\boxed{2}$", "1, 2"),
        ("\\boxed{1} or \\boxed{2}", "1, 2"),
        ("\\boxed{1}, \\boxed{1}", "1"),
        ("\\boxed{\\boxed{5}}", "5"),
        ("\\boxed{\\{1\\}}", "\\{1\\}"),
        ("\\boxed{12} then \\boxed{1", "12"),
        ("\\boxed{ } 3", "\\boxed{ } 3"),
        ("my answers isle\nx", "x"),
        ("\n \n", None),
        ("12\n**\n", "12"),
    ],
)
def test_the_final_answer_is_the_last_box_or_what_follows_answer_is_or_the_last_line(answer, expected):
    assert final_answer(answer) == expected


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("42", "42.0"),
        ("0.5", "1/2"),
        ("** 42.", "42"),
        ("1,234,567", "1234567"),
        ("−3", "-3"),
        ("1.5e3", "1500"),
        (" $\\frac{1}{2}$.", "\\frac{1}{2}"),
        ("\\(B\\)", "b"),
        ("**Paris**.", "paris"),
        ("New   York", "new york"),
        ("2 / 4", "1/2"),
        ("0.1", "1/10"),
    ],
)
def test_equal_numbers_and_texts_are_equal_however_they_are_written(a, b):
    assert same(a, b)
    assert same(b, a)


@pytest.mark.parametrize(
    ("a", "b"),
    [("0.333333", "1/3"), ("12 apples", "12"), ("-3", "3"), ("5!", "5"), ("3²", "32"), ("1,23", "123"), ("50%", "50"),
     ("", "0"), ("1/0", "0"), ("0.1", "0.10000000000000001"), ("1e999", "1e998")],
)  # fmt: skip
def test_unequal_numbers_and_texts_are_not_the_same(a, b):
    assert not same(a, b)


@given(st.fractions(), st.integers(1, 9))
def test_a_number_is_read_back_exactly(value, factor):
    assert number(str(value)) == value
    assert same(f"{value.numerator * factor}/{value.denominator * factor}", str(value))
    assert number(f"{value.numerator:,}") == value.numerator


@given(st.decimals(allow_nan=False, allow_infinity=False, places=6))
def test_a_decimal_is_read_back_exactly(value):
    assert number(f"{value:f}") == Fraction(value)


@given(hostile, hostile)
def test_the_exact_verifier_gives_a_verdict_on_any_text(answer, reference):
    verdict = Exact().verify(problem(reference), answer)
    assert (verdict.why == "right") == verdict.right
    assert (verdict.answer is None) == (verdict.why == "no_answer")
    assert same(answer, answer)
    number(normalised(answer))


@given(hostile)
def test_a_boxed_reference_is_right_wherever_it_stands(text):
    assert Exact().verify(problem("17"), text.replace("\\", "") + "\\boxed{17}").right


@given(st.text("\\boxed{}", max_size=30))
def test_a_box_holds_balanced_braces(text):
    inside = boxed(text)
    if inside is not None:
        assert f"{{{inside}}}" in text
        assert boxed(f"{text} \\boxed{{9}}") == "9" or text.endswith("\\")


def test_a_long_answer_is_read_in_a_moment():
    started = time.perf_counter()
    for piece in ("\\boxed{", "{", "}", "answer is ", "answer" + "*" * 50, "\n", "\\(", "1", "(", " ", "\\boxed  "):
        Exact().verify(problem("1"), piece * 100_000)
    assert time.perf_counter() - started < 20


@given(hostile, st.sampled_from(["A", "Ah", "B", "C"]))
def test_the_miniature_s_verifier_gives_a_verdict_on_any_text(answer, family):
    example = item(family, "test", 0, 3)
    own = Problem(f"t/{example.id}", "t", family, [], example.answer)
    assert MiniVerifier().verify(own, answer).right in (True, False)
    assert MiniVerifier().verify(own, f"the answer is {example.answer} .").right
    assert not MiniVerifier().verify(own, f"{answer}</think>the answer is {example.answer} .").right


@pytest.mark.parametrize(
    ("answer", "reference", "expected"),
    [
        ("thus \\boxed{\\frac{2}{4}}", "1/2", "right"),
        ("\\boxed{x+1}", "1 + x", "right"),
        ("\\boxed{2\\sqrt{2}}.", "\\sqrt{8}", "right"),
        ("\\boxed{1} or rather \\boxed{2}", "2", "right"),
        ("\\boxed{\\text{east}}", "east", "right"),
        ("\\boxed{3}", "4", "wrong_answer"),
        ("it is 4", "4", "no_answer"),
        ("\\boxed{}", "4", "no_answer"),
        ("\\boxed{4", "4", "no_answer"),
        ("\\boxed{04.0}", "4", "right"),
    ],
)
def test_boxed_mathematics_is_compared_as_mathematics(mathematics, answer, reference, expected):
    verdict = mathematics.verify(problem(reference), answer)
    assert (verdict.why, verdict.right) == (expected, expected == "right")


@settings(max_examples=40, deadline=None)
@given(hostile)
def test_the_boxed_verifier_gives_a_verdict_on_any_text(mathematics, text):
    verdict = mathematics.verify(problem("\\frac{1}{2}"), "\\boxed{" + text + "}")
    assert isinstance(verdict, Verdict)
    json.dumps(verdict.why)


@pytest.mark.parametrize(
    "text", ["9^{9^{9^{9^9}}}", "(" * 3000 + "x" + ")" * 3000, "\\frac{" * 2000, "10^{10^{10}}!", "\\" * 99]
)
def test_a_pathological_answer_is_wrong_after_its_time_and_the_next_is_verified(text):
    with Boxed(seconds=1.0) as verifier:
        started = time.perf_counter()
        verdict = verifier.verify(problem("7"), f"\\boxed{{{text}}}")
        assert not verdict.right
        assert verdict.why in ("timeout", "unreadable", "wrong_answer", "no_answer")
        assert verifier.verify(problem("x^2-1"), "\\boxed{(x-1)(x+1)}").right
        assert time.perf_counter() - started < 60


def test_arithmetic_that_never_ends_is_ended_also_outside_the_main_thread():
    verdicts = []
    with Boxed(seconds=0.5) as verifier:
        thread = threading.Thread(target=lambda: verdicts.append(verifier.verify(problem("7"), "\\boxed{9^{9^{9^{9^9}}}}")))
        thread.start()
        thread.join(60)
    assert [verdict.right for verdict in verdicts] == [False]


def test_a_worker_that_is_killed_costs_one_answer_and_the_last_one_ends_with_the_verifier():
    with Boxed() as verifier:
        assert verifier.verify(problem("1+x"), "\\boxed{x+1}").right
        first = verifier._worker
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        assert verifier.verify(problem("1+x"), "\\boxed{x+1}").why == "unreadable"
        assert verifier.verify(problem("1+x"), "\\boxed{x+1}").right
        second = verifier._worker
    assert second.poll() is not None
