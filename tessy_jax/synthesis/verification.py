"""Verification of finished responses, and the handling of wrong ones."""

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
    """Decides whether responses are right. columns: the columns of the prompts' rows that `ground_truth` reads."""

    @property
    def columns(self) -> Collection[str]: ...

    def ground_truth(self, row: dict[str, Any], name: str) -> Any:
        """The right answer in a row: `Prompt.ground_truth`. name: the prompt's id. Raises DataError: the row has none."""

    def verdicts(self, asked: Sequence[tuple[Prompt, Row]]) -> list[str]:
        """For each response `RIGHT`, or a word for the reason why it is wrong. Never raises, for any responses."""


VerifierFactory = Callable[[Verification], AbstractContextManager[ResponseVerifier]]
"""Opens the verifier of a configuration; see `evaluate.verification`."""


class Verified(NamedTuple):
    """A verified response.

    row: the row with its verdict in meta; None if the response is not kept.
    retry: the response is a failed attempt, which may be followed by another.
    """

    verdict: str
    row: Row | None
    retry: bool = False


class VerificationStep(NamedTuple):
    """Verifies the responses of a synthesis."""

    config: Verification
    verifier: ResponseVerifier

    def verify(self, pairs: Sequence[tuple[Prompt, Row]]) -> list[Verified]:
        """Verifies finished responses to prompts. All processes call it; all of them get the verdicts of process 0."""
        verdicts = on_primary(lambda: self.verifier.verdicts(pairs))
        return [self._outcome(row, verdict) for (_, row), verdict in zip(pairs, verdicts, strict=True)]

    def _outcome(self, row: Row, verdict: str) -> Verified:
        if verdict == RIGHT or self.config.wrong == "keep":
            return Verified(verdict, replace(row, meta={**row.meta, "verified": verdict == RIGHT, "verdict": verdict}))
        return Verified(verdict, None, self.config.wrong == "resample")


@contextmanager
def open_verification(config: Verification | None, verifiers: VerifierFactory | None) -> Iterator[VerificationStep | None]:
    """Opens the verifier of a configuration; None if `config` is None.

    Raises:
        ConfigError: `config` names a verifier, and `verifiers` is None.
    """
    if config is None:
        yield None
        return
    if verifiers is None:
        raise ConfigError(
            f"synthesis.verification names verifier {config.verifier!r}, and no verifiers were given; pass verifiers "
            "(see tessy_jax.evaluate.verification), or set synthesis.verification to null"
        )
    with verifiers(config) as verifier:
        yield VerificationStep(config, verifier)
