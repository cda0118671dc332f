"""Tokenizes text on the device with SentencePiece BPE: the vocabularies of Llama 2, Mistral and Gemma.

A character with a token is one symbol. Of any other character, each byte is one symbol. A space is the token U+2581. These
tokenizers have no pre-tokens, or one per space, so merges may cross white space. Instead, the text is cut between two
neighbouring characters if no token made by a merge contains this pair. No merge crosses such a cut, so each part merges
independently.

These tokenizers do not reproduce bytes that are not UTF-8, nor the character U+2581. A text that contains one of these is
tokenized word by word, and each word that contains one becomes single-byte tokens, as in `host_bridge`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tessy_jax.text.bridge import Symbols, merge, merge_rows
from tessy_jax.text.characters import shifted
from tessy_jax.text.encoding import ClosedWords, Encoding, closed_words
from tessy_jax.text.host_bridge import plain_content
from tessy_jax.text.scan import Marks
from tessy_jax.text.vocab import is_byte_level, parts, spellings
from tessy_jax.text.words import NONE, Table, find_merges, merge_table

SPACE = "\u2581"
REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
ABSENT = -1


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["pages_X", "ids_X256", "bytes_256", "spelled_256", "merges", "pairs"],
    meta_fields=[],
)
@dataclass(frozen=True)
class SentencePieceBridge:
    """The tables of one tokenizer.

    pages_X, ids_X256: a two-level table of the token of each code point; ABSENT if it has none. bytes_256: the token of each
    byte of a character without a token. spelled_256: the token of each byte of a word that becomes single bytes.
    merges: the merges. pairs: the pairs of character tokens that are adjacent in a token made by a merge. Both
    have the layout of `merge_table`.
    """

    rule: ClassVar[str] = "SentencePiece"
    narrow: ClassVar[bool] = False  # merges cross words
    pages_X: jax.Array
    ids_X256: jax.Array
    bytes_256: jax.Array
    spelled_256: jax.Array
    merges: Table
    pairs: Table

    def splits(self, bytes_BP: jax.Array, counts_B: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """The bytes at which words of the first counts_B bytes begin [B, P], and the byte [B] up to which no following text
        can change them. A word begins with the white space after the previous word."""
        return [_words(*_characters(bytes_BP, counts_B))]

    def closed(
        self, bytes_BP: jax.Array, counts_B: jax.Array, ended_B: jax.Array, v_B: jax.Array, *, widest: bool
    ) -> ClosedWords:
        """See `DeviceBridge.closed`."""
        return closed_words(self._encode, bytes_BP, counts_B, ended_B, widest)

    def _encode(self, bytes_BP: jax.Array, counts_B: jax.Array) -> Encoding:
        """The tokens of the first counts_B bytes, as if the text ended there."""
        codes_BP, lengths_BP = _characters(bytes_BP, counts_B)
        starts_BP, final_B = _words(codes_BP, lengths_BP)
        valid_BP = jnp.arange(bytes_BP.shape[1]) < counts_B[:, None]
        wrong_BP = (valid_BP & ~_covered(lengths_BP)) | ((codes_BP == ord(SPACE)) & (lengths_BP > 0))
        breaks_BP = _breaks(bytes_BP) & wrong_BP.any(axis=1, keepdims=True)
        spelled_BP = _words_with(wrong_BP, breaks_BP)

        ids_BP = self.ids_X256[self.pages_X[codes_BP >> 8], codes_BP & 0xFF]
        whole_BP = (lengths_BP > 0) & (ids_BP != ABSENT) & ~spelled_BP
        bytes_BP = bytes_BP.astype(jnp.int32)
        single_BP = jnp.where(spelled_BP, self.spelled_256[bytes_BP], self.bytes_256[bytes_BP])
        symbols_BP = jnp.where(whole_BP, ids_BP, single_BP)
        lengths_BP = jnp.where(whole_BP, lengths_BP, 0)
        alive_BP = valid_BP & (whole_BP | ~_covered(lengths_BP))

        right_BP = jnp.full_like(symbols_BP, ABSENT)
        for length in range(1, 5):
            next_BP = shifted(jnp.where(whole_BP, symbols_BP, ABSENT), length, ABSENT)
            right_BP = jnp.where(lengths_BP == length, next_BP, right_BP)
        joined_BP = find_merges(self.pairs, symbols_BP, right_BP, jnp.zeros_like(counts_B))[0] != NONE
        continues_BP = jnp.zeros_like(alive_BP)
        for length in range(1, 5):
            continues_BP |= _before(joined_BP & (lengths_BP == length), length, False)
        separate = Marks.of(alive_BP & ~(continues_BP & ~breaks_BP))
        tokens = merge(
            self.merges, Symbols(symbols_BP, alive_BP), separate, jnp.bool_(True), jnp.zeros_like(counts_B)
        ).listed(counts_B)
        return Encoding(*tokens, starts_BP=starts_BP, final_B=final_B)


def _before(x_BP: jax.Array, by: int, fill: int | bool) -> jax.Array:
    """The value of x `by` bytes earlier."""
    return jnp.pad(x_BP, ((0, 0), (by, 0)), constant_values=fill)[:, : x_BP.shape[1]]


def _characters(bytes_BP: jax.Array, counts_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The code points [B, P] that begin at each byte, and their lengths [B, P] in bytes. The length is 0 where no character
    begins: inside characters, at bytes that are not UTF-8, and in an incomplete character at the end."""
    first = bytes_BP.astype(jnp.int32)
    second, third, fourth = (shifted(first, by, 0) ^ 0x80 for by in (1, 2, 3))  # below 0x40 in a character
    length = jnp.where(first < 0x80, 1, jnp.where(first < 0xE0, 2, jnp.where(first < 0xF0, 3, 4)))
    two = ((first & 0x1F) << 6) | second
    three = ((first & 0x0F) << 12) | (second << 6) | third
    four = ((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth
    code = jnp.where(length == 1, first, jnp.where(length == 2, two, jnp.where(length == 3, three, four)))
    continued = (length < 2) | (second < 0x40)
    continued &= (length < 3) | (third < 0x40)
    continued &= (length < 4) | (fourth < 0x40)
    shortest = code >= jnp.where(length == 1, 0, jnp.where(length == 2, 0x80, jnp.where(length == 3, 0x800, 0x10000)))
    lead = (first < 0x80) | ((first >= 0xC0) & (first < 0xF8))
    surrogate = (code >= 0xD800) & (code < 0xE000)
    inside = jnp.arange(bytes_BP.shape[1]) + length <= counts_B[:, None]
    valid = lead & continued & shortest & ~surrogate & (code <= 0x10FFFF) & inside
    return jnp.where(valid, code, 0), jnp.where(valid, length, 0)


def _covered(lengths_BP: jax.Array) -> jax.Array:
    """Whether a byte lies in one of the characters that begin where lengths_BP is positive."""
    covered_BP = lengths_BP > 0
    for by in range(1, 4):
        covered_BP |= _before(lengths_BP, by, 0) > by
    return covered_BP


def _words(codes_BP: jax.Array, lengths_BP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """See `SentencePieceBridge.splits`; codes_BP and lengths_BP are those of `_characters`."""
    at_P = jnp.arange(codes_BP.shape[1], dtype=jnp.int32)
    begins_BP, white_BP = lengths_BP > 0, _white(codes_BP)
    solid_BP = begins_BP & ~white_BP
    white_BP &= begins_BP
    behind_white_BP = _before(_covered(jnp.where(white_BP, lengths_BP, 0)), 1, True)
    starts_BP = white_BP & ~behind_white_BP | (at_P == 0) & begins_BP.any(axis=1, keepdims=True)
    return starts_BP, jnp.where(starts_BP | solid_BP, at_P, 0).max(axis=1)


def _white(codes_BP: jax.Array) -> jax.Array:
    """Whether a code point is white space according to `str.isspace`."""
    white_BP = jnp.zeros(codes_BP.shape, bool)
    for first, last in WHITE:
        white_BP |= (codes_BP >= first) & (codes_BP <= last)
    return white_BP


def _breaks(bytes_BP: jax.Array) -> jax.Array:
    """Whether a byte begins a run of ASCII white space after other text."""
    white_BP = (bytes_BP == 0x20) | (bytes_BP == 0x09) | (bytes_BP == 0x0A) | (bytes_BP == 0x0D)
    return white_BP & ~_before(white_BP, 1, True)


def _words_with(wrong_BP: jax.Array, breaks_BP: jax.Array) -> jax.Array:
    """Whether a byte lies in a word that contains a byte of wrong_BP; words begin at breaks_BP."""
    wrong, breaks = Marks.of(wrong_BP), Marks.of(breaks_BP)
    last_BP = wrong.last()
    ahead_BP = shifted(wrong.next() < breaks.next(), 1, False)
    return (last_BP >= 0) & (last_BP >= breaks.last()) | ahead_BP


def _ranges(points: list[int]) -> tuple[tuple[int, int], ...]:
    """Sorted integers as ranges (first, last)."""
    firsts = [a for a in points if a - 1 not in points]
    return tuple(zip(firsts, [a for a in points if a + 1 not in points], strict=True))


WHITE = _ranges([code for code in range(0x3001) if chr(code).isspace()])
"""White space as ranges of code points (first, last)."""


def _splits_spaces(content: dict[str, Any]) -> bool | None:
    """Whether the pre-tokenizer of a tokenizer.json begins a new part at each space. None if it does anything else, or if
    spaces do not become U+2581."""
    plain = plain_content(content)
    normalizers = parts(plain["normalizer"], "normalizers")
    steps = parts(plain["pre_tokenizer"], "pretokenizers")
    spaces = [step for step in steps if step["type"] == "Metaspace" and step["replacement"] == SPACE]
    # Gemma's Split finds no space, because the normalizer has replaced each with U+2581
    idle = [step for step in steps if step["type"] == "Split" and step["pattern"] == {"String": " "} and not step["invert"]]
    if is_byte_level(content) or normalizers not in ([], [REPLACED]) or len(spaces) + len(idle) < len(steps):
        return None
    if not normalizers and (idle or not spaces):
        return None
    return any(step.get("split", True) for step in spaces)


def _code_points(ids: dict[int, int]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A two-level table of `ids` by code point: [4352] page numbers and [pages, 256] ids; ABSENT for other code points."""
    codes = np.array(list(ids))
    used = np.unique(codes >> 8)
    pages = np.zeros(0x110000 >> 8, np.int32)
    pages[used] = np.arange(1, len(used) + 1)
    values = np.full((len(used) + 1, 256), ABSENT, np.int32)
    values[pages[codes >> 8], codes & 0xFF] = list(ids.values())
    return pages, values


def sentencepiece_bridge(content: dict[str, Any]) -> SentencePieceBridge | None:
    """The device bridge of a tokenizer.json with SentencePiece BPE; None for other tokenizers and for settings that are
    not supported."""
    model, splits = content["model"], _splits_spaces(content)
    used = {key for key, value in model.items() if value} - {"type", "vocab", "merges", "unk_token", "fuse_unk"}
    if model["type"] != "BPE" or used != {"byte_fallback"} or splits is None:
        return None
    ids: dict[str, int] = model["vocab"]
    names = {i: name for name, i in ids.items()}
    rows, spelled = merge_rows(model), spellings(content)
    made = [names[i] for i in set(rows[:, 3].tolist())]
    characters = [name for name in ids if len(name) == 1 and name != " "]
    byte_ids = [ids.get(f"<0x{byte:02X}>", ABSENT) for byte in range(256)]
    exact = len(names) == len(ids) and SPACE in ids and not np.isin(rows[:, :2], byte_ids).any()
    exact = exact and all(spelled[ids[name]] == name.replace(SPACE, " ").encode() for name in (*made, *characters))
    if not exact or any(spelled.get(i) != bytes([byte]) for byte, i in enumerate(byte_ids)):
        return None
    pairs = {pair for name in made for pair in pairwise(name)}
    joined = [(ids[a], ids[b], 0, 0) for a, b in pairs if a in ids and b in ids and not (splits and b == SPACE)]
    single = {text: i for i, text in sorted(spelled.items(), reverse=True) if text}
    pages, tokens = _code_points({ord(name): ids[name] for name in characters if name != SPACE} | {ord(" "): ids[SPACE]})
    return SentencePieceBridge(
        pages_X=jnp.asarray(pages),
        ids_X256=jnp.asarray(tokens),
        bytes_256=jnp.asarray(byte_ids, jnp.int32),
        spelled_256=jnp.asarray([single[bytes([byte])] for byte in range(256)], jnp.int32),
        merges=Table.of([merge_table(rows)]),
        pairs=Table.of([merge_table(np.array(joined, np.int32).reshape(-1, 4))]),
    )
