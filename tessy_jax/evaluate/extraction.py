"""Extraction of the final answer from a text: its boxes, and what follows "answer is"."""

from __future__ import annotations

import re

from tessy_jax.evaluate.readings import BEHIND

MARKER = re.compile(
    r"\b(?:answer|antwort|respuesta|réponse|resposta|risposta|ответ)\**\s*(?:(?:is|ist|es|est|é|è)\b(?!n't)\s*:?|[:=])"
    r"|(?:答案|答え)\**\s*(?:是|为|為|は|[:=])\s*:?",
    re.IGNORECASE,
)
"""What stands before a final answer, in the languages that models use most."""
JOINT = re.compile(r"[\s$]*(?:,|or|and|, ?or|, ?and)[\s$]*")
"""Text between two boxes that are one answer."""
BOX = re.compile(r"\\boxed\s*\{$")
BRACES = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)


def final_answer(answer: str) -> str | None:
    """The final answer, without white space at its ends; None if the answer is blank."""
    inside = boxed(answer)
    if inside is not None and inside.strip():
        return inside.strip()
    stated = first_line(behind(answer) or "").strip()
    if stated:
        return stated
    lines = _lines(answer)
    return lines[-1] if lines else None


def behind(answer: str, marker: re.Pattern[str] = MARKER) -> str | None:
    """The text after the last marker; None if there is none."""
    markers = list(marker.finditer(answer))
    return answer[markers[-1].end() :] if markers else None


def first_line(text: str) -> str:
    """The first line that holds more than white space and surrounding punctuation; empty if there is none."""
    return next((line for line in text.splitlines() if line.strip(BEHIND)), "")


def boxed(answer: str) -> str | None:
    """The contents of the last `\\boxed{…}` that closes; None if there is none.

    Boxes that a comma, "or" or "and" joins are one list.
    """
    closed = sorted(_boxes(answer))
    if not closed:
        return None
    first = len(closed) - 1
    while first and JOINT.fullmatch(BOX.sub("", answer[closed[first - 1][1] + 1 : closed[first][0]])):
        first -= 1
    contents = [answer[slice(*place)] for place in closed[first:]]
    return contents[-1] if len({text.strip() for text in contents}) == 1 else ", ".join(text.strip() for text in contents)


def boxes(text: str) -> list[str]:
    """The contents of every `\\boxed{…}` that closes and holds no other box."""
    places = sorted(_boxes(text))
    following = [start for start, _ in places[1:]] + [len(text)]
    inner = [text[start:end] for (start, end), next_start in zip(places, following, strict=False) if end <= next_start]
    return [inside for inside in inner if "\\boxed" not in inside]


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
