"""The section that says how programs are judged, and its defaults: they stand here only."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tessy_jax.config.base import Count, Real, Section

Language = Literal["python", "cpp"]
Grader = Literal["strict", "compat"]


class Programs(Section):
    """How programs are judged."""

    language: Language | None = None
    """What all programs are taken for (null: what a row's `language` says, or else python)."""
    seconds: Annotated[Real, Field(gt=0)] = 10.0
    """Processor time that a program may use on a test; by the clock it may take three times as long, and a second."""
    seconds_in_all: Annotated[Real, Field(gt=0)] = 120.0
    """The same, on all tests together."""
    memory: Annotated[int, Field(ge=64)] = 1024
    """MiB that a program and all that it starts may use."""
    output: Count = 16
    """MiB that a program may write."""
    grader: Grader = "strict"
    """Whose verdict counts; both are recorded. strict: what a judge of contests says; compat: what LiveCodeBench's public
    code says."""
    unsafe: bool = False
    """Run programs in plain processes, too, where no stronger sandbox can be had."""
