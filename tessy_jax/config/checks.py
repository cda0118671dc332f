"""The sections that filter prompts and responses, and the only place of their defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tessy_jax.config.base import Count, Real, Section, Text
from tessy_jax.config.programs import Programs

VerifierName = Literal["mini", "exact", "boxed", "choice", "integer", "programs"]


class Verification(Section):
    """How responses are verified, and how wrong ones are handled."""

    verifier: VerifierName
    """The verifier, as for the tasks of an evaluation: mini, exact, boxed, choice, integer or programs."""
    answer: Text = "answer"
    """The column of data.path that holds the right answer. mini needs none, because it identifies prompts by their ids, and
    programs has its tests."""
    programs: Programs | None = None
    """How programs are verified (null: the defaults); the rows of data.path hold their tests."""
    wrong: Literal["keep", "drop", "resample"] = "resample"
    """A wrong response is kept with its verdict in meta (keep), recorded as a failure (drop), or counted as a failed attempt
    (resample)."""


class Against(Section):
    """Prompts of an evaluation."""

    path: Text
    """JSONL, JSON, CSV, TSV or Parquet file, or the name or folder of a `datasets` data set."""
    split: Text = "test"
    """The split of a data set; a file has only one."""
    subset: Text | None = None
    """The configuration of a data set that has several, such as main of openai/gsm8k (null: its default or only one)."""
    prompt: Text | None = None
    """The column that holds the question as text, such as problem (null: rows have one of the accepted forms)."""

    @model_validator(mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Decontamination(Section):
    """The check of prompts against those of evaluations."""

    against: list[Against] = Field(default_factory=list)
    """Prompts of evaluations: paths, or sections with path, split, subset and prompt."""
    evaluation: bool = True
    """In `tessy run`: also compare with the prompts of its own evaluation."""
    ngram: Count | None = 13
    """A prompt that shares this many consecutive words with an evaluation prompt is left out (null: no such check). A prompt
    equal to an evaluation prompt is left out at any length."""
    common: Count = 10
    """Consecutive words that occur in more than this many evaluation prompts are ignored, because instructions repeat."""
    near_duplicates: Annotated[Real, Field(gt=0, le=1)] | None = 0.8
    """A prompt is left out if the Jaccard similarity of its three-word shingles to those of an evaluation prompt is at least
    this (null: no such check)."""

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.against and not self.evaluation:
            raise ValueError("against is empty and evaluation false, which leaves nothing to compare with; set one of them")
        return self
