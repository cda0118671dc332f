"""Answers that are whole numbers from 0 to 999, like those of the AIME; leading zeros do not count.

The answer is taken from the text after the thinking. It is the first of these that exists:

1. the number in the last `\\boxed{…}` that closes: alone, with a unit, or after its last `=`. A box with other contents is a
   wrong answer;
2. in the first non-blank line after the last "answer is" or a similar phrase (see `answers`): the number at its start, else
   the number after the last `=`, else the last number;
3. the last number.

Numbers inside other numbers or terms (decimals, −7, 12/5, 1,234, 7 + 18) do not count, and neither do numbers after "not".
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import DataError
from tessy_jax.evaluate.extraction import MARKER, boxed
from tessy_jax.evaluate.readings import AROUND, BEHIND, EQUALS, normalised, plain, quantity, value
from tessy_jax.evaluate.references import accepted, value_of
from tessy_jax.evaluate.tasks import GroundTruth, Problem, Verdict, table_problems, text_of

INTEGER = re.compile(r"(?<![\w.,/^−-])0*[0-9]{1,3}(?!\w|[.,/][0-9])", re.ASCII)
TERM = re.compile(r"\s*(?:[-+*/^×·!]|\\(?:times|cdot|sqrt|pi|frac))")
"""Text after a number that makes the number part of a term."""
AFTER_EQUALS = re.compile(rf"(?<![<>!:=])=[\s*$]*({INTEGER.pattern})(?!{TERM.pattern})", re.ASCII)
WHOLE = re.compile(r"(?<![0-9.,])([0-9]+)\.0+(?![0-9])", re.ASCII)
ZERO = re.compile(r"(?<![\w)}])-(?=0+(?![0-9]|[.,][0-9]))", re.ASCII)
EXPONENT = re.compile(r"\^\{[^{}]*\}")
NEGATED = re.compile(r"\b(?:not|rather than|instead of)\s+[*$(]*[0-9]+", re.IGNORECASE | re.ASCII)
LARGEST = 999


class Integer:
    """Verifies that the answer is the right whole number; see the module docstring."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        value = integer(answer)
        if value is None:
            return Verdict(False, None, "no_answer")
        right = value == problem.reference
        return Verdict(right, value, "right" if right else "wrong_answer")


def integer(answer: str) -> str | None:
    """The number in an answer, without leading zeros, or the other contents of its box; None if there is neither."""
    inside = boxed(answer)
    if inside is not None and inside.strip():
        number = quantity(EQUALS.split(inside)[-1].replace("\\%", "").replace("%", ""))
        return inside.strip() if number is None or not _whole(number) else str(number)
    text = plain(answer)
    for pattern, replacement in ((WHOLE, r"\1"), (ZERO, ""), (EXPONENT, "^x"), (NEGATED, "")):
        text = pattern.sub(replacement, text)
    markers = list(MARKER.finditer(text))
    if markers:
        behind = next((line for line in text[markers[-1].end() :].splitlines() if line.strip(BEHIND)), "").lstrip(AROUND)
        first = INTEGER.match(behind)
        if first and not TERM.match(behind, first.end()):
            return _without_zeros(first[0])
        numbers = AFTER_EQUALS.findall(behind) or INTEGER.findall(behind)
        if numbers:
            return _without_zeros(numbers[-1])
    numbers = INTEGER.findall(text)
    return _without_zeros(numbers[-1]) if numbers else None


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The right number, without leading zeros; a row may hold it in a solution. See `tasks.GroundTruthReader`.

    Raises:
        DataError: the column does not hold a whole number from 0 to 999.
    """
    text = text_of(row, column, needed=True)
    right = value(normalised(value_of(text, column)))
    if right is None or not _whole(right):
        raise DataError(
            f"{column} is {text[:60]!r}; it should be a whole number from 0 to {LARGEST}, or use verifier exact or boxed"
        )
    return accepted(GroundTruth(str(right)), Integer().verify, column, "integer")


def problems(task: Task) -> list[Problem]:
    """See `table_problems`."""
    return table_problems(task, ground_truth)


def _whole(value: Fraction) -> bool:
    """Whether a value is a whole number from 0 to 999."""
    return value.denominator == 1 and 0 <= value <= LARGEST


def _without_zeros(digits: str) -> str:
    return digits.lstrip("0") or "0"
