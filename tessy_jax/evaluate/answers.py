"""Extraction of the final answer, and its comparison with the right answer.

The final answer is taken from the text after the thinking. It is the first of these that exists:

1. the contents of the last `\\boxed{…}` that closes, or of the last ones if "and", "or" or a comma joins them;
2. the first non-blank line after the last "answer is", "answer:" or "answer =" or its like in some other languages;
3. the last non-blank line.

Two final answers are equal if both are numbers with the same value, as exact rationals, or if their texts are equal. A
number is a decimal, with an optional exponent (`1.5e3`) or separators between groups of three digits (`1,234`, `1\\,234`), a
fraction (`3/4`, `\\frac{3}{4}`, `½`, `2½`) or a percentage. The comparison of texts ignores case, the amount of white space,
layout of LaTeX, and surrounding white space, `*`, `_`, backticks, `$`, `"`, `\\(` and `\\)`, and at the end `.`, `,`, `;`
and `:`. If the right answer is a number, the answer may end in a unit ("12 apples") or be a number word ("twelve"), and may
have a decimal comma. "7 + 18 = 25" means 25 and "not A but B" means B; "12 or 13", "about 12" and "more than 12" are no
numbers. See `meaning`.
"""

from __future__ import annotations

from typing import Any

from tessy_jax.config.evaluation import Task
from tessy_jax.evaluate.extraction import final_answer
from tessy_jax.evaluate.meaning import means
from tessy_jax.evaluate.readings import plain
from tessy_jax.evaluate.references import accepted, value_of
from tessy_jax.evaluate.tasks import GroundTruth, Problem, Verdict, table_problems, text_of


class Exact:
    """Verifies that the final answer equals the right one as a number or as a text; see the module docstring."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        final = final_answer(plain(answer))
        if final is None:
            return Verdict(False, None, "no_answer")
        right = means(final, problem.reference)
        return Verdict(right, final, "right" if right else "wrong_answer")


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The right answer of a row, which may hold it in a solution. See `tasks.GroundTruthReader`.

    Raises:
        DataError: the column does not hold exactly one answer, or the verifier does not accept it.
    """
    reference = value_of(text_of(row, column, needed=True), column)
    return accepted(GroundTruth(reference), Exact().verify, column, "exact")


def problems(task: Task) -> list[Problem]:
    """See `table_problems`."""
    return table_problems(task, ground_truth)
