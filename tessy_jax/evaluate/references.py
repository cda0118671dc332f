"""The right answers of rows. A row may hold the right answer alone or in a solution; all verifiers whose right answer is a
value read it here. The value is the first of these that exists:

1. the contents of `\\boxed{…}` or `\\fbox{…}`, and the rest of a line after `####` (the form of GSM8K);
2. the first line after "answer is", "answer:" or "answer =", and after "A:" at the start of the text;
3. the complete text, if it is one line.

Different values in the same place, such as two boxes, are refused. The verifier then has to accept each value. A right
answer that it does not accept stops the job; the error names its row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from tessy_jax.errors import DataError
from tessy_jax.evaluate.extraction import MARKER, boxes
from tessy_jax.evaluate.readings import BEHIND, same
from tessy_jax.evaluate.tasks import GroundTruth, Problem, Verdict

HASHES = re.compile(r"(?<!#)####(?!#)[ \t]*([^\r\n]*)")
START = re.compile(r"\s*A:(?:\s+|(?=[0-9$\\+-]))(?=\S)")
FORMS = (("\\boxed{", "}"), ("The answer is ", ""), ("", ""))
"""The text before and after a right answer, in responses that its verifier has to accept."""
SHOWN = 60


def value_of(text: str, column: str) -> str:
    """The value in the text of a right answer; see the module docstring. column: the column of the text, for messages.

    Raises:
        DataError: the text holds different values, a box that does not close, or several lines without a marked value.
    """
    text = text.replace("\\fbox", "\\boxed")
    marked = boxes(text) + HASHES.findall(text)
    if not marked and "\\boxed" in text:
        raise DataError(f"{column} has a \\boxed without a pair of braces: {_short(text)}; write \\boxed{{value}}")
    if not marked:
        marks = [match.span() for match in MARKER.finditer(text)]
        ends = [*(start for start, _ in marks[1:]), len(text)]
        behind = [
            text[start:end].strip(BEHIND + "\n").partition("\n")[0] for (_, start), end in zip(marks, ends, strict=False)
        ]
        marked = [line for line in behind if line.strip(BEHIND)]
    start = None if marked else START.match(text)
    values = [value.strip() for value in marked] or [text.strip() if start is None else text[start.end() :].strip()]
    other = next((value for value in values[1:] if not same(value, values[0])), None)
    if other is not None:
        raise DataError(
            f"{column} holds two final answers, {_short(values[0])} and {_short(other)}; keep one, or set answer to a "
            "column that holds only the final answer"
        )
    if not values[0].strip(BEHIND):
        raise DataError(f"{column} holds no final answer where it marks one: {_short(text)}; write the value there")
    if not marked and len(values[0].splitlines()) > 1 and "\\begin{" not in values[0]:
        raise DataError(
            f"{column} is a text of {len(values[0].splitlines())} lines that marks no final answer: {_short(text)}; set "
            "answer to a column that holds only the final answer, or mark it with \\boxed{…} or ####"
        )
    return " ".join(values[0].split())


def accepted(
    truth: GroundTruth,
    verify: Callable[[Problem, str], Verdict],
    column: str,
    verifier: str,
    forms: Sequence[tuple[str, str]] = FORMS,
) -> GroundTruth:
    """Returns the ground truth if its verifier accepts it in responses of these forms (text before, text after).

    Raises:
        DataError: the verifier does not accept a response that holds exactly the right answer.
    """
    problem = Problem("", "", None, [], *truth)
    for before, after in forms:
        response = f"{before}{truth.reference}{after}"
        verdict = verify(problem, response)
        if not verdict.right:
            read = "nothing" if verdict.answer is None else _short(verdict.answer)
            raise DataError(
                f"{column} is {_short(truth.reference)}, which no response can match: verifier {verifier} reads {read} in "
                f"the response {_short(response)}; write the answer on one line, with balanced braces, or use another "
                "verifier"
            )
    return truth


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
