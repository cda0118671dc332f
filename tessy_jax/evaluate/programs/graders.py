"""Two graders, which compare the output or value of a program with the expected one.

`strict` works like the checker of a programming contest. Output: the non-blank lines must have the same tokens; the amount
of white space between tokens does not count. Two tokens are equal if their texts are, or if the expected token is a decimal
fraction ("0.5", "1e-3") and the other one a number that differs by at most 10⁻⁶, absolutely or relatively. The test's own
checker can set another tolerance for all numbers ("floats"; only absolute or relative: "floatsabs", "floatsrel"), or require
identical text ("identical"). Values: equal, where a list equals a tuple with the same items, and fractions have the same
tolerance; true does not equal 1, and 3.0 does not equal 3.

`compat` works like LiveCodeBench's public code, so that results are comparable with published ones. Output: both texts and
each of their lines are stripped; the number of lines, blank ones included, must be equal. Two lines are equal if their texts
are, or if both consist of decimals that are equal as exact numbers ("1.0" equals "1", 0.3333333 does not equal 0.33333333,
and "a b" with two spaces does not equal "a b" with one). Values: equal in Python, where a tuple equals a list at the top
level only; no value equals an integer of more digits than the interpreter reads (`box.runner.DIGITS`).

Both take linear time: numbers may have any length and exponent.
"""

from __future__ import annotations

import math
import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

from tessy_jax.evaluate.programs.box.runner import DIGITS

TOLERANCE = Decimal("1e-6")
NUMBERS = Context(prec=100, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])
"""Rounds numbers to 100 digits, far below any tolerance, so that the time of arithmetic does not depend on exponents."""
NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?", re.ASCII)
INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)
UNREAD = 10 ** DIGITS[True]
"""The least integer that LiveCodeBench cannot read."""


def strict(output: str, expected: str, checker: str = "standard") -> bool:
    """Whether an output is right; see the module docstring. checker: "standard", "identical", or "floats:<digits>",
    "floatsabs:<digits>" or "floatsrel:<digits>"."""
    if checker == "identical":
        return output == expected
    kind, _, digits = checker.partition(":")
    tolerance = Decimal(f"1e-{digits}") if digits else TOLERANCE
    output_lines, expected_lines = _tokens(output), _tokens(expected)
    return len(output_lines) == len(expected_lines) and all(
        len(a) == len(b) and all(_same(x, y, tolerance, kind) for x, y in zip(a, b, strict=True))
        for a, b in zip(output_lines, expected_lines, strict=True)
    )


def compat(output: str, expected: str) -> bool:
    """Whether an output is right; see the module docstring."""
    lines, expected_lines = ([line.strip() for line in text.strip().split("\n")] for text in (output, expected))
    return len(lines) == len(expected_lines) and all(
        _equal_lines(line, expected_line) for line, expected_line in zip(lines, expected_lines, strict=True)
    )


def strict_value(value: Any, expected: Any) -> bool:
    """Whether a value is right; see the module docstring. expected: a JSON value. value: may also hold tuples, sets,
    fractions, decimals and complex numbers.

    Raises:
        ValueError, ArithmeticError: the value holds a signaling NaN.
    """
    if isinstance(expected, float) and type(value) in (int, float, Fraction, Decimal):
        return _near(value, expected)
    if isinstance(expected, list):
        same_length = isinstance(value, list | tuple) and len(value) == len(expected)
        return same_length and all(strict_value(a, b) for a, b in zip(value, expected, strict=True))
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(strict_value(value[key], item) for key, item in expected.items())
        )
    return type(value) is type(expected) and bool(value == expected)


def compat_value(value: Any, expected: Any) -> bool:
    """Whether a value is right; see `strict_value`."""
    return _short(expected) and bool((list(value) if isinstance(value, tuple) else value) == expected)


def _short(expected: Any) -> bool:
    """Whether LiveCodeBench can read an expected value: no integer has more than 4300 digits."""
    if isinstance(expected, list | dict):
        return all(_short(item) for item in (expected.values() if isinstance(expected, dict) else expected))
    return not isinstance(expected, int) or -UNREAD < expected < UNREAD


def _near(value: float | Fraction | Decimal, expected: float) -> bool:
    """Whether two numbers are equal within `TOLERANCE`. value: of any size."""
    if not math.isfinite(expected):
        return value == expected
    try:
        return abs(float(value) - expected) <= float(TOLERANCE) * max(1.0, abs(expected))
    except OverflowError:  # the number exceeds the range of a float
        return False


def _tokens(text: str) -> list[list[str]]:
    return [tokens for line in text.split("\n") if (tokens := line.split())]


def _same(token: str, expected: str, tolerance: Decimal, kind: str) -> bool:
    """Whether two tokens are equal. kind: a checker without its digits."""
    if token == expected:
        return True
    if not (NUMBER.fullmatch(token) and NUMBER.fullmatch(expected)) or (INTEGER.fullmatch(expected) and kind == "standard"):
        return False
    a, b = NUMBERS.create_decimal(token), NUMBERS.create_decimal(expected)
    if not (a.is_finite() and b.is_finite()):  # an exponent of more than 18 digits
        return False
    absolute = NUMBERS.abs(b)
    size = {"floatsabs": Decimal(1), "floatsrel": absolute}.get(kind, NUMBERS.max(Decimal(1), absolute))
    return NUMBERS.abs(NUMBERS.subtract(a, b)) <= NUMBERS.multiply(tolerance, size)


def _equal_lines(line: str, expected: str) -> bool:
    if line == expected:
        return True
    try:
        a, b = ([Decimal(token) for token in text.split()] for text in (line, expected))
        return a == b
    except InvalidOperation:
        return False
