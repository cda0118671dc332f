"""Answers that are whole numbers from 0 to 999, as those of the AIME are; zeros in front do not count.

The answer is, of all that stands behind the thinking, the first of these that there is:

1. the number that the last `\\boxed{…}` that closes holds, alone or behind its last `=`; a box that holds anything else is
   an answer that is wrong;
2. the number at the beginning of what follows the last "answer is" or the like (see `answers`), or else the last in that
   line;
3. the last number.

Parts of other numbers (decimals, −7, 12/5, 1,234) are none.
"""

from __future__ import annotations

import re
from typing import Any

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import DataError
from tessy_jax.evaluate.answers import AROUND, BEHIND, MARKER, boxed, number
from tessy_jax.evaluate.tasks import GroundTruth, Problem, Verdict, table_problems, text_of

INTEGER = re.compile(r"(?<![\w.,/^−-])0*[0-9]{1,3}(?!\w|[.,/][0-9])", re.ASCII)
DRESS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|boldsymbol)\s*\{|\\[,;! ()]|[{}$]|\^?\\circ|~")
LARGEST = 999


class Integer:
    """The answer is the right whole number; see above."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        found = integer(answer)
        if found is None:
            return Verdict(False, None, "no_answer")
        right = found == problem.reference
        return Verdict(right, found, "right" if right else "wrong_answer")


def integer(answer: str) -> str | None:
    """The number that an answer gives, without zeros in front, or else what its box holds; None where it gives none."""
    inside = boxed(answer)
    if inside is not None and inside.strip():
        plain = DRESS.sub("", inside).rpartition("=")[2].strip(BEHIND)
        return _plainly(plain) if INTEGER.fullmatch(plain) else inside.strip()
    markers = list(MARKER.finditer(answer))
    if markers:
        behind = next((line for line in answer[markers[-1].end() :].splitlines() if line.strip(BEHIND)), "")
        first = INTEGER.match(behind.lstrip(AROUND))
        found = [first[0]] if first else INTEGER.findall(behind)
        if found:
            return _plainly(found[-1])
    found = INTEGER.findall(answer)
    return _plainly(found[-1]) if found else None


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The right number, without zeros in front; it may stand in a box. See `tasks.Bench`.

    Raises:
        DataError: there is none.
    """
    text = text_of(row, column, needed=True)
    inside = boxed(text)
    value = number((text if inside is None else DRESS.sub("", inside)).strip(BEHIND))
    if value is None or value.denominator != 1 or not 0 <= value <= LARGEST:
        raise DataError(
            f"{column} is {text[:60]!r}; it should be a whole number from 0 to {LARGEST}, or use verifier exact or boxed"
        )
    return GroundTruth(str(value))


def problems(task: Task) -> list[Problem]:
    """See `table_problems`."""
    return table_problems(task, ground_truth)


def _plainly(digits: str) -> str:
    return digits.lstrip("0") or "0"
