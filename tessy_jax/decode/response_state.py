"""The host's copy of a response: what the engine inserts and extracts, and what a snapshot stores."""

from __future__ import annotations

from dataclasses import dataclass

from tessy_jax.decode.state import LaneScalars


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

    scalars: its numbers, as integers. text, sources: bytes, and the writer of each.
    """

    views: tuple[TokenizedView, ...]
    scalars: LaneScalars
    text: bytes = b""
    sources: bytes = b""
