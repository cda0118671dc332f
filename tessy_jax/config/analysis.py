"""The sections of an analysis, and the only place of their defaults."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tessy_jax.config.base import Count, Real, Section, Text
from tessy_jax.config.checks import VerifierName
from tessy_jax.config.sections import Run


class Quality(Section):
    """How the responses of the data are verified."""

    verifier: VerifierName
    """The verifier, as for the tasks of an evaluation; mini identifies prompts by their ids."""
    answer: Text = "answer"
    """The column of the prompts that holds the right answer; mini and programs need none."""
    confidence: Annotated[Real, Field(gt=0, lt=1)] = 0.95
    """The confidence level of intervals."""


class Likelihood(Section):
    """The responses whose likelihood under the untrained student is measured."""

    responses: Count = 64
    """Responses per variant and student: the first of every job, in prompt order."""
    tokens: Count = 4096
    """The largest number of tokens of prompt and response; later tokens do not count."""


class Analysis(Section):
    """The settings of `tessy analyze`."""

    responses: Count = 500
    """Responses per variant for the map, the similarities and the words: the first of every job, in prompt order."""
    words: Count = 30
    """The number of frequent words shown."""
    quality: Quality | None = None
    """How the responses of the data are verified (null: not at all)."""
    likelihood: Likelihood | None = Likelihood()
    """The likelihood under the untrained student (null: not measured; no model is loaded)."""


class Analyze(Run):
    """Analyzes the data of synthesis runs."""

    runs: Annotated[dict[str, Text], Field(min_length=1)]
    """Run folders of syntheses, by name."""
    analysis: Analysis = Analysis()
