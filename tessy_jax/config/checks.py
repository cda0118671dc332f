"""The sections that say what prompts and responses are good enough, and their defaults: they stand here only."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tessy_jax.config.base import Count, Real, Section, Text
from tessy_jax.config.programs import Programs

VerifierName = Literal["mini", "exact", "boxed", "choice", "integer", "programs"]


class Verification(Section):
    """Which responses are right, and what becomes of the others."""

    verifier: VerifierName
    """Who says what is right, as for the tasks of an evaluation: mini, exact, boxed, choice, integer or programs."""
    answer: Text = "answer"
    """The column of data.path that holds the right answer; mini needs none, it knows the prompts by their ids."""
    programs: Programs | None = None
    """How programs are judged (null: as the defaults say); their tests stand in the rows of data.path."""
    wrong: Literal["keep", "drop", "resample"] = "resample"
    """A response that is not right is kept, with its verdict in meta (keep), recorded as a failure (drop), or a failed
    attempt like any other (resample)."""


class Against(Section):
    """Prompts of an evaluation."""

    path: Text
    """JSONL or Parquet file, or the name or folder of a `datasets` data set."""
    split: Text = "test"
    """Which split of a data set; a file has only one."""
    prompt: Text | None = None
    """The column that holds the question as text, such as problem (null: rows have a form that prompts may have)."""

    @model_validator(mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Decontamination(Section):
    """Which prompts are too much like those of evaluations."""

    against: list[Against] = Field(default_factory=list)
    """Prompts of evaluations: paths, or sections with path, split and prompt."""
    evaluation: bool = True
    """In a whole job: those of its own evaluation's tasks, too."""
    ngram: Count | None = 13
    """A prompt that shares so many words in a row with one of these is left out (null: however many it shares); so is one
    that is equal to one of these, however short."""
    common: Count = 10
    """Words in a row that more of these prompts have than so many are no sign: instructions are alike everywhere."""
    near_duplicates: Annotated[Real, Field(gt=0, le=1)] | None = 0.8
    """A prompt is left out, too, if the Jaccard similarity of its words, three at a time, to those of one of these is at
    least this (null: however near)."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.against and not self.evaluation:
            raise ValueError("against is empty and evaluation false, which leaves nothing to compare with; set one of them")
        return self
