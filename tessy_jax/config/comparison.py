"""The sections of a comparison, and their defaults: they stand here only."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, Self

from pydantic import Field, model_validator

from tessy_jax.config.analysis import Analysis
from tessy_jax.config.base import Text
from tessy_jax.config.file import varied
from tessy_jax.config.pipeline import Pipeline

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Seed = Annotated[int, Field(ge=0, lt=1 << 31)]


class Cell(NamedTuple):
    """One job of a comparison. place: its run folder, within that of the comparison; before: that of the untouched student's
    evaluation, which the jobs of a student and seed share."""

    variant: str
    student: str
    seed: int
    place: str
    before: str
    config: Pipeline


class Comparison(Pipeline):
    """The same job several times: in variants, for several students and seeds."""

    variants: Annotated[dict[str, dict[str, Any]], Field(min_length=1)]
    """By name, dotted keys of the job and their values, e.g. teacher_only: {synthesis.recipe: teacher_only}."""
    seeds: Annotated[list[Seed], Field(min_length=1, default_factory=lambda: [0, 1, 2])]
    """Each gives the job its seed, and tasks of the miniature other problems."""
    students: dict[str, Text] = Field(default_factory=dict)
    """By name, folders or hub names of students (empty: that of the job)."""
    analysis: Analysis = Analysis()
    """What `tessy analyze` looks at."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        for name in (*self.variants, *self.students):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name for a folder; use letters, digits, '.', '_' and '-'")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError("a seed stands twice in seeds; give each once")
        fixed = next((f"{v}: {key}" for v, found in self.variants.items() for key in found if key in OWN), None)
        if fixed is not None:
            raise ValueError(f"variants.{fixed} is the comparison's own; set it beside variants")
        return self

    def resolved(self) -> Self:
        """The same: what follows from other keys follows from those of each job, which a variant may change."""
        return self

    def cells(self) -> Iterator[Cell]:
        """All jobs, student by student and seed by seed.

        Raises:
            ConfigError: a variant is no job; names variant and key.
        """
        base = {name: value for name, value in self.model_dump().items() if name in Pipeline.model_fields}
        for student, model in (self.students or {"student": self.student.model}).items():
            for seed in self.seeds:
                tasks = [
                    task if task["mini"] is None else task | {"mini": task["mini"] | {"seed": task["mini"]["seed"] + seed}}
                    for task in base["evaluation"]["tasks"]
                ]
                own = {"seed": seed, "student.model": model, "evaluation.tasks": tasks}
                for variant, changes in self.variants.items():
                    place = f"{student}/seed-{seed}/{variant}"
                    config = varied(Pipeline, base, {**own, **changes}, f"variants.{variant}")
                    yield Cell(variant, student, seed, place, f"{student}/seed-{seed}/before", config)


OWN = frozenset({"output", "seed", "mesh", "evaluation.tasks", "student.model"})
"""Keys that no variant may change."""
