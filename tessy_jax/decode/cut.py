"""Where a proposal is cut: the commit rule at word boundaries (method, section 2).

The flip of a proposal of n bytes is the byte at which the other kind of text begins, or absent. The cut c is
  none:    the last character boundary at or before the flip (with one vocabulary: the last token end that is one),
  discard: the last boundary at or before it at which a new pre-token begins in every vocabulary, whatever may follow,
  extend:  the first white space at or after it, else the end of the proposal.
Without a flip, the end of the proposal counts as the flip. If the rule leaves no text, the cut is the next such boundary
after the flip, or else after the last complete character.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

NONE, DISCARD, EXTEND = "none", "discard", "extend"


class Cut(NamedTuple):
    """cut_B: bytes of the proposal that are committed. decided_B: whether no further text can change cut_B."""

    cut_B: jax.Array
    decided_B: jax.Array


def starts_character(bytes_BP: jax.Array) -> jax.Array:
    """Whether a byte begins a UTF-8 character."""
    return (bytes_BP & 0xC0) != 0x80


def complete_chars(bytes_BP: jax.Array, counts_B: jax.Array) -> jax.Array:
    """How many of the first counts_B bytes remain without an unfinished character at their end. Bytes that are not
    UTF-8 count as characters: invalid text is detected when the response ends."""
    back_3 = 3 - jnp.arange(3, dtype=jnp.int32)
    index_B3 = counts_B[:, None] - back_3
    tail_B3 = jnp.take_along_axis(bytes_BP, jnp.maximum(index_B3, 0), axis=1)
    length_B3 = jnp.where(tail_B3 >= 0xF0, 4, jnp.where(tail_B3 >= 0xE0, 3, jnp.where(tail_B3 >= 0xC0, 2, 1)))
    # a byte that begins a character ends the one before it, finished or not
    begins_B3 = (index_B3 >= 0) & ((tail_B3 & 0xC0) != 0x80)
    last_B1 = jnp.where(begins_B3, index_B3, -1).max(axis=1, keepdims=True)
    unfinished_B3 = begins_B3 & (index_B3 == last_B1) & (length_B3 > back_3)
    return counts_B - jnp.where(unfinished_B3, back_3, 0).max(axis=1)


def white_space(bytes_BP: jax.Array) -> jax.Array:
    """Whether a white-space character (Unicode's White_Space) begins at a byte."""
    first = bytes_BP.astype(jnp.int32)
    second = jnp.pad(first[:, 1:], ((0, 0), (0, 1)))
    third = jnp.pad(first[:, 2:], ((0, 0), (0, 2)))
    ascii_space = (first == 0x20) | ((first >= 0x09) & (first <= 0x0D))
    two = (first == 0xC2) & ((second == 0x85) | (second == 0xA0))
    code = ((first & 0x0F) << 12) | ((second & 0x3F) << 6) | (third & 0x3F)
    general = (code >= 0x2000) & (code <= 0x200A)
    others = (code == 0x1680) | (code == 0x2028) | (code == 0x2029) | (code == 0x202F) | (code == 0x205F) | (code == 0x3000)
    three = (first >= 0xE0) & (first < 0xF0) & ((second & 0xC0) == 0x80) & ((third & 0xC0) == 0x80)
    return ascii_space | two | (three & (general | others))


def cut(
    rule: str,
    bytes_BP: jax.Array,
    counts_B: jax.Array,
    *,
    flip_B: jax.Array,
    over_B: jax.Array,
    closed_B: jax.Array,
    certain_B: jax.Array,
    splits: tuple[tuple[jax.Array, jax.Array], ...],
    token_ends_BP: jax.Array | None,
) -> Cut:
    """Where the proposals are cut.

    flip_B: bytes up to the flip, negative without one. over_B: the proposal gets no longer. closed_B: it ended its turn, so
    that its end is a boundary. certain_B: bytes that are text for certain (the rest may become a marker); for proposals
    that are over, all. splits: per vocabulary, starts [B, P] and final [B] (`discard`). token_ends_BP: bytes at which a
    token of the speaker ends (`none` with one vocabulary).
    """
    P = bytes_BP.shape[1]
    at_P = jnp.arange(P, dtype=jnp.int32)
    n_B = counts_B
    whole_B = jnp.where(closed_B, n_B, complete_chars(bytes_BP, n_B))
    known_B = jnp.where(over_B, n_B, jnp.minimum(certain_B, n_B))
    turn_B = jnp.where(flip_B >= 0, flip_B, n_B)
    inside_BP = (at_P > 0) & (at_P < n_B[:, None]) & (at_P <= known_B[:, None])

    if rule == EXTEND:
        possible_BP = white_space(bytes_BP) & inside_BP & (at_P >= turn_B[:, None])
        first_B = jnp.where(possible_BP, at_P, P).min(axis=1)
        return Cut(jnp.where(first_B < P, first_B, whole_B), over_B | (first_B < P))

    if rule == DISCARD:
        possible_BP = inside_BP
        reach_B = jnp.where(closed_B, n_B, P)
        for starts_BP, final_B in splits:
            certain_start_B = jnp.where(closed_B, n_B, final_B)
            possible_BP &= starts_BP & (at_P <= certain_start_B[:, None])
            reach_B = jnp.minimum(reach_B, certain_start_B)
        decided_B = turn_B <= reach_B
    else:
        possible_BP = starts_character(bytes_BP) & inside_BP
        if token_ends_BP is not None:
            possible_BP &= token_ends_BP
        decided_B = jnp.ones_like(over_B)

    # the proposal's own end is a boundary where the turn ended there, or where any character boundary is one
    end_counts_B = closed_B | (whole_B == n_B if rule == NONE else jnp.zeros_like(closed_B))
    end_counts_B &= (n_B > 0) & (n_B <= known_B)
    before_B = jnp.where(possible_BP & (at_P <= turn_B[:, None]), at_P, 0).max(axis=1)
    before_B = jnp.where(end_counts_B & (n_B <= turn_B), n_B, before_B)
    behind_B = jnp.where(possible_BP & (at_P > turn_B[:, None]), at_P, P).min(axis=1)
    behind_B = jnp.where((behind_B == P) & end_counts_B & (n_B > turn_B), n_B, behind_B)
    found_B = (before_B > 0) | (behind_B < P)
    cut_B = jnp.where(before_B > 0, before_B, jnp.where(behind_B < P, behind_B, whole_B))
    return Cut(cut_B, over_B | (decided_B & found_B))
