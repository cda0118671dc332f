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
    writer of final answers to shared thinking."""

    models: tuple[Name, ...]
    roles: Callable[[int, Name], Roles]


RECIPES: dict[str, Recipe] = {
    "tessy": Recipe(("student", "teacher"), lambda number, answerer: Roles(("student", "teacher"), answerer)),
    "teacher_only": Recipe(("teacher",), lambda number, answerer: Roles(("teacher",), "teacher")),
    "student_only": Recipe(("student",), lambda number, answerer: Roles(("student",), "student")),
}
