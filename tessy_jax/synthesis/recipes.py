"""The systems that are compared (method, section 5), each in a few words: who thinks and who answers.

The engine knows per response who thinks and who answers, and nothing of recipes; a recipe may decide it anew for each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Name = Literal["student", "teacher"]


@dataclass(frozen=True)
class Roles:
    """Who writes one response. thinkers: one, or both in turns, the first beginning."""

    thinkers: tuple[Name, ...]
    answerer: Name


@dataclass(frozen=True)
class Recipe:
    """models: which have to be loaded. roles: of one response, from its number (uniform over 32 bits) and the configured
    writer of final answers to shared thinking. turns: models take turns, so that boundary predictors are needed. before: the
    recipe of a pass whose responses this one builds on; see `passes`."""

    models: tuple[Name, ...]
    roles: Callable[[int, Name], Roles]
    turns: bool = False
    first_pass: str | None = None


STUDENT, TEACHER = Roles(("student",), "student"), Roles(("teacher",), "teacher")
BOTH: tuple[Name, ...] = ("student", "teacher")

RECIPES: dict[str, Recipe] = {
    "tessy": Recipe(BOTH, lambda number, answerer: Roles(BOTH, answerer), turns=True),
    "teacher_only": Recipe(("teacher",), lambda number, answerer: TEACHER),
    "student_only": Recipe(("student",), lambda number, answerer: STUDENT),
    "teacher_think": Recipe(BOTH, lambda number, answerer: Roles(("teacher",), "student")),
    "teacher_answer": Recipe(BOTH, lambda number, answerer: Roles(("student",), "teacher")),
    "teacher_mix": Recipe(BOTH, lambda number, answerer: (STUDENT, TEACHER)[number & 1]),
    "teacher_score": Recipe(("student",), lambda number, answerer: STUDENT, first_pass="student_only"),
    "teacher_reference": Recipe(("student",), lambda number, answerer: STUDENT, first_pass="teacher_only"),
}
