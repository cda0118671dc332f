"""The right answers of rows. A row may hold the right answer alone or at the end of a solution; every verifier whose right
answer is a value reads it here. The value is the first of these that exists:

1. the contents of `\\boxed{…}` or `\\fbox{…}`, and what follows `####` (the form of GSM8K);
2. the line after "answer is", "answer:" or "answer =", and after "A:" at the start of the text;
3. the complete text, if it is one line.

Different values in the same place, such as two boxes, are ambiguous and are refused. Each value is then run through its own
verifier: a right answer that would not count as right stops the job with its row.
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
"""Text around a right answer in the responses that its verifier has to accept."""
SHOWN = 60


def value_of(text: str, column: str) -> str:
    """The value in the text of a right answer; see the module docstring. column: of the text, for messages.

    Raises:
        DataError: the text holds different values, a box that does not close, or several lines and no mark of the value.
    """
    text = text.replace("\\fbox", "\\boxed")
    marked = [inside for inside in boxes(text) if "\\boxed" not in inside] + HASHES.findall(text)
    if not marked and "\\boxed" in text:
        raise DataError(f"{column} has a \\boxed without braces or without an end: {_short(text)}; write \\boxed{{value}}")
    if not marked:
        behind = [text[match.end() :].strip(BEHIND + "\n").partition("\n")[0] for match in MARKER.finditer(text)]
        marked = [line for line in behind if line.strip(BEHIND)]
    start = None if marked else START.match(text)
    values = [value.strip() for value in marked] or [text.strip() if start is None else text[start.end() :].strip()]
    other = next((value for value in values[1:] if not same(value, values[0])), None)
    if other is not None:
        raise DataError(
            f"{column} holds two final answers, {_short(values[0])} and {_short(other)}; keep one, or name a column that "
            "holds the final answer alone"
        )
    if not values[0].strip(BEHIND):
        raise DataError(f"{column} holds no final answer after its mark: {_short(text)}; give the value there")
    if not marked and len(values[0].splitlines()) > 1 and "\\begin{" not in values[0]:
        raise DataError(
            f"{column} is a text of {len(values[0].splitlines())} lines that marks no final answer: {_short(text)}; name a "
            "column that holds the final answer alone, or mark it with \\boxed{…} or ####"
        )
    return " ".join(values[0].split())


def accepted(
    truth: GroundTruth,
    verify: Callable[[Problem, str], Verdict],
    column: str,
    verifier: str,
    forms: Sequence[tuple[str, str]] = FORMS,
) -> GroundTruth:
    """The ground truth, if its verifier accepts the right answer in responses of these forms (text before, text after).

    Raises:
        DataError: a response that holds exactly the right answer does not count as right.
    """
    problem = Problem("", "", None, [], *truth)
    for before, after in forms:
        response = f"{before}{truth.reference}{after}"
        verdict = verify(problem, response)
        if not verdict.right:
            read = "nothing" if verdict.answer is None else _short(verdict.answer)
            raise DataError(
                f"{column} is {_short(truth.reference)}, and no response could be right: verifier {verifier} reads "
                f"{read} in the response {_short(response)}; write the answer with balanced braces, on one line, or choose "
                "another verifier"
            )
    return truth


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
