"""Tokenizes text on the device: byte-level BPE inside a compiled program.

Bytes are split into pre-tokens by the tokenizer's rule (see `split`), and each byte is a symbol. Then every pre-token merges
the pair of neighbouring symbols with the lowest rank (the leftmost among equal ranks), in parallel, until no pair of any
pre-token has a merge. A hash table holds the merges. A normalizer of the tokenizer (Qwen's NFC) is not applied: the bytes of
a text are kept unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tessy_jax.text.host_bridge import plain_tokenizer
from tessy_jax.text.scan import running_min, running_sum
from tessy_jax.text.split import code_point_classes, rule_of, split
from tessy_jax.text.vocab import byte_alphabet, parts

Carry = tuple[jax.Array, jax.Array, jax.Array, jax.Array]

WAYS = 4  # merges per bucket of the hash table; a pair has two buckets
NONE = np.iinfo(np.int32).max
UNSPELLED = -1
"""The token of a byte that the vocabulary lacks (SmolLM2 lacks some control characters)."""
EMPTY = -2


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


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["pages_X", "classes_X256", "bytes_256", "merges_X16"],
    meta_fields=["rule"],
)
@dataclass(frozen=True)
class DeviceBridge:
    """The tables of one tokenizer. merges_X16: buckets of 4 entries (left, right, rank, merged id)."""

    rule: str
    pages_X: jax.Array
    classes_X256: jax.Array
    bytes_256: jax.Array
    merges_X16: jax.Array

    def split(self, bytes_BP: jax.Array, counts_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The bytes at which pre-tokens of the first counts_B bytes begin [B, P], and the byte [B] up to which no following
        text can change them."""
        return split(self.rule, bytes_BP, counts_B, self.pages_X, self.classes_X256)

    def encode(self, bytes_BP: jax.Array, counts_B: jax.Array) -> Encoding:
        """The tokens of the first counts_B bytes, as if the text ended there."""
        starts_BP, final_B = self.split(bytes_BP, counts_B)
        valid_BP = jnp.arange(bytes_BP.shape[1]) < counts_B[:, None]
        symbols_BP = self.bytes_256[bytes_BP.astype(jnp.int32)]
        tokens = merge(self.merges_X16, symbols_BP, valid_BP, running_sum(starts_BP), counts_B)
        return Encoding(*tokens, starts_BP=starts_BP, final_B=final_B)


