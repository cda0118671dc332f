"""Extraction of the final answer, and its comparison with the right answer.

The final answer is taken from the text after the thinking. It is the first of these that exists:

1. the contents of the last `\\boxed{…}` that closes;
2. the first non-blank line after the last "answer is", "answer:" or "answer =" (in any case, bold or not);
3. the last non-blank line.

Two final answers are equal if both are numbers with the same value, as exact rationals, or if their texts are equal. A
number is a decimal, with an optional exponent (`1.5e3`) or separators between groups of three digits (`1,234`, `1\\,234`), a
fraction (`3/4`, `\\frac{3}{4}`, `½`, `2½`) or a percentage. The comparison of texts ignores case, the amount of white space,
layout of LaTeX, and surrounding white space, `*`, `_`, backticks, `$`, `"`, `\\(` and `\\)`, and at the end `.`, `,`, `;`
and `:`. If the right answer is a number, the answer may end in a unit ("12 apples"), and a decimal comma counts if the right
answer has one. "7 + 18 = 25" means 25, "not A but B" means B; see `readings`.
"""

from __future__ import annotations

import re

from tessy_jax.evaluate.readings import BEHIND, means, plain
from tessy_jax.evaluate.tasks import Problem, Verdict

MARKER = re.compile(r"\banswer\**\s*(?:is\b\s*:?|[:=])", re.IGNORECASE)
BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


class Exact:
    """Verifies that the final answer equals the right one as a number or as a text; see the module docstring."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        final = final_answer(plain(answer))
        if final is None:
            return Verdict(False, None, "no_answer")
        right = means(final, problem.reference)
        return Verdict(right, final, "right" if right else "wrong_answer")


def final_answer(answer: str) -> str | None:
    """The final answer, without white space at its ends; None if the answer is blank."""
    inside = boxed(answer)
    if inside is not None and inside.strip():
        return inside.strip()
    markers = list(MARKER.finditer(answer))
    if markers:
        behind = _lines(answer[markers[-1].end() :])
        if behind:
            return behind[0]
    lines = _lines(answer)
    return lines[-1] if lines else None


def boxed(answer: str) -> str | None:
    """The contents of the last `\\boxed{…}` that closes; None if there is none. Reads the text once."""
    opened: list[int | None] = []  # per open brace: the start of its box, or None
    last: tuple[int, int] | None = None
    for match in BRACES.finditer(answer):
        token = match[0]
        if token.startswith("\\boxed"):
            opened.append(match.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None and (last is None or start > last[0]):
                last = start, match.start()
    return None if last is None else answer[slice(*last)]


def _lines(text: str) -> list[str]:
    """The lines that hold more than white space and surrounding marks."""
    return [line.strip() for line in text.splitlines() if line.strip(BEHIND)]
