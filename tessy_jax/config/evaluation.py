"""The sections of an evaluation, and the only place of their defaults."""

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
    """Problems of the miniature."""

    families: Annotated[list[Text], Field(min_length=1)]
    """Ae and Ah (sums without and with the multipliers that the student has never seen), A (both), B, C, D."""
    items: Count = 500
    """Problems of each family."""
    split: Literal["test", "validation"] = "test"
    """The split; neither is used for training."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    """Selects the problems."""


class Task(Section):
    """Problems of one kind."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Its name in the results: letters, digits, ".", "_" and "-"."""
    path: Text | None = None
    """Prompts with their answers: JSONL, JSON, CSV, TSV or Parquet file, or the name or folder of a `datasets` data set.
    With a column `family` or `subject`, results are also given per value of that column."""
    split: Text = "test"
    """The split of a data set; a file has only one."""
    subset: Text | None = None
    """The configuration of a data set that has several, such as main of openai/gsm8k (null: its default or only one)."""
    limit: Count | None = None
    """Use only this many rows from the start (null: all)."""
    prompt: Text | None = None
    """The column that holds the question as text, such as problem (null: rows have one of the accepted forms, or, for
    choice, a `question` with its choices)."""
    answer: Text = "answer"
    """The column that holds the right answer."""
    mini: Items | None = None
    """Problems of the miniature, instead of a path."""
    verifier: VerifierName
    """The verifier: the miniature's own (mini), equal text or numbers (exact), equal mathematics in the last
    \\boxed{…} (boxed), the right one of several choices (choice), an integer from 0 to 999 (integer), or tests that the
    program in the last fenced block passes (programs)."""
    programs: Programs | None = None
    """How programs are verified (null: the defaults)."""
    domain: Domain = "in"
    """in: the domain that the student is trained on; out: another domain that it should not forget."""
    samples: Count = 1
    """Responses per problem."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.mini is None):
            given = "neither path nor mini" if self.path is None else "both path and mini"
            raise ValueError(
                f"task {self.name!r} has {given}; set path to a file of problems, or mini to families, and not both"
            )
        if (self.verifier == "mini") != (self.mini is not None):
            right = "verifier mini" if self.mini is not None else "verifier exact, boxed, choice, integer or programs"
            raise ValueError(
                f"task {self.name!r} has verifier {self.verifier!r}, which does not fit its problems; use {right}"
            )
        extra = next((key for key in ("prompt", "subset") if self.mini is not None and getattr(self, key) is not None), None)
        if extra is not None:
            raise ValueError(f"task {self.name!r} has both mini and {extra}; {extra} applies only to a path: leave it out")
        if self.programs is not None and self.verifier != "programs":
            raise ValueError(
                f"task {self.name!r} has programs, and verifier {self.verifier!r}; use verifier programs, or leave them out"
            )
        return self

    @property
    def running(self) -> Programs:
        """How programs are verified."""
        return self.programs or Programs()


class EvaluationSynthesis(Synthesis):
    """How responses are written: by the student alone, in one attempt; a failed response counts as wrong."""

    recipe: Literal["student_only"] = "student_only"
    """The student writes alone; other recipes cannot be evaluated."""
    max_attempts: Literal[1] = 1
    """A response that fails is wrong; a second attempt would hide it."""
    verification: None = None
    """Each task has its own verifier."""


class EvaluationTasks(Section):
    """The problems of an evaluation, and how its results are computed."""

    tasks: Annotated[list[Task], Field(min_length=1)]
    """The tasks."""
    synthesis: EvaluationSynthesis = EvaluationSynthesis()
    confidence: Annotated[Real, Field(gt=0, lt=1)] = 0.95
    """The confidence level of intervals."""

    @model_validator(mode="after")
    def _unique_names(self) -> Self:
        repeated = [name for name, times in Counter(task.name for task in self.tasks).items() if times > 1]
        if repeated:
            raise ValueError(f"tasks: two tasks have the name {repeated[0]!r}; give each task its own name")
        return self

    def check_samples(self, sampling: Sampling | None) -> None:
        """Checks that several responses to a problem can differ. sampling: of the student; None for the default.

        Raises:
            ValueError: the temperature is 0, so that they are equal.
        """
        several = [task for task in self.tasks if task.samples > 1]
        if several and (sampling or Sampling()).temperature == 0:
            raise ValueError(
                f"task {several[0].name!r} has samples {several[0].samples}, which are all the same at temperature 0; set "
                "samples to 1, or student.sampling.temperature higher"
            )


class Evaluate(EvaluationTasks, Dated):
    """Evaluates a model."""

    student: Model
    """The model. If its sampling is null, it is that of the data (temperature 0.7, top-p 0.8, top-k 20)."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Self:
        self.check_samples(self.student.sampling)
        return self

    def resolved(self) -> Self:
        """A copy with the sampling filled in if it is None. The job fills in the date."""
        if self.student.sampling is not None:
            return self
        return self.model_copy(update={"student": self.student.model_copy(update={"sampling": Sampling()})})
