"""The host's copy of a response: what the engine inserts and extracts, and what a snapshot stores."""

from __future__ import annotations

from dataclasses import dataclass

from tessy_jax.decode.state import ANSWER, RUNNING


@dataclass(frozen=True)
class TokenizedView:
    """One side of an `Entry`: the tokens of prompt and response, how many are the prompt's, and the response's byte ends."""

    tokens: list[int]
    prompt: int
    ends: list[int]


@dataclass(frozen=True)
class ResponseState:
    """A response at a commit, outside of the device: all that is needed to go on with it, or to read it once it has ended.

    text, sources: bytes, and who wrote each. thought: bytes of the thinking if it has closed, else -1. status: why it ended.
    """

    views: tuple[TokenizedView, ...]
    thinkers: int
    answerer: int
    sample: int
    attempt: int
    speaker: int
    phase: int = 0
    thinking_bytes: int = -1
    text: bytes = b""
    sources: bytes = b""
    generated: tuple[int, int] = (0, 0)
    discarded: tuple[int, int] = (0, 0)
    switches: int = 0
    status: int = RUNNING

    @property
    def closed(self) -> bool:
        """Whether it is in its answer, or past it."""
        return self.phase == ANSWER
