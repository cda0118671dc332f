"""The sections of an analysis, and their defaults: they stand here only."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tessy_jax.config.base import Count, Real, Section, Text
from tessy_jax.config.checks import VerifierName
from tessy_jax.config.sections import Run


class Quality(Section):
    """How responses of the data are judged."""

    verifier: VerifierName
    """Who says what is right, as for the tasks of an evaluation; mini knows the prompts by their ids."""
    answer: Text = "answer"
    """The column of the prompts that holds the right answer; mini and programs need none."""
    confidence: Annotated[Real, Field(gt=0, lt=1)] = 0.95
    """How probably an interval should hold the true value."""


class Likelihood(Section):
    """Which responses the untouched student reads, to say how probable it finds them."""

    responses: Count = 64
    """Of each variant and student, the first of every job in the order of the prompts."""
    tokens: Count = 4096
    """Tokens of prompt and response that are read at most; what comes after them does not count."""


class Analysis(Section):
    """What `tessy analyze` looks at."""

    responses: Count = 500
    """Of each variant, for the map, the similarities and the words; the first of every job in the order of the prompts."""
    words: Count = 30
    """Frequent words that are shown."""
    quality: Quality | None = None
    """How the responses of the data are judged (null: not)."""
    likelihood: Likelihood | None = Likelihood()
    """What the untouched student reads (null: nothing; no model is loaded)."""


class Analyze(Run):
    """Looks at the data of some synthesis runs."""

    runs: Annotated[dict[str, Text], Field(min_length=1)]
    """By name, run folders of syntheses."""
    analysis: Analysis = Analysis()
