"""Tokenizes text on the host, for tokenizers that are not supported on the device: slower, with the same interface."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import jax
import numpy as np
from numpy.typing import NDArray

from tessy_jax.text.encoding import UNSPELLED, ClosedWords, Encoding, closed_words
from tessy_jax.text.tokenizer import library_of, unprefixed
from tessy_jax.text.vocab import Vocabulary, is_byte_level, parts

WORD = re.compile(r"(?<=\S)\s")


@dataclass(eq=False)
class Library:
    """A tokenizer of the `tokenizers` library that keeps every byte. fallback [256]: the token of each single byte. words:
    pre-tokens are words between white space. calls: number of batches encoded."""

    tokenizer: Any
    vocabulary: Vocabulary
    fallback: NDArray[np.int32]
    words: bool
    calls: int = field(default=0)

    def encode(self, data: bytes) -> list[tuple[int, int]]:
        """(token, byte end) of a text. Text that the tokenizer does not reproduce exactly is spelled in single bytes."""
        text = data.decode("utf-8", "replace")
        ids = list(self.tokenizer.encode(text, add_special_tokens=False).ids)
        if self.vocabulary.bytes_of(ids) != data:
            ids = self._piecewise(data)
        offsets = self.vocabulary.offsets
        ends = np.cumsum([1 if i == UNSPELLED else offsets[i + 1] - offsets[i] for i in ids], dtype=np.int64)
        return list(zip(ids, ends.tolist(), strict=True))

    def _piecewise(self, data: bytes) -> list[int]:
        """Token ids word by word, and byte by byte for words that the tokenizer does not reproduce."""
        result: list[int] = []
        for piece in re.split(rb"(?<=[^ \t\n\r])(?=[ \t\n\r])", data):
            try:
                ids = list(self.tokenizer.encode(piece.decode(), add_special_tokens=False).ids)
            except UnicodeDecodeError:
                ids = []
            exact = bool(ids) and self.vocabulary.bytes_of(ids) == piece
            result += ids if exact else [int(self.fallback[byte]) for byte in piece]
        return result

    def split(self, data: bytes) -> tuple[list[int], int]:
        """Byte positions at which pre-tokens begin, and the last position up to which no following text can change them."""
        text = data.decode("utf-8", "surrogateescape")  # each byte that is not UTF-8 becomes one character
        known = [i for i, c in enumerate(text) if not "\udc80" <= c <= "\udcff"]
        if not known:
            return [], 0
        solid = max((i for i in known if not text[i].isspace()), default=0)
        if self.words:
            starts = [0, *(match.start() for match in WORD.finditer(text))]
            final = max(starts[-1], solid)
        else:
            spans = self.tokenizer.pre_tokenizer.pre_tokenize_str("".join(text[i] for i in known))
            starts = [0, *(known[span[0]] for _, span in spans[1:])]
            final = starts[-2] if len(starts) > 1 else 0
        at = np.cumsum([0, *(len(c.encode("utf-8", "surrogateescape")) for c in text)]).tolist()
        return [at[i] for i in starts], at[final]


def plain_content(content: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer.json without control tokens, and without steps that change the text (normalizers, prepended spaces).
    Replace and ByteLevel stay, because they only change how characters are represented."""
    kept = [part for part in parts(content.get("normalizer"), "normalizers") if part["type"] in ("Replace", "ByteLevel")]
    normalizer = {"type": "Sequence", "normalizers": kept} if kept else None
    return unprefixed({**content, "normalizer": normalizer, "added_tokens": []})


def plain_tokenizer(content: dict[str, Any]) -> Any:
    """The `tokenizers.Tokenizer` of `plain_content`."""
    return library_of(plain_content(content))


@partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["library"])
@dataclass(frozen=True)
class HostBridge:
    """A bridge that calls the host from the compiled program. Every use synchronises with the host and is counted in
    `library.calls`."""

    narrow: ClassVar[bool] = False
    library: Library

    @classmethod
    def of(cls, content: dict[str, Any], vocabulary: Vocabulary) -> HostBridge:
        """The bridge of a tokenizer.json, see `plain_tokenizer`."""
        single = {vocabulary.bytes_of([i]): i for i in reversed(range(vocabulary.size)) if not vocabulary.control[i]}
        fallback = np.array([single.get(bytes([byte]), UNSPELLED) for byte in range(256)], np.int32)
        words = not is_byte_level(content) or not content.get("pre_tokenizer")
        return cls(Library(plain_tokenizer(content), vocabulary, fallback, words))

    def splits(self, bytes_BP: jax.Array, counts_B: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """See `DeviceBridge.splits`."""
        encoding = self.encode(bytes_BP, counts_B)
        return [(encoding.starts_BP, encoding.final_B)]

    def closed(
        self, bytes_BP: jax.Array, counts_B: jax.Array, ended_B: jax.Array, v_B: jax.Array, *, widest: bool
    ) -> ClosedWords:
        """See `DeviceBridge.closed`."""
        return closed_words(self.encode, bytes_BP, counts_B, ended_B, widest)

    def encode(self, bytes_BP: jax.Array, counts_B: jax.Array) -> Encoding:
        """The tokens of the first counts_B bytes, as if the text ended there."""
        B, P = bytes_BP.shape
        row, number = jax.ShapeDtypeStruct((B, P), np.int32), jax.ShapeDtypeStruct((B,), np.int32)
        shapes = Encoding(row, row, number, jax.ShapeDtypeStruct((B, P), np.bool_), number)  # type: ignore[arg-type]
        return jax.pure_callback(self._encode, shapes, bytes_BP, counts_B)

    def _encode(self, bytes_BP: Any, counts_B: Any) -> Any:
        data, counts = np.asarray(bytes_BP), np.asarray(counts_B)
        B, P = data.shape
        ids, ends = np.zeros((B, P), np.int32), np.zeros((B, P), np.int32)
        tokens, starts, final = np.zeros(B, np.int32), np.zeros((B, P), np.bool_), np.zeros(B, np.int32)
        self.library.calls += 1
        for lane in range(B):
            text = data[lane, : counts[lane]].tobytes()
            if not text:
                continue
            pieces = self.library.encode(text)
            tokens[lane] = len(pieces)
            ids[lane, : len(pieces)] = [i for i, _ in pieces]
            ends[lane, : len(pieces)] = [end for _, end in pieces]
            begins, final[lane] = self.library.split(text)
            starts[lane, begins] = True
        return Encoding(ids, ends, tokens, starts, final)  # type: ignore[arg-type]
