"""What bridges return: the tokens of a text, and those of its first words."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from tessy_jax.text.characters import lengths

UNSPELLED = -1
"""The token of a byte that the vocabulary lacks (SmolLM2 lacks some control characters)."""


class Encoding(NamedTuple):
    """Tokens of a text.

    ids_BP, ends_BP: ids and byte ends, valid for the first tokens_B tokens. A byte that the vocabulary lacks is a token by
    itself, UNSPELLED. starts_BP: bytes at which pre-tokens begin. final_B: the last byte up to which no following text can
    change starts_BP.
    """

    ids_BP: jax.Array
    ends_BP: jax.Array
    tokens_B: jax.Array
    starts_BP: jax.Array
    final_B: jax.Array


class ClosedWords(NamedTuple):
    """The tokens of the first words of a text.

    ids_BP, ends_BP: ids and byte ends of the tokens, valid for the first tokens_B tokens; see `Encoding`. sure_B: tokens of
    words that no following text can change; the others come after them. end_B: the byte end of the last word; 0 if there is
    none. more_B: whether another call from end_B on may return more words. long_B: whether there is no word because
    the first one does not end in the window; a wider window may contain it.
    """

    ids_BP: jax.Array
    ends_BP: jax.Array
    tokens_B: jax.Array
    sure_B: jax.Array
    end_B: jax.Array
    more_B: jax.Array
    long_B: jax.Array

    def padded(self, size: int) -> ClosedWords:
        """With arrays of tokens [B, size]."""
        ids_BP, ends_BP = (jnp.pad(x, ((0, 0), (0, size - x.shape[1]))) for x in (self.ids_BP, self.ends_BP))
        return self._replace(ids_BP=ids_BP, ends_BP=ends_BP)


class Shown(NamedTuple):
    """The part of texts of counts_B bytes that a window shows. hidden_B: whether the text continues beyond the window.
    whole_B: bytes of complete characters in the window. end_B: bytes that can be tokenized: all if none are hidden, else
    whole_B."""

    hidden_B: jax.Array
    whole_B: jax.Array
    end_B: jax.Array

    @classmethod
    def of(cls, lengths_BP: jax.Array, counts_B: jax.Array) -> Shown:
        """lengths_BP: see `characters.lengths`."""
        at_P, P = jnp.arange(lengths_BP.shape[1], dtype=jnp.int32), lengths_BP.shape[1]
        bytes_B = jnp.minimum(counts_B, P)
        unfinished_BP = at_P + lengths_BP > bytes_B[:, None]
        whole_B = jnp.where(unfinished_BP, at_P, bytes_B[:, None]).min(axis=1)
        return cls(counts_B > P, whole_B, jnp.where(counts_B > P, whole_B, bytes_B))

    def all_B(self, ended_B: jax.Array, closed_B: jax.Array, widest: bool) -> jax.Array:
        """Whether the window's text is tokenized to its end. closed_B: whether the window contains a closed word."""
        return ended_B & (~self.hidden_B | (~closed_B if widest else False))


def closed_words(
    encode: Callable[[jax.Array, jax.Array], Encoding],
    bytes_BP: jax.Array,
    counts_B: jax.Array,
    ended_B: jax.Array,
    widest: bool,
) -> ClosedWords:
    """The first words of texts, from the tokens of a whole window; see `DeviceBridge.closed`. Their number has no limit.
    Neighbouring words that share a token count as one word. encode: returns the tokens of the first counts_B bytes."""
    shown = Shown.of(lengths(bytes_BP, counts_B), counts_B)
    seen = encode(bytes_BP, shown.end_B)
    at_P = jnp.arange(seen.ids_BP.shape[1], dtype=jnp.int32)
    closed_BP = seen.starts_BP & (at_P <= seen.final_B[:, None]) & (at_P < shown.end_B[:, None])
    sure_BP = (at_P < seen.tokens_B[:, None]) & (seen.ends_BP <= jnp.where(closed_BP, at_P, 0).max(axis=1)[:, None])
    sure_B, sure_end_B = sure_BP.sum(axis=1, dtype=jnp.int32), jnp.where(sure_BP, seen.ends_BP, 0).max(axis=1)
    all_B = shown.all_B(ended_B, sure_end_B > 0, widest)
    end_B = jnp.where(all_B, shown.end_B, sure_end_B)
    more_B = shown.hidden_B & (end_B > 0)
    long_B = shown.hidden_B & (end_B == 0)
    return ClosedWords(seen.ids_BP, seen.ends_BP, jnp.where(all_B, seen.tokens_B, sure_B), sure_B, end_B, more_B, long_B)
