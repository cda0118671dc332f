"""Extraction of the final answer from a text: its boxes, and what follows "answer is"."""

from __future__ import annotations

import re

from tessy_jax.evaluate.readings import BEHIND

MARKER = re.compile(r"\banswer\**\s*(?:is\b\s*:?|[:=])", re.IGNORECASE)
BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


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
    """The contents of the last `\\boxed{…}` that closes; None if there is none."""
    closed = _boxes(answer)
    return answer[slice(*max(closed))] if closed else None


def boxes(text: str) -> list[str]:
    """The contents of every `\\boxed{…}` that closes."""
    return [text[slice(*place)] for place in sorted(_boxes(text))]


def _boxes(text: str) -> list[tuple[int, int]]:
    """The start and end of the contents of every box that closes. Reads the text once."""
    opened: list[int | None] = []  # per open brace: the start of its box, or None
    closed = []
    for match in BRACES.finditer(text):
        token = match[0]
        if token.startswith("\\boxed"):
            opened.append(match.end())
        elif token == "{":
            opened.append(None)
        elif token == "}" and opened:
            start = opened.pop()
            if start is not None:
                closed.append((start, match.start()))
    return closed


def _lines(text: str) -> list[str]:
    """The lines that hold more than white space and surrounding punctuation."""
    return [line.strip() for line in text.splitlines() if line.strip(BEHIND)]
