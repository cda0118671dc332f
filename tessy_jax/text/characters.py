"""The characters of UTF-8 text on the device, and their classes."""

from __future__ import annotations

import unicodedata
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

LETTER, NUMBER, SPACE, NEWLINE, UPPER, LOWER, MARK, SYMBOL, KANA = (1 << i for i in range(9))
"""Classes of a code point, in this order: \\p{L}, \\p{N}, \\s, [\\r\\n], the two letter classes of o200k, \\p{M}, \\p{P} or
\\p{S}, and DeepSeek's ranges of Chinese and Japanese."""


@cache
def code_point_classes() -> tuple[np.ndarray, np.ndarray]:
    """Classes of all code points in two levels: [4352] page numbers, and [pages, 256] int32 classes."""
    white = {*range(9, 14), 0x20, 0x85, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x2028, 0x2029, 0x202F, 0x205F, 0x3000}
    by_category = {
        "Lu": LETTER | UPPER,
        "Lt": LETTER | UPPER,
        "Ll": LETTER | LOWER,
        "Lm": LETTER | UPPER | LOWER,
        "Lo": LETTER | UPPER | LOWER,
        **dict.fromkeys(("Mn", "Mc", "Me"), MARK | UPPER | LOWER),
        **dict.fromkeys(("Nd", "Nl", "No"), NUMBER),
        **dict.fromkeys(("Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "So"), SYMBOL),
    }
    classes = np.array([by_category.get(unicodedata.category(chr(c)), 0) for c in range(0x110000)], np.int32)
    classes[sorted(white)] |= SPACE
    classes[[0x0A, 0x0D]] |= NEWLINE
    classes[0x4E00:0x9FA6] |= KANA
    classes[0x3040:0x3100] |= KANA
    pages, numbers = np.unique(classes.reshape(-1, 256), axis=0, return_inverse=True)
    return numbers.astype(np.int32).reshape(-1), pages


class Text(NamedTuple):
    """Text as characters. codes, classes [B, P]: code points and their classes, valid where begins is True. begins [B, P]:
    whether a complete character begins at each byte. counts_B: number of bytes."""

    codes: jax.Array
    classes: jax.Array
    begins: jax.Array
    counts_B: jax.Array

    def has(self, mask: int) -> jax.Array:
        """Whether a character of one of the classes begins at each byte, bool [B, P]."""
        return ((self.classes & mask) != 0) & self.begins

    def lacks(self, mask: int) -> jax.Array:
        """Whether a character of none of the classes begins at each byte, bool [B, P]."""
        return ((self.classes & mask) == 0) & self.begins

    def between(self, first: str, last: str) -> jax.Array:
        """Whether a character of a range of code points begins at each byte, bool [B, P]."""
        return (self.codes >= ord(first)) & (self.codes <= ord(last)) & self.begins


def lengths(bytes_BP: jax.Array) -> jax.Array:
    """The bytes of the character that begins at each byte [B, P], as its first byte states; 0 for bytes inside
    characters."""
    first = bytes_BP.astype(jnp.int32)
    length = jnp.where(first < 0xC0, 1, jnp.where(first < 0xE0, 2, jnp.where(first < 0xF0, 3, 4)))
    return jax.lax.optimization_barrier(jnp.where((first & 0xC0) == 0x80, 0, length))


def characters(bytes_BP: jax.Array, counts_B: jax.Array, pages_X: jax.Array, classes_X256: jax.Array) -> Text:
    """The characters of the first counts_B bytes of UTF-8 text, without an unfinished one at the end. Bytes that are not
    UTF-8 give arbitrary characters."""
    at_P = jnp.arange(bytes_BP.shape[1], dtype=jnp.int32)
    first = bytes_BP.astype(jnp.int32)
    second, third, fourth = (shifted(first, i, 0) & 0x3F for i in (1, 2, 3))
    length = lengths(bytes_BP)
    two = ((first & 0x1F) << 6) | second
    three = ((first & 0x0F) << 12) | (second << 6) | third
    four = ((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth
    codes = jnp.where(length == 1, first, jnp.where(length == 2, two, jnp.where(length == 3, three, four)))
    codes = jnp.minimum(codes, 0x10FFFF)
    begins = (length > 0) & (at_P + length <= counts_B[:, None])
    classes = jnp.where(begins, classes_X256[pages_X[codes >> 8], codes & 0xFF], 0)
    return jax.lax.optimization_barrier(Text(codes, classes, begins, counts_B))


def shifted(x: jax.Array, by: int, fill: int) -> jax.Array:
    """x[:, i + by] at i; `fill` beyond the end."""
    return jnp.pad(x[:, by:], ((0, 0), (0, by)), constant_values=fill)
