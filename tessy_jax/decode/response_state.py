"""The host's copy of a response: what the engine inserts and extracts, and what a snapshot stores."""

from __future__ import annotations

from dataclasses import dataclass

from tessy_jax.decode.state import ANSWER, RUNNING


@dataclass(frozen=True)
class TokenizedView:
    """One side of a `ResponseState`: tokens of prompt and response, the number of prompt tokens, and the response's byte
    ends."""

    tokens: list[int]
    prompt: int
    ends: list[int]


@dataclass(frozen=True)
class ResponseState:
    """A response as of its last commit: enough to resume it, or to read it once it has ended.

    text, sources: bytes, and the writer of each. thinking_bytes: bytes of closed thinking, else -1. status: why it ended.
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
        """Whether the thinking has closed."""
        return self.phase == ANSWER
