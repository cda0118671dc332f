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


REPLACEMENT = 0xFFFD
"""The code point of truncated characters and of values beyond Unicode."""


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


def lengths(bytes_BP: jax.Array, counts_B: jax.Array) -> jax.Array:
    """The bytes of the character that begins at each of the first counts_B bytes [B, P], as its first byte states; 0 for
    continuation bytes. A character ends before the first byte that is not a continuation byte, so characters never overlap,
    even in text that is not UTF-8. The last character may extend beyond counts_B."""
    first, at_P = bytes_BP.astype(jnp.int32), jnp.arange(bytes_BP.shape[1], dtype=jnp.int32)
    left_BP = counts_B[:, None] - at_P
    length, continued = jnp.ones_like(first), jnp.ones_like(first, bool)
    for by in (1, 2, 3):
        # a byte that has not arrived may continue the character
        continued &= _continues(shifted(first, by, 0x80)) | (left_BP <= by)
        length += continued & (by < _stated(first))
    return jax.lax.optimization_barrier(jnp.where(_continues(first), 0, length))


def characters(
    bytes_BP: jax.Array, lengths_BP: jax.Array, counts_B: jax.Array, pages_X: jax.Array, classes_X256: jax.Array
) -> Text:
    """The characters of the first counts_B bytes of text, without an unfinished one at the end. A truncated
    character, or one beyond U+10FFFF, has the code point U+FFFD. Other text that is not UTF-8, such as overlong forms, has
    arbitrary code points. lengths_BP: see `lengths`."""
    at_P = jnp.arange(bytes_BP.shape[1], dtype=jnp.int32)
    first = bytes_BP.astype(jnp.int32)
    second, third, fourth = (shifted(first, i, 0) & 0x3F for i in (1, 2, 3))
    length = _stated(first)
    two = ((first & 0x1F) << 6) | second
    three = ((first & 0x0F) << 12) | (second << 6) | third
    four = ((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth
    codes = jnp.where(length == 1, first, jnp.where(length == 2, two, jnp.where(length == 3, three, four)))
    codes = jnp.where((lengths_BP < length) | (codes > 0x10FFFF), REPLACEMENT, codes)
    begins = (lengths_BP > 0) & (at_P + lengths_BP <= counts_B[:, None])
    classes = jnp.where(begins, classes_X256[pages_X[codes >> 8], codes & 0xFF], 0)
    return jax.lax.optimization_barrier(Text(codes, classes, begins, counts_B))


def _stated(first: jax.Array) -> jax.Array:
    """The length of a character that begins with this byte, as the byte states it."""
    return jnp.where(first < 0xC0, 1, jnp.where(first < 0xE0, 2, jnp.where(first < 0xF0, 3, 4)))


def _continues(byte: jax.Array) -> jax.Array:
    """Whether a byte continues a character."""
    return (byte & 0xC0) == 0x80


def shifted(x: jax.Array, by: int, fill: int) -> jax.Array:
    """x[:, i + by] at i; `fill` beyond the end."""
    return jnp.pad(x[:, by:], ((0, 0), (0, by)), constant_values=fill)
