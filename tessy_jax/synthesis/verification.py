"""Whether finished responses are right, by who is given to say so, and what becomes of those that are not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

from tessy_jax.config import Verification
from tessy_jax.errors import ConfigError
from tessy_jax.processes import on_primary
from tessy_jax.records import Row
from tessy_jax.synthesis.prompts import Prompt

RIGHT = "right"


class ResponseVerifier(Protocol):
    """Says whether responses are right. columns: of the prompts' rows, those that `known` looks at."""

    @property
    def columns(self) -> Collection[str]: ...

    def known(self, row: dict[str, Any], name: str) -> Any:
        """What a row, whose prompt has this id, says of the right answer: `Prompt.known`. Raises DataError: nothing."""

    def verdicts(self, asked: Sequence[tuple[Prompt, Row]]) -> list[str]:
        """Of each response `RIGHT`, or in a word why it is not; nothing is raised, whatever they hold."""


VerifierFactory = Callable[[Verification], AbstractContextManager[ResponseVerifier]]
"""Opens the judge that a configuration wants; see `evaluate.verification`."""


class Verified(NamedTuple):
    """A response that was judged. row: with its verdict, where it is kept; else None. again: it is a failed attempt and no
    failure yet."""

    verdict: str
    row: Row | None
    retry: bool = False


class VerificationStep(NamedTuple):
    """Judges the responses of a synthesis."""

    config: Verification
    verifier: ResponseVerifier

    def verify(self, asked: Sequence[tuple[Prompt, Row]]) -> list[Verified]:
        """What becomes of finished responses to prompts. All processes ask together: the first one's verdicts are those of
        all."""
        verdicts = on_primary(lambda: self.verifier.verdicts(asked))
        return [self._outcome(row, verdict) for (_, row), verdict in zip(asked, verdicts, strict=True)]

    def _outcome(self, row: Row, verdict: str) -> Verified:
        if verdict == RIGHT or self.config.wrong == "keep":
            return Verified(verdict, replace(row, meta={**row.meta, "verified": verdict == RIGHT, "verdict": verdict}))
        return Verified(verdict, None, self.config.wrong == "resample")


@contextmanager
def open_verification(config: Verification | None, verifiers: VerifierFactory | None) -> Iterator[VerificationStep | None]:
    """The verifier that a configuration wants; None where it wants none.

    Raises:
        ConfigError: nobody can give one.
    """
    if config is None:
        yield None
        return
    if verifiers is None:
        raise ConfigError(
            f"synthesis.verification wants verifier {config.verifier!r}, and no verifiers were given; give judges "
            "(tessy_jax.evaluate.verification makes them), or set it to null"
        )
    with verifiers(config) as judge:
        yield VerificationStep(config, judge)
