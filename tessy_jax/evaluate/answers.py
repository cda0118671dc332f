"""What of an answer counts, and whether it equals the right one.

The final answer is, of all that stands behind the thinking, the first of these that there is:

1. the contents of the last `\\boxed{…}` that closes;
2. what follows the last "answer is", "answer:" or "answer =" (any case, bold or not): its first line that is not blank;
3. the last line that is not blank.

Two final answers are equal if both are numbers and these are equal, as exact rationals, or if their texts are equal. Numbers
are written in decimals, with an exponent (`1.5e3`), with commas between groups of three digits (`1,234`), or as a fraction
(`3/4`). Texts are compared without regard to case, to how much white space there is, and to what stands around them: white
space, `*`, backticks, `$`, `"`, `\\(` and `\\)`, and at the end `.`, `,`, `;` and `:`. A word more ("12 apples") is another
text.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from tessy_jax.evaluate.tasks import Problem, Verdict

MARKER = re.compile(r"\banswer\**\s*(?:is\b\s*:?|[:=])", re.IGNORECASE)
BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
NUMBER = re.compile(
    r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,3})?(?: ?/ ?[0-9]+)?", re.ASCII
)
LONGEST = 200
"""Characters of a number."""
AROUND = ' \t\r\n\v\f*`$"'
BEHIND = AROUND + ".,;:"
MINUS = str.maketrans({"−": "-", "\u2011": "-"})


class Exact:
    """The final answer and the right one are equal as numbers or as texts; see above."""

    def verify(self, problem: Problem, answer: str) -> Verdict:
        """See `tasks.Verifier`."""
        found = final_answer(answer)
        if found is None:
            return Verdict(False, None, "no_answer")
        right = same(found, problem.reference)
        return Verdict(right, found, "right" if right else "wrong_answer")


def final_answer(answer: str) -> str | None:
    """The part of an answer that counts, without white space at its ends; None where all is blank."""
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
    """The contents of the last `\\boxed{…}` that closes; None where there is none. Reads the text once."""
    opened: list[int | None] = []  # of every brace that is open: where a box begins, or None
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


def same(a: str, b: str) -> bool:
    """Whether two final answers are equal, as numbers or as texts."""
    a, b = normalised(a), normalised(b)
    x, y = number(a), number(b)
    return a == b if x is None or y is None else x == y


def normalised(text: str) -> str:
    """A text without what does not count when it is compared."""
    text = " ".join(unicodedata.normalize("NFC", text).translate(MINUS).split())
    for _ in range(2):  # around \\( and \\), and inside
        text = text.lstrip(AROUND).rstrip(BEHIND).removeprefix("\\(").removesuffix("\\)")
    return text.strip().casefold()


def number(text: str) -> Fraction | None:
    """The number that a normalised text is, exactly; None where it is none."""
    if len(text) > LONGEST or not NUMBER.fullmatch(text):
        return None
    try:
        above, _, below = text.replace(",", "").partition("/")
        return Fraction(above.strip()) / Fraction(below.strip() or 1)
    except (ValueError, ZeroDivisionError):
        return None


def _lines(text: str) -> list[str]:
    """The lines that are not blank, and hold more than marks around a text."""
    return [line.strip() for line in text.splitlines() if line.strip(BEHIND)]