def merge(
    merges_X16: jax.Array, symbols_BP: jax.Array, alive_BP: jax.Array, word_BP: jax.Array, counts_B: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Merges the symbols of every word. Returns ids_BP, ends_BP and tokens_B of an `Encoding`.

    merges_X16: see `merge_table`. symbols_BP: the id of the symbol that begins at each byte. alive_BP: whether a symbol
    begins at a byte. word_BP: the number of the word of each byte, at most P. counts_B: number of bytes.
    """
    B, P = symbols_BP.shape
    at_P = jnp.arange(P, dtype=jnp.int32)
    lanes_B1 = jnp.arange(B)[:, None]

    def neighbours(alive_BP: jax.Array) -> jax.Array:
        """The index of the next symbol, P if there is none."""
        next_BP = running_min(jnp.where(alive_BP, at_P, P), fill=P)
        return jnp.pad(next_BP[:, 1:], ((0, 0), (0, 1)), constant_values=P)

    def ranked(symbols_BP: jax.Array, alive_BP: jax.Array) -> tuple[jax.Array, jax.Array]:
        """For each symbol, the rank of its merge with the next one (NONE if they do not merge), and the merged symbol."""
        next_BP = neighbours(alive_BP)
        inside_BP = jnp.minimum(next_BP, P - 1)
        right_BP = jnp.take_along_axis(symbols_BP, inside_BP, axis=1)
        same_word_BP = alive_BP & (next_BP < P) & (jnp.take_along_axis(word_BP, inside_BP, axis=1) == word_BP)
        rank_BP, merged_BP = look_up(merges_X16, symbols_BP, right_BP)
        return jnp.where(same_word_BP, rank_BP, NONE), merged_BP

    def body(carry: Carry) -> Carry:
        symbols_BP, alive_BP, rank_BP, merged_BP = carry
        best_BP = jnp.full((B, P + 1), NONE, jnp.int32).at[lanes_B1, word_BP].min(rank_BP)
        lowest_BP = (rank_BP != NONE) & (rank_BP == jnp.take_along_axis(best_BP, word_BP, axis=1))
        index_BP = jnp.where(lowest_BP, at_P, P)
        first_BP = jnp.full((B, P + 1), P, jnp.int32).at[lanes_B1, word_BP].min(index_BP)
        wins_BP = lowest_BP & (at_P == jnp.take_along_axis(first_BP, word_BP, axis=1))
        symbols_BP = jnp.where(wins_BP, merged_BP, symbols_BP)
        absorbed_BP = jnp.where(wins_BP, neighbours(alive_BP), P)
        alive_BP = alive_BP.at[lanes_B1, absorbed_BP].set(False, mode="drop")
        return (symbols_BP, alive_BP, *ranked(symbols_BP, alive_BP))

    carry = (symbols_BP, alive_BP, *ranked(symbols_BP, alive_BP))
    with jax.named_scope("merges"):
        symbols_BP, alive_BP, _, _ = jax.lax.while_loop(lambda carry: (carry[2] != NONE).any(), body, carry)

    place_BP = jnp.where(alive_BP, running_sum(alive_BP) - 1, P)
    end_BP = jnp.minimum(neighbours(alive_BP), counts_B[:, None])
    zeros_BP = jnp.zeros((B, P), jnp.int32)
    ids_BP = zeros_BP.at[lanes_B1, place_BP].set(symbols_BP, mode="drop")
    ends_BP = zeros_BP.at[lanes_B1, place_BP].set(end_BP, mode="drop")
    return ids_BP, ends_BP, alive_BP.sum(axis=1, dtype=jnp.int32)


def look_up(merges_X16: jax.Array, left_BP: jax.Array, right_BP: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rank of the merge of each pair, NONE if the table (see `merge_table`) lacks the pair, and the merged id."""
    buckets = merges_X16.shape[0]
    rank, merged = jnp.full(left_BP.shape, NONE, jnp.int32), jnp.zeros(left_BP.shape, jnp.int32)
    for place in _places(left_BP.astype(jnp.uint32), right_BP.astype(jnp.uint32), buckets):
        row = merges_X16[place.astype(jnp.int32)]
        for way in range(WAYS):
            hit = (row[..., 4 * way] == left_BP) & (row[..., 4 * way + 1] == right_BP)
            rank = jnp.where(hit, row[..., 4 * way + 2], rank)
            merged = jnp.where(hit, row[..., 4 * way + 3], merged)
    return rank, merged


def _places(left: Any, right: Any, buckets: int) -> tuple[Any, Any]:
    """The two buckets of each pair, for NumPy or JAX arrays of uint32; `buckets` is a power of two."""
    uint = np.uint32
    first = (left * uint(0x9E3779B1)) ^ (right * uint(0x85EBCA77))
    first = (first ^ (first >> uint(15))) * uint(0xC2B2AE3D)
    second = (left * uint(0x27D4EB2F)) ^ (right * uint(0x165667B1))
    second = (second ^ (second >> uint(13))) * uint(0x9E3779B1)
    mask = uint(buckets - 1)
    return (first >> uint(8)) & mask, (second >> uint(8)) & mask


def merge_table(merges: NDArray[np.int32]) -> NDArray[np.int32]:
    """A hash table [buckets, 16] of all merges [count, 4] (left, right, rank, merged id); empty entries are EMPTY."""
    buckets = 1 << max(4, (len(merges) // 2).bit_length())
    while True:
        table = np.full((buckets, WAYS, 4), EMPTY, np.int32)
        filled = np.zeros(buckets, np.int64)
        left = merges
        for choice in range(2):
            place = _places(left[:, 0].astype(np.uint32), left[:, 1].astype(np.uint32), buckets)[choice].astype(np.int64)
            order = np.argsort(place, kind="stable")
            left, place = left[order], place[order]
            number = np.arange(len(place)) - np.searchsorted(place, place)  # within its bucket
            way = filled[place] + number
            fits = way < WAYS
            table[place[fits], way[fits]] = left[fits]
            filled += np.bincount(place[fits], minlength=buckets)
            left = left[~fits]
        if not len(left):
            return table.reshape(buckets, 4 * WAYS)
        buckets *= 2


def merge_rows(model: dict[str, Any]) -> NDArray[np.int32]:
    """The merges of the model of a tokenizer.json, [count, 4], as input of `merge_table`."""
    ids: dict[str, int] = model["vocab"]
    pairs = [tuple(merge.split(" ", 1)) if isinstance(merge, str) else tuple(merge) for merge in model["merges"]]
    ranks = {pair: rank for rank, pair in enumerate(pairs)}  # the library uses the last rank of a repeated pair
    rows = [(ids[a], ids[b], rank, ids[a + b]) for (a, b), rank in ranks.items()]
    return np.array(rows, np.int32).reshape(-1, 4)


def device_bridge(content: dict[str, Any]) -> DeviceBridge | None:
    """The device bridge of a tokenizer.json; None if its split rule, its model or one of its settings is not supported."""
    rule, model = rule_of(content), content["model"]
    if rule is None or not _is_plain_bpe(content):
        return None
    ids: dict[str, int] = model["vocab"]
    spelled = {byte: ids.get(character, UNSPELLED) for character, byte in byte_alphabet().items()}
    if model.get("byte_fallback") and UNSPELLED in spelled.values():
        return None
    if model.get("ignore_merges") and not _merges_make_all_words(content):
        return None
    pages, classes = code_point_classes()
    return DeviceBridge(
        rule=rule,
        pages_X=jnp.asarray(pages),
        classes_X256=jnp.asarray(classes),
        bytes_256=jnp.asarray([spelled[byte] for byte in range(256)], jnp.int32),
        merges_X16=jnp.asarray(merge_table(merge_rows(model))),
    )


def _is_plain_bpe(content: dict[str, Any]) -> bool:
    """Whether the vocabulary and the merges alone determine the tokens. An unknown setting might change them."""
    used = {key for key, value in content["model"].items() if value} - {"type", "vocab", "merges"}
    normalizers = {part["type"] for part in parts(content.get("normalizer"), "normalizers")}
    supported = {"unk_token", "fuse_unk", "byte_fallback", "ignore_merges"}
    return (
        content["model"]["type"] == "BPE" and used <= supported and normalizers <= {"NFC", "NFD", "NFKC", "NFKD", "Prepend"}
    )


def _merges_make_all_words(content: dict[str, Any]) -> bool:
    """Whether the merges turn every pre-token in the vocabulary into one token. If so, `ignore_merges`, which makes such a
    pre-token one token without merging, has no effect."""
    merging = plain_tokenizer({**content, "model": {**content["model"], "ignore_merges": False}})
    words = []
    for name in content["model"]["vocab"]:
        try:
            words.append(bytes(byte_alphabet()[character] for character in name).decode())
        except (KeyError, UnicodeDecodeError):  # not a pre-token, which consists of complete characters
            continue
    encodings = merging.encode_batch_fast(words, add_special_tokens=False)
    broken = (word for word, encoding in zip(words, encodings, strict=True) if len(encoding.ids) != 1)
    return all(len(merging.pre_tokenizer.pre_tokenize_str(word)) != 1 for word in broken)
