"""The sections of a comparison, and the only place of their defaults."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, model_validator

from tessy_jax.config.analysis import Analysis
from tessy_jax.config.base import Text
from tessy_jax.config.file import with_changes
from tessy_jax.config.pipeline import BEFORE, Pipeline

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
UNTOUCHED = "untouched"
"""The name in tables of students before training."""
ALONE = "student"
"""The name of the student if `students` is empty."""
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]


class Cell(NamedTuple):
    """One job of a comparison.

    place: its run folder, relative to that of the comparison.
    before: the run folder of the untrained student's evaluation, which the jobs of one student and seed share.
    """

    variant: str
    student: str
    seed: int
    place: str
    before: str
    config: Pipeline


class Comparison(Pipeline):
    """One job in several variants, for several students and seeds."""

    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """Changes of the job, by variant: dotted keys and values, e.g. teacher_only: {synthesis.recipe: teacher_only}."""
    seeds: Annotated[list[Seed], Field(min_length=1)] | dict[str, Annotated[list[Seed], Field(min_length=1)]] = Field(
        default_factory=lambda: [0, 1, 2]
    )
    """Seeds of the jobs, for all students or by student; each also selects other problems of the miniature's tasks."""
    students: dict[str, Text] = Field(default_factory=dict)
    """Folders or hub names of students, by name (empty: the student of the job)."""
    baseline: Text | None = None
    """The variant that all others are compared with, besides the untrained students (null: none)."""
    analysis: Analysis = Analysis()
    """The settings of `tessy analyze`."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in (*self.variants, *self.students):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid folder name; use letters, digits, '.', '_' and '-'")
        reserved = next((name for name in self.variants if name in (UNTOUCHED, BEFORE)), None)
        if reserved is not None:
            raise ValueError(f"variants.{reserved}: the name is reserved for the untouched students; use another")
        for name, seeds in self._seeds().items():
            if len(set(seeds)) < len(seeds):
                raise ValueError("seeds holds a seed twice; list each seed once")
            if name not in (list(self.students) or [ALONE]):
                raise ValueError(f"seeds are given for {name!r}, which is no student; they are {', '.join(self.students)}")
        if len(self._seeds()) < len(self.students):
            without = next(name for name in self.students if name not in self._seeds())
            raise ValueError(f"seeds has none for student {without!r}; give every student some, or all of them a list")
        fixed = next((f"{v}: {key}" for v, changes in self.variants.items() for key in changes if self._shared(key)), None)
        if self.baseline is not None and self.baseline not in self.variants:
            raise ValueError(f"baseline is {self.baseline!r}, which is no variant; they are {', '.join(self.variants)}")
        if fixed is not None:
            raise ValueError(
                f"variants.{fixed} belongs to the comparison, or to the evaluation that all variants share; set it at the "
                "top level, next to variants"
            )
        return self

    def resolved(self) -> Self:
        """The comparison itself. Values are filled in per job, because variants may change the keys that they depend on."""
        return self

    def _shared(self, key: str) -> bool:
        """Whether all variants must share this key, or a section around it."""
        parts = key.split(".")
        shared = key in ("student", "evaluation") or (parts[:2] == ["student", "sampling"] and not self.evaluation.sampling)
        return shared or bool({".".join(parts[:i]) for i in range(1, len(parts) + 1)} & (COMPARISON_KEYS | EVALUATION_KEYS))

    def _seeds(self) -> dict[str, list[Seed]]:
        """The seeds of every student."""
        if isinstance(self.seeds, dict):
            return self.seeds
        return dict.fromkeys(self.students or [ALONE], self.seeds)

    def cells(self) -> Iterator[Cell]:
        """Yields all jobs, by student, seed and variant.

        Raises:
            ConfigError: the configuration of a variant is invalid; names variant and key.
        """
        base = {name: value for name, value in self.model_dump().items() if name in Pipeline.model_fields}
        for student, model in (self.students or {ALONE: self.student.model}).items():
            for seed in self._seeds()[student]:
                tasks = [
                    task if task["mini"] is None else task | {"mini": task["mini"] | {"seed": task["mini"]["seed"] + seed}}
                    for task in base["evaluation"]["tasks"]
                ]
                own = {"seed": seed, "student.model": model, "evaluation.tasks": tasks}
                for variant, changes in self.variants.items():
                    place = f"{student}/seed-{seed}/{variant}"
                    config = with_changes(Pipeline, base, {**own, **changes}, f"variants.{variant}")
                    yield Cell(variant, student, seed, place, f"{student}/seed-{seed}/before", config)


COMPARISON_KEYS = frozenset({"output", "seed", "mesh", "date"})
"""Keys that belong to the comparison."""
EVALUATION_KEYS = frozenset(
    {
        *(f"student.{name}" for name in ("model", "revision", "dtype", "thinking", "template", "system")),
        *(f"evaluation.{name}" for name in ("tasks", "synthesis", "sampling", "confidence")),
    }
)
"""Keys that define the evaluation, which the untrained students share."""
