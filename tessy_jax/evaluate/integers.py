"""Answers that are whole numbers from 0 to 999, like those of the AIME; leading zeros do not count.

The answer is taken from the text after the thinking. It is the first of these that exists:

1. the number in the last `\\boxed{…}` that closes, alone, with a unit or at an end of an equation; a box with any other
   contents is a wrong answer;
2. in the first non-blank line after the last "answer is" or a similar phrase (see `answers`), the number that it states, or
   else the number at its start, the one after the last `=`, or the last number in the line; without a number in the
   line, the last number after it;
3. the last number.

Parts of other numbers and terms (decimals, −7, 12/5, 1,234, 7 + 18) do not count, nor do numbers that the text rejects ("not
12", "12 is wrong"). A number that the words around it change ("12 or 13", "at least 12", "12 thousand") is a wrong answer.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import DataError
from tessy_jax.evaluate.extraction import behind, boxed, first_line
from tessy_jax.evaluate.meaning import stated_value
from tessy_jax.evaluate.readings import AROUND, normalised, plain, value
from tessy_jax.evaluate.references import accepted, value_of
from tessy_jax.evaluate.tasks import GroundTruth, Problem, Verdict, table_problems, text_of

INTEGER = re.compile(r"(?<![\w.,/^−-])0*[0-9]{1,3}(?!\w|[.,/][0-9])", re.ASCII)
TERM = re.compile(r"\s*(?:[+*/^×·!±_]|[-–](?!\s+[a-zA-Z]{2})|\\(?:times|cdot|sqrt|pi|frac|pm))")
"""Text after a number that makes the number part of a term."""
AFTER_EQUALS = re.compile(rf"(?<![<>!:=])=[\s*$]*({INTEGER.pattern})(?!{TERM.pattern})", re.ASCII)
WHOLE = re.compile(r"(?<![0-9.,])([0-9]+)\.0+(?![0-9])", re.ASCII)
ZERO = re.compile(r"(?<![\w)}])-(?=0+(?![0-9]|[.,][0-9]))", re.ASCII)
COMMAND = re.compile(
    r"\^\{[^{}]*\}|\\(?:[dt]?frac|binom)\s*\{[^{}]*\}\s*\{[^{}]*\}|\\sqrt\s*(?:\[[^\[\]{}]*\]\s*)?\{[^{}]*\}"
)
"""Terms of LaTeX whose numbers are no answers."""
REJECTED = re.compile(
    r"\b(?:not|rather than|instead of|cannot be|can't be|isn't|except)\s+[*$(]*[0-9]+|不是\s*[0-9]+"
    r"|(?<![\w.])[0-9]+[*$)]*\s+(?:is|was)\s+(?:clearly\s+)?(?:wrong|incorrect|false|impossible|not\b)"
    r"|\b(?:step|case|part|equation|section|problem|question|page|line|lemma|theorem|figure|table)\s+[0-9]+",
    re.IGNORECASE | re.ASCII,
)
"""Numbers that the text rejects, and numbers of its own parts."""
BEFORE = re.compile(
    r"(?:\bbetween\s+[*$(]*[0-9]+\s*(?:,|and)\s*"
    r"|\b(?:between|at least|at most|about|approximately|approx|roughly|around|nearly|almost|minus|negative|neither|nor|over"
    r"|under|of the|up to|(?:more|less|fewer|greater|larger|smaller) than)\s+"
    r"|[0-9]\s*(?:\bor\b|\bto\b|–|-|&)\s*|\bor\s+\w\s*=\s*|[0-9a-zA-Z)}]\s*[-+*/^×·]\s*|(?:[<≠≈±~]|(?<![-=])(?<![a-zA-Z]{2})>)=?\s*"
    r"|\\(?:ne|neq|approx|sim|pm|mp|lt|gt|le|leq|ge|geq)\s*)[*$(]*$"
)
"""Text before a number that makes it a bound, one of several values or a part of a term."""
AFTER = re.compile(
    rf"[*$)}}\]]*+(?:(?<=\*)[0-9]|{TERM.pattern}|\s*,\s*[0-9]|:[0-9]"
    r"|\s+(?:or|and|to|through)\s+(?:[a-z]\s*=\s*)?[$*(]*(?:[-−]?[0-9]|a half|more|less)"
    r"|\s+(?:hundred|thousand|million|billion|dozen|(?:more|less|fewer) than|times|mod|plus|minus|factorial|squared|cubed"
    r"|choose|divided|multiplied|halves|percent more)\b|\s+x\s+[0-9]|\s+[0-9]+/[0-9]|.{0,12}\bbelow zero\b)"
)
"""Text after a number that makes it a bound, one of several values or a part of a term."""
AROUND_NUMBER = 40
"""Characters on each side of a number that are looked at."""
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
    """The number in an answer, without leading zeros, or the text that stands in its place; None if there is neither."""
    inside = boxed(answer)
    if inside is not None and inside.strip():
        number = stated_value(inside.replace("\\%", "").replace("%", ""))
        return inside.strip() if number is None or not _whole(number) else str(number)
    text = plain(answer)
    stated = behind(text)
    rest = stated or ""
    line = first_line(rest).lstrip(AROUND + "([{")
    number = stated_value(line.replace("\\%", "").replace("%", "")) if stated is not None else None
    if number is not None and number >= 0 and number.denominator == 1:
        return str(number)
    for pattern, replacement in ((WHOLE, r"\1"), (ZERO, ""), (COMMAND, "x^x"), (REJECTED, "")):
        line, rest, text = (pattern.sub(replacement, part) for part in (line, rest, text))
    first = INTEGER.match(line)
    if first and not TERM.match(line, first.end()):
        return _in_context(line, first.start(), first.end())
    after = list(AFTER_EQUALS.finditer(line))
    if after:
        return _in_context(line, *after[-1].span(1))
    for part in (text,) if stated is None else (line, rest):
        numbers = list(INTEGER.finditer(part))
        if numbers:
            return _in_context(part, *numbers[-1].span())
    return None


def _in_context(text: str, start: int, end: int) -> str:
    """The number at a place in a text, without leading zeros; with the text around it if that makes it another answer."""
    before = text[max(0, start - AROUND_NUMBER) : start].rpartition("\n")[2]
    after = text[end : end + AROUND_NUMBER].partition("\n")[0]
    if BEFORE.search(before) or AFTER.match(after):
        return f"{before}{text[start:end]}{after}".strip()
    return text[start:end].lstrip("0") or "0"


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
