"""The outputs and values that each grader accepts."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.evaluate.programs.graders import compat, compat_value, strict, strict_value

LONG = 1_000_000


@pytest.mark.parametrize(
    ("output", "expected", "by_strict", "by_compat"),
    [
        ("1 2\n", "1 2", True, True),
        ("1  2 \n\n", "1 2", True, True),
        ("a  b", "a b", True, False),
        ("a b", "a c", False, False),
        ("ab", "a b", False, False),
        ("1\n2", "1 2", False, False),
        ("1\n\n2", "1\n2", True, False),
        ("", "", True, True),
        ("", "0", False, False),
        ("0", "", False, False),
        ("YES", "Yes", False, False),
        ("0.5", "0.50", True, True),
        ("0.3333333333", "0.333333333", True, False),
        ("0.334", "0.333", False, False),
        ("1000000.5", "1000001.4", True, False),
        ("1e-3", "0.001", True, True),
        ("3.0", "3", False, True),
        ("3", "3.0", True, True),
        ("03", "3", False, True),
        ("nan", "0.5", False, False),
        ("inf", "1.5", False, False),
        ("1_0", "10", False, True),
        ("x 0.5", "x 0.50", True, False),
        ("9" * 5000, "9" * 4999 + "8", False, False),
        ("sNaN", "1", False, False),
    ],
)
def test_output_is_compared_by_each_grader(output, expected, by_strict, by_compat):
    assert strict(output, expected) == by_strict
    assert compat(output, expected) == by_compat


@given(st.integers(-(10**12), 10**12), st.integers(-20, 20), st.integers(-20, 20), st.integers(-12, 2))
def test_decimal_fractions_have_exactly_the_stated_tolerance(number, exponent, factor, place):
    expected = Fraction(number) * Fraction(10) ** exponent
    output = expected + factor * Fraction(10) ** place
    near = abs(output - expected) <= Fraction("1e-6") * max(1, abs(expected))
    assert strict(f"{int(output * 10**20)}e-20", f"{number}e{exponent}") == near


@given(
    st.text("0123456789+-.eE_ \n\ufeffnaif"),
    st.text("0123456789+-.eE_ \n\ufeffnaif"),
    st.sampled_from(["standard", "floatsrel:3"]),
)
def test_every_pair_of_texts_has_a_verdict_and_equal_texts_are_right(output, expected, checker):
    assert {strict(output, expected, checker), compat(output, expected)} <= {True, False}
    assert strict(expected, expected, checker)
    assert compat(expected, expected)


@pytest.mark.parametrize(
    ("output", "expected", "by_strict"),
    [
        ("9" * LONG + "x", "0.5", False),
        ("1e" + "9" * LONG, "0.5", False),
        ("1e-" + "9" * LONG, "0.0", True),
        ("1e999999999", "1e-999999999", False),
        ("1e999999999999999999", "1.0e999999999999999999", True),
        ("0." + "3" * LONG, "0.3333333", True),
        ("3" * LONG + ".5", "3" * LONG + ".4", True),
        ("7" * LONG, "7" * (LONG - 1) + "8", False),
        ("9**9**9", "387420489.0", False),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_number_of_any_length_and_exponent_is_compared_at_once(output, expected, by_strict):
    started = time.process_time()
    assert strict(output, expected) == by_strict
    assert not compat(output, expected) or output == "1e999999999999999999"
    assert time.process_time() - started < 2


def test_a_tests_own_checker_decides_for_strict():
    assert not strict("111", "100", "floats:1")
    assert strict("10.04", "10", "floats:1")
    assert not strict("10.04", "10")
    assert strict("1000.5", "1000", "floats:3")
    assert strict("1000.5", "1000", "floatsrel:3")
    assert not strict("1000.5", "1000", "floatsabs:3")
    assert strict("0.0005", "0.0001", "floatsabs:3")
    assert not strict("0.0005", "0.0001", "floatsrel:3")
    assert strict("a\n", "a\n", "identical")
    assert not strict("a", "a\n", "identical")


@pytest.mark.parametrize(
    ("value", "expected", "by_strict", "by_compat"),
    [
        ([1, 2], [1, 2], True, True),
        ((1, 2), [1, 2], True, True),
        ([(1, 2)], [[1, 2]], True, False),
        ([1], [1, 2], False, False),
        (True, 1, False, True),
        (1, True, False, True),
        (3.0, 3, False, True),
        (3, 3.0, True, True),
        (0.1 + 0.2, 0.3, True, False),
        (float("nan"), 1.0, False, False),
        (float("inf"), float("inf"), True, True),
        (3.0, float("inf"), False, False),
        (float("-inf"), float("inf"), False, False),
        (float("inf"), 1.0, False, False),
        (10**400, 1.0, False, False),
        (10**400, float("inf"), False, False),
        ("a", "a", True, True),
        ("1", 1, False, False),
        (None, None, True, True),
        (None, [], False, False),
        ({"a": (1,)}, {"a": [1]}, True, False),
        ({"a": 1}, {"b": 1}, False, False),
        (frozenset({1}), [1], False, False),
    ],
)
def test_values_are_compared_by_each_grader(value, expected, by_strict, by_compat):
    assert strict_value(value, expected) == by_strict
    assert compat_value(value, expected) == by_compat


def test_compat_cannot_read_expected_integers_of_more_than_4300_digits():
    assert compat_value([-(10**4299)], [-(10**4299)])
    for expected in (10**4300, [10**4300], {"a": [-(10**4300)]}):
        assert strict_value(expected, expected)
        assert not compat_value(expected, expected)
