"""Answers that are whole numbers from 0 to 999, like those of the AIME; leading zeros do not count.

The answer is taken from the text after the thinking. It is the first of these that exists:

1. the number in the last `\\boxed{…}` that closes, alone or after its last `=`; a box with any other contents is a wrong
   answer;
2. in the first non-blank line after the last "answer is" or a similar phrase (see `answers`), the number at its start, or
   else the last number in it;
3. the last number.

Parts of other numbers (decimals, −7, 12/5, 1,234) do not count.
"""

from __future__ import annotations

import re
from typing import Any

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import DataError
from tessy_jax.evaluate.answers import AROUND, BEHIND, MARKER, boxed, number
from tessy_jax.evaluate.tasks import GroundTruth, Problem, Verdict, table_problems, text_of

INTEGER = re.compile(r"(?<![\w.,/^−-])0*[0-9]{1,3}(?!\w|[.,/][0-9])", re.ASCII)
MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boldsymbol)\s*\{|\\[,;! ()]|[{}$]|\^?\\circ|~")
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
        plain = MARKUP.sub("", inside).rpartition("=")[2].strip(BEHIND)
        return _without_zeros(plain) if INTEGER.fullmatch(plain) else inside.strip()
    markers = list(MARKER.finditer(answer))
    if markers:
        behind = next((line for line in answer[markers[-1].end() :].splitlines() if line.strip(BEHIND)), "")
        first = INTEGER.match(behind.lstrip(AROUND))
        numbers = [first[0]] if first else INTEGER.findall(behind)
        if numbers:
            return _without_zeros(numbers[-1])
    numbers = INTEGER.findall(answer)
    return _without_zeros(numbers[-1]) if numbers else None


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The right number, without leading zeros; a row may hold it in a box. See `tasks.GroundTruthReader`.

    Raises:
        DataError: the column does not hold a whole number from 0 to 999.
    """
    text = text_of(row, column, needed=True)
    inside = boxed(text)
    value = number((text if inside is None else MARKUP.sub("", inside)).strip(BEHIND))
    if value is None or value.denominator != 1 or not 0 <= value <= LARGEST:
        raise DataError(
            f"{column} is {text[:60]!r}; it should be a whole number from 0 to {LARGEST}, or use verifier exact or boxed"
        )
    return GroundTruth(str(value))


def problems(task: Task) -> list[Problem]:
    """See `table_problems`."""
    return table_problems(task, ground_truth)


def _without_zeros(digits: str) -> str:
    return digits.lstrip("0") or "0"
