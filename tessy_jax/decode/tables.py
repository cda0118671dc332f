"""Constant arrays of a run: the text of tokens, the bridge from text to tokens, and the markers that close the thinking."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import jax


class ClosedWords(Protocol):
    """See `text.encoding.ClosedWords`."""

    @property
    def ids_BP(self) -> jax.Array: ...
    @property
    def ends_BP(self) -> jax.Array: ...
    @property
    def tokens_B(self) -> jax.Array: ...
    @property
    def sure_B(self) -> jax.Array: ...
    @property
    def end_B(self) -> jax.Array: ...
    @property
    def more_B(self) -> jax.Array: ...
    @property
    def long_B(self) -> jax.Array: ...

    def padded(self, size: int) -> ClosedWords: ...


class Bridge(Protocol):
    """From text to the vocabularies. A pytree, so that it can be an argument of a compiled program."""

    @property
    def narrow(self) -> bool:
        """Whether a word has the same tokens in every window that contains it."""
        ...

    def splits(self, bytes_BP: jax.Array, counts_B: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """Of each split rule: whether a pre-token begins at each byte [B, P], and the last byte [B] up to which no following
        text can change this."""
        ...

    def closed(
        self, bytes_BP: jax.Array, counts_B: jax.Array, ended_B: jax.Array, v_B: jax.Array, *, widest: bool
    ) -> ClosedWords:
        """The tokens in vocabulary v_B of the first words of texts that begin at a word; see `DeviceBridge.closed`."""
        ...


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class VocabTables:
    """The text of one vocabulary's tokens, and the tokens that are not text."""

    bytes_VI: jax.Array
    """Bytes of each token, uint8, padded with 0."""
    lengths_V: jax.Array
    """Number of bytes of each token."""
    control_V: jax.Array
    """Whether a token is a control token."""
    closing_X: jax.Array
    """Tokens that close the thinking, filled up with -1."""
    ends_X: jax.Array
    """Tokens that end the turn, filled up with -1."""
    answer_X: jax.Array
    """Tokens forced in front of the answer."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TextTables:
    """Constant arrays of a run."""

    vocabs: tuple[VocabTables, ...]
    """The student's and the teacher's; one entry for one model, the same entry twice for one vocabulary."""
    bridge: Any
    """The `Bridge` into the vocabularies; one vocabulary counts once."""
    markers_MI: jax.Array
    """Bytes of the texts that close the thinking."""
    marker_lengths_M: jax.Array
    """Bytes of each marker."""
    close_X: jax.Array
    """Bytes of the text between thinking and answer."""
