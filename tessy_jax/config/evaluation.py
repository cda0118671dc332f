"""The sections of an evaluation, and their defaults: they stand here only."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal, Self

from pydantic import Field, StringConstraints, model_validator

from tessy_jax.config.base import Count, Real, Section, Text
from tessy_jax.config.checks import VerifierName
from tessy_jax.config.programs import Programs
from tessy_jax.config.sections import Dated, Model, Sampling, Synthesis

Domain = Literal["in", "out"]


class Items(Section):
    """Which tasks of the miniature world."""

    families: Annotated[list[Text], Field(min_length=1)]
    """Ae and Ah (sums without and with the multipliers that the student has never seen), A (both), B, C, D."""
    items: Count = 500
    """Problems of each family."""
    split: Literal["test", "validation"] = "test"
    """Nothing is ever trained on these two."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    """Gives other problems."""


class Task(Section):
    """Problems of one kind."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """What the results call it: letters, digits, "." "_" and "-"."""
    path: Text | None = None
    """Prompts with their answers: JSONL or Parquet file, or the name or folder of a `datasets` data set. Where it has a
    column `family` or `subject`, there are results for each of what this names, too."""
    split: Text = "test"
    """Which split of a data set; a file has only one."""
    limit: Count | None = None
    """Use only this many rows from the start (null: all)."""
    prompt: Text | None = None
    """The column that holds the question as text, such as problem (null: rows have a form that prompts may have; for choice
    a `question` with its choices, too)."""
    answer: Text = "answer"
    """The column that holds the right answer."""
    mini: Items | None = None
    """Problems of the miniature world, instead of a path."""
    verifier: VerifierName
    """Who says what is right: the miniature's own (mini), equal text or numbers (exact), equal mathematics in the last
    \\boxed{…} (boxed), the right one of several choices (choice), a whole number from 0 to 999 (integer), or tests that the
    program in the last fenced block passes (programs)."""
    programs: Programs | None = None
    """How programs are judged (null: as the defaults say)."""
    domain: Domain = "in"
    """Of the kind that the student is trained on (in), or of another that it should not forget (out)."""
    samples: Count = 1
    """Responses to each problem."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.mini is None):
            found = "neither path nor mini" if self.path is None else "both path and mini"
            raise ValueError(
                f"task {self.name!r} has {found}; set path to a file of problems, or mini to families, and not both"
            )
        if (self.verifier == "mini") != (self.mini is not None):
            right = "verifier mini" if self.mini is not None else "verifier exact, boxed, choice, integer or programs"
            raise ValueError(
                f"task {self.name!r} has verifier {self.verifier!r}, which does not fit its problems; use {right}"
            )
        if self.mini is not None and self.prompt is not None:
            raise ValueError(f"task {self.name!r} has both mini and prompt; prompt is for a path: leave it out")
        if self.programs is not None and self.verifier != "programs":
            raise ValueError(
                f"task {self.name!r} has programs, and verifier {self.verifier!r}; use verifier programs, or leave them out"
            )
        return self

    @property
    def running(self) -> Programs:
        """How programs are judged."""
        return self.programs or Programs()


class EvaluationSynthesis(Synthesis):
    """How responses are written: by the student alone, and once, so that a response that comes to nothing is a wrong one."""

    recipe: Literal["student_only"] = "student_only"
    """The student alone; nothing else can be evaluated."""
    max_attempts: Literal[1] = 1
    """A response that fails is wrong; a second attempt would hide it."""
    verification: None = None
    """Each task has a verifier of its own."""


class EvaluationTasks(Section):
    """What a student is asked, and how the answers are counted."""

    tasks: Annotated[list[Task], Field(min_length=1)]
    """What it is asked."""
    synthesis: EvaluationSynthesis = EvaluationSynthesis()
    confidence: Annotated[Real, Field(gt=0, lt=1)] = 0.95
    """How probably an interval should hold the true value."""

    @model_validator(mode="after")
    def _apart(self) -> Self:
        twice = [name for name, times in Counter(task.name for task in self.tasks).items() if times > 1]
        if twice:
            raise ValueError(f"tasks: the name {twice[0]!r} stands twice; give each task its own")
        return self

    def check_samples(self, sampling: Sampling | None) -> None:
        """That several answers to a problem may differ. sampling: of the student; None: the default.

        Raises:
            ValueError: they are all the same.
        """
        several = [task for task in self.tasks if task.samples > 1]
        if several and (sampling or Sampling()).temperature == 0:
            raise ValueError(
                f"task {several[0].name!r} has samples {several[0].samples}, which are all the same at temperature 0; set "
                "samples to 1, or student.sampling.temperature higher"
            )


class Evaluate(EvaluationTasks, Dated):
    """Finds out what a model is worth."""

    student: Model
    """The model. Its sampling, where null, is that of the data (temperature 0.7, top-p 0.8, top-k 20)."""

    @model_validator(mode="after")
    def _sound(self) -> Self:
        self.check_samples(self.student.sampling)
        return self

    def resolved(self) -> Self:
        """Sampling that is None is filled in; the date is the job's to fill in."""
        if self.student.sampling is not None:
            return self
        return self.model_copy(update={"student": self.student.model_copy(update={"sampling": Sampling()})})
