"""Tokenizes text on the device: byte-level BPE inside a compiled program.

Bytes are split into pre-tokens, or words, by the tokenizer's rule (see `split`). A word that is a token by itself is found
in a hash table (see `words`). The bytes of the other words are symbols. Every word merges the pair of neighbouring symbols
with the lowest rank (the leftmost among equal ranks), in parallel, until no pair of any word has a merge. A normalizer of
the tokenizer (Qwen's NFC) is not applied: the bytes of a text are kept unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from tessy_jax.backend import backend
from tessy_jax.text.characters import Text, characters, code_point_classes, lengths
from tessy_jax.text.encoding import UNSPELLED, ClosedWords, Shown
from tessy_jax.text.host_bridge import plain_tokenizer
from tessy_jax.text.scan import Marks, lowest_in_run, pick
from tessy_jax.text.split import Matches, matches, rule_of, split
from tessy_jax.text.vocab import byte_alphabet, parts
from tessy_jax.text.words import NONE, WIDTH, Table, Words, find_merges, joined_words, merge_table, word_table

PER_WORD = 8
"""`DeviceBridge.closed` returns at most one word per this many bytes of the window."""


class Symbols(NamedTuple):
    """Text as symbols. ids_BP, alive_BP: the symbol that begins at each byte, and whether one begins there."""

    ids_BP: jax.Array
    alive_BP: jax.Array

    def listed(self, counts_B: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Ids and byte ends [B, P] of the symbols in order, 0 after the last one, and their number [B], for counts_B bytes
        of text."""
        P = self.ids_BP.shape[1]
        alive = Marks.of(self.alive_BP)
        at_BP = alive.nth(jnp.arange(P + 1, dtype=jnp.int32))
        begin_BP, end_BP = at_BP[:, :-1], jnp.minimum(at_BP[:, 1:], counts_B[:, None])
        ids_BP = pick(self.ids_BP, jnp.minimum(begin_BP, P - 1))
        used_BP = begin_BP < P
        return jnp.where(used_BP, ids_BP, 0), jnp.where(used_BP, end_BP, 0), alive.total_B


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["pages_X", "classes_X256", "bytes_M256", "merges", "words"],
    meta_fields=["rules"],
)
@dataclass(frozen=True)
class DeviceBridge:
    """The tables of M vocabularies. rules: the split rule of each. bytes_M256: the token of each byte. merges: see
    `merge_table`. words: the tokens that are words by themselves, including those that merges do not make
    (`ignore_merges`). narrow: whether a word has the same tokens in every window that contains it."""

    narrow: ClassVar[bool] = True
    rules: tuple[str, ...]
    pages_X: jax.Array
    classes_X256: jax.Array
    bytes_M256: jax.Array
    merges: Table
    words: Words

    @property
    def rule(self) -> str:
        """The split rules, for display."""
        return ", ".join(self.rules)

    @classmethod
    def joined(cls, bridges: Sequence[DeviceBridge]) -> DeviceBridge:
        """One bridge for several vocabularies."""
        return cls(
            rules=tuple(rule for bridge in bridges for rule in bridge.rules),
            pages_X=bridges[0].pages_X,
            classes_X256=bridges[0].classes_X256,
            bytes_M256=jnp.concatenate([bridge.bytes_M256 for bridge in bridges]),
            merges=Table.of([part for bridge in bridges for part in bridge.merges.parts()]),
            words=joined_words([bridge.words for bridge in bridges]),
        )

    def splits(self, bytes_BP: jax.Array, counts_B: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """For each split rule, the bytes at which pre-tokens of the first counts_B bytes begin [B, P], and the byte [B] up
        to which no following text can change them."""
        text = characters(bytes_BP, lengths(bytes_BP, counts_B), counts_B, self.pages_X, self.classes_X256)
        return split(list(dict.fromkeys(self.rules)), text)

    def closed(
        self, bytes_BP: jax.Array, counts_B: jax.Array, ended_B: jax.Array, v_B: jax.Array, *, widest: bool
    ) -> ClosedWords:
        """The tokens in vocabulary v_B of the first words, at most P / 8, that no following text can change. The text begins
        at the start of a word and has counts_B bytes; bytes_BP are the first P of them.

        ended_B: the text ends after counts_B bytes; if the window shows all of it, its last word counts too. widest: no
        wider window exists; if the first word of an ended text does not fit, the text is cut at the window's end.
        """
        P = bytes_BP.shape[1]
        at_P = jnp.arange(P, dtype=jnp.int32)
        lengths_BP = lengths(bytes_BP, counts_B)
        shown = Shown.of(lengths_BP, counts_B)
        found = self._matches(characters(bytes_BP, lengths_BP, shown.whole_B, self.pages_X, self.classes_X256), v_B)
        # bytes before the first character are a word by themselves
        first_B1 = found.first_B()[:, None]
        ends_BP = jnp.where((at_P == 0) & (first_B1 > 0), first_B1, found.ends_BP)

        def next_start(start_B: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            end_B = pick(ends_BP, jnp.minimum(start_B, P - 1)[:, None])[:, 0]
            return jnp.where((start_B < P) & (end_B < shown.whole_B), end_B, P), start_B

        count = P // PER_WORD
        # on CPUs, XLA would compute an unrolled walk again for each word
        unroll = 1 if backend().platform == "cpu" or count > PER_WORD else count + 2
        _, starts_WB = jax.lax.scan(next_start, jnp.zeros_like(counts_B), length=count + 2, unroll=unroll)
        starts_BW = starts_WB.T
        last_B = jnp.where(starts_BW < P, starts_BW, 0).max(axis=1)
        begin_BW, end_BW = starts_BW[:, :count], jnp.minimum(starts_BW[:, 1 : count + 1], shown.end_B[:, None])
        closed_BW = (starts_BW[:, 1 : count + 1] < P) & (end_BW <= found.final(last_B)[:, None])
        all_B = shown.all_B(ended_B, closed_BW.any(axis=1), widest)
        taken_BW = closed_BW | (all_B[:, None] & (begin_BW < end_BW))
        sure_end_B, end_B = (jnp.where(mask_BW, end_BW, 0).max(axis=1) for mask_BW in (closed_BW, taken_BW))
        at_BW = jnp.minimum(starts_BW[:, : count + 1], end_B[:, None])
        words = Marks.of((at_BW[:, None, :-1] == at_P[:, None]).any(axis=-1) & (at_P < end_B[:, None]))
        symbols, missed = self._found(bytes_BP, end_B, words, at_BW, v_B)
        ids_BP, ends_BP, tokens_B = merge(self.merges, symbols, words, missed, v_B).listed(end_B)
        sure_BP = (at_P < tokens_B[:, None]) & (ends_BP <= sure_end_B[:, None])
        behind_B = (starts_BW[:, -1] < P) | (shown.hidden_B & (end_B > 0))
        return ClosedWords(
            ids_BP,
            ends_BP,
            tokens_B,
            sure_BP.sum(axis=1, dtype=jnp.int32),
            end_B,
            more_B=jnp.where(all_B, end_B < counts_B, behind_B),
            long_B=shown.hidden_B & (end_B == 0),
        )

    def _matches(self, text: Text, v_B: jax.Array) -> Matches:
        """The matches by the rule of vocabulary v_B."""
        rules = list(dict.fromkeys(self.rules))
        found, *others = matches(rules, text)
        for rule, other in zip(rules[1:], others, strict=True):
            uses_B1 = jnp.array([rule == r for r in self.rules])[v_B][:, None]
            ends_BP = jnp.where(uses_B1, other.ends_BP, found.ends_BP)
            found = Matches(text, ends_BP, jnp.where(uses_B1, other.matched_BP, found.matched_BP))
        return found

    def _found(
        self, bytes_BP: jax.Array, counts_B: jax.Array, words: Marks, at_BW: jax.Array, v_B: jax.Array
    ) -> tuple[Symbols, jax.Array]:
        """The symbols of the first counts_B bytes: one for each word that is a token, and one for each byte of the others.
        words: the starts of the words. at_BW [B, W + 1]: the same in order, and the end of the last word. Also returns
        whether any word is not a token."""
        at_P = jnp.arange(bytes_BP.shape[1], dtype=jnp.int32)
        ids_BW = self.words.find(bytes_BP, at_BW[:, :-1], at_BW[:, 1:], v_B)
        number_BP = words.count() - 1
        ids_BP = pick(ids_BW, jnp.clip(number_BP, 0, ids_BW.shape[1] - 1))
        hit_BP = (number_BP >= 0) & (ids_BP >= 0)
        missed = ((ids_BW < 0) & (at_BW[:, :-1] < at_BW[:, 1:])).any()
        alive_BP = (at_P < counts_B[:, None]) & (words.marked_BP | ~hit_BP)
        bytes_BP = self.bytes_M256[v_B[:, None], bytes_BP.astype(jnp.int32)]
        return Symbols(jnp.where(hit_BP, ids_BP, bytes_BP), alive_BP), missed


def merge(merges: Table, symbols: Symbols, words: Marks, missed: jax.Array, v_B: jax.Array) -> Symbols:
    """Merges symbols within words by the merges of vocabulary v_B until no pair has a merge. words: the starts of words.
    missed: whether any word is not a token; otherwise, nothing is merged."""
    P = words.size
    word_BP, end_BP = words.count(), words.after()
    at_P = jnp.arange(P, dtype=jnp.int32)

    def body(carry: tuple[jax.Array, Symbols]) -> tuple[jax.Array, Symbols]:
        ids_BP, alive_BP = carry[1]
        alive = Marks.of(alive_BP)
        next_BP = alive.after()
        right_BP = pick(ids_BP, jnp.minimum(next_BP, P - 1))
        rank_BP, merged_BP = find_merges(merges, ids_BP, right_BP, v_B)
        merges_BP = alive_BP & (next_BP < end_BP) & (rank_BP != NONE)
        rank_BP = jnp.where(merges_BP, rank_BP, NONE)
        lowest_BP = merges_BP & (rank_BP == lowest_in_run(rank_BP, word_BP, NONE))
        wins_BP = lowest_BP & (at_P == lowest_in_run(jnp.where(lowest_BP, at_P, P), word_BP, P))
        left_BP = alive.before()
        absorbed_BP = (left_BP >= 0) & pick(wins_BP, jnp.maximum(left_BP, 0))
        symbols = Symbols(jnp.where(wins_BP, merged_BP, ids_BP), alive_BP & ~absorbed_BP)
        return wins_BP.any(), symbols

    with jax.named_scope("merges"):
        return jax.lax.while_loop(lambda carry: carry[0], body, (missed, symbols))[1]


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
    pages, classes = code_point_classes()
    return DeviceBridge(
        rules=(rule,),
        pages_X=jnp.asarray(pages),
        classes_X256=jnp.asarray(classes),
        bytes_M256=jnp.asarray([[spelled[byte] for byte in range(256)]], jnp.int32),
        merges=Table.of([merge_table(merge_rows(model))]),
        words=_words(content),
    )


def _is_plain_bpe(content: dict[str, Any]) -> bool:
    """Whether the vocabulary and the merges alone determine the tokens. An unknown setting might change them."""
    used = {key for key, value in content["model"].items() if value} - {"type", "vocab", "merges"}
    normalizers = {part["type"] for part in parts(content.get("normalizer"), "normalizers")}
    supported = {"unk_token", "fuse_unk", "byte_fallback", "ignore_merges"}
    return (
        content["model"]["type"] == "BPE" and used <= supported and normalizers <= {"NFC", "NFD", "NFKC", "NFKD", "Prepend"}
    )


def _words(content: dict[str, Any]) -> Words:
    """The tokens that are words by themselves: all tokens if the tokenizer ignores merges for such words, else the tokens
    that the merges make of their own bytes. Tokens longer than the table's width are left out, because merges make them."""
    alphabet, ids = byte_alphabet(), content["model"]["vocab"]
    names = [name for name in ids if name and alphabet.keys() >= set(name)]
    spelled = {ids[name]: bytes(alphabet[character] for character in name) for name in names}
    unmerged = {**content["model"], "ignore_merges": False}
    merging = plain_tokenizer({**content, "model": unmerged, "pre_tokenizer": None, "normalizer": None})
    encodings = merging.encode_batch_fast(names, add_special_tokens=False)
    made = {ids[name] for name, encoding in zip(names, encodings, strict=True) if encoding.ids == [ids[name]]}
    if not content["model"].get("ignore_merges"):
        return word_table({i: spelled[i] for i in made})
    longest = max((len(word) for i, word in spelled.items() if i not in made), default=0)
    return word_table(spelled, max(WIDTH, -(-longest // WIDTH) * WIDTH))
