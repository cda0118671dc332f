"""Two ways to compare what a program gave with what it should have given.

`strict` is what a judge of contests does. Output: the lines that are not blank must have the same tokens; how much white
space is between them does not count. A token is the same if its text is, or if the expected one is a decimal fraction
("0.5", "1e-3") and the other a number that differs by at most 10⁻⁶, absolutely or relatively; the test's own checker may say
another tolerance, for all numbers ("floats"; "floatsabs" and "floatsrel": in that way alone), or that every byte counts
("identical"). Values: equal, a list or a tuple alike, fractions within the same tolerance; true is no 1, and 3.0 no 3.

`compat` is what LiveCodeBench's public code does, so that figures can be compared with published ones. Output: both are
stripped, and so is each line; there must be as many lines, blank ones included, and two lines are the same if their texts
are, or if both consist of decimals and these are equal as exact numbers ("1.0" is "1", 0.3333333 is not 0.33333333, and "a
 b" with two spaces is not "a b"). Values: equal as Python sees it, with a tuple in place of a list at the top alone.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal, InvalidOperation
from typing import Any

TOLERANCE = Decimal("1e-6")
LONGEST = 100
"""Characters of a number."""
NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?", re.ASCII)
INTEGER = re.compile(r"[+-]?[0-9]+", re.ASCII)


def strict(output: str, expected: str, checker: str = "standard") -> bool:
    """checker: "standard", "identical", or "floats:<digits>", "floatsabs:<digits>" or "floatsrel:<digits>"."""
    if checker == "identical":
        return output == expected
    kind, _, digits = checker.partition(":")
    tolerance = Decimal(1).scaleb(-int(digits)) if digits else TOLERANCE
    found, wanted = _tokens(output), _tokens(expected)
    return len(found) == len(wanted) and all(
        len(a) == len(b) and all(_same(x, y, tolerance, kind) for x, y in zip(a, b, strict=True))
        for a, b in zip(found, wanted, strict=True)
    )


def compat(output: str, expected: str) -> bool:
    """See above."""
    found, wanted = ([line.strip() for line in text.strip().split("\n")] for text in (output, expected))
    return len(found) == len(wanted) and all(_alike(a, b) for a, b in zip(found, wanted, strict=True))


def strict_value(found: Any, expected: Any) -> bool:
    """expected: as JSON has it. found: with tuples and sets, too."""
    if isinstance(expected, float) and type(found) in (int, float):
        return _near(found, expected)
    if isinstance(expected, list):
        listed = isinstance(found, list | tuple) and len(found) == len(expected)
        return listed and all(strict_value(a, b) for a, b in zip(found, expected, strict=True))
    if isinstance(expected, dict):
        return (
            isinstance(found, dict)
            and found.keys() == expected.keys()
            and all(strict_value(found[key], value) for key, value in expected.items())
        )
    return type(found) is type(expected) and bool(found == expected)


def compat_value(found: Any, expected: Any) -> bool:
    """As `strict_value`."""
    return bool((list(found) if isinstance(found, tuple) else found) == expected)


def _near(found: float, expected: float) -> bool:
    """found: may be a whole number, too, of any size."""
    if not math.isfinite(expected):
        return found == expected
    try:
        return abs(found - expected) <= float(TOLERANCE) * max(1.0, abs(expected))
    except OverflowError:  # it is larger than any fraction
        return False


def _tokens(text: str) -> list[list[str]]:
    return [tokens for line in text.split("\n") if (tokens := line.split())]


def _same(found: str, expected: str, tolerance: Decimal, kind: str) -> bool:
    """kind: a checker without its digits."""
    if found == expected:
        return True
    if max(len(found), len(expected)) > LONGEST or not (NUMBER.fullmatch(found) and NUMBER.fullmatch(expected)):
        return False
    if INTEGER.fullmatch(expected) and kind == "standard":
        return False
    a, b = Decimal(found), Decimal(expected)
    size = {"floatsabs": Decimal(1), "floatsrel": abs(b)}.get(kind, max(Decimal(1), abs(b)))
    return abs(a - b) <= tolerance * size


def _alike(found: str, expected: str) -> bool:
    if found == expected:
        return True
    try:
        a, b = ([Decimal(token) for token in text.split()] for text in (found, expected))
        return a == b
    except InvalidOperation:
        return False
