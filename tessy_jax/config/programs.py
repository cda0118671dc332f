"""The section for the verification of programs, and the only place of its defaults."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tessy_jax.config.base import Count, Real, Section

Language = Literal["python", "cpp"]
Grader = Literal["strict", "compat"]


class Programs(Section):
    """How programs are run and verified."""

    language: Language | None = None
    """The language of all programs (null: the row's `language`, or else python)."""
    seconds: Annotated[Real, Field(gt=0)] = 10.0
    """Limit on processor time per test; the limit on wall time is three times as long, plus one second."""
    seconds_in_all: Annotated[Real, Field(gt=0)] = 120.0
    """Limit on processor time over all tests of a program."""
    memory: Annotated[int, Field(ge=64)] = 1024
    """Memory limit in MiB of a program and its child processes."""
    output: Count = 16
    """Limit in MiB on the output of a program."""
    grader: Grader = "strict"
    """The verdict that counts; both are recorded. strict: the verdict of contest judges, independent of the interpreter's
    limits; compat: that of LiveCodeBench's public code, with its limits on recursion and on the digits of integers."""
    unsafe: bool = False
    """Run programs in plain processes if no stronger sandbox is available."""
