"""Split rules on the device: the bytes at which pre-tokens of byte-level BPE tokenizers begin.

A tokenizer.json states its rule as a regular expression. Each of the supported rules has a few alternatives over runs of
character classes. For every character, the end of a match that begins there is computed from the ends of runs. A walk from
the first character then gives the characters at which matches begin. Characters are numbered by their first byte.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from string import ascii_letters
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from tessy_jax.text.characters import (
    KANA,
    LETTER,
    LOWER,
    MARK,
    NEWLINE,
    NUMBER,
    SPACE,
    SYMBOL,
    UPPER,
    Text,
    shifted,
)
from tessy_jax.text.scan import Marks, pick
from tessy_jax.text.vocab import parts

GPT2, DIGITS_GPT2, LLAMA3, QWEN2, QWEN3_5 = "gpt2", "digits+gpt2", "llama3", "qwen2", "qwen3.5"
O200K, DEEPSEEK3 = "o200k", "deepseek3"

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_WORDS = rf"{_PREFIX}\p{{L}}+"
_REST = r" ?[^\s\p{L}\p{N}]+"
SPLITS = {
    (rf"{_CONTRACTION}|{_WORDS}|\p{{N}}|{_REST}[\r\n]*|{_SPACES}",): QWEN2,
    (rf"{_CONTRACTION}|{_PREFIX}[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",): QWEN3_5,
    (rf"{_CONTRACTION}|{_WORDS}|\p{{N}}{{1,3}}|{_REST}[\r\n]*|{_SPACES}",): LLAMA3,
    (
        rf"{_PREFIX}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_PREFIX}{_UPPER}+{_LOWER}*{_CONTRACTION}?|\p{{N}}{{1,3}}"
        rf"|{_REST}[\r\n/]*|{_SPACES}",
    ): O200K,
    (
        r"\p{N}{1,3}",
        "[一-龥\u3040-ゟ゠-ヿ]+",
        r'[!"#$%&'
        r"'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
        rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}",
    ): DEEPSEEK3,
}
"""The regular expressions of a tokenizer's Split steps → its rule."""
STEPS = 4
"""Matches that a walk follows between two checks for its end."""


def rule_of(content: dict[str, Any]) -> str | None:
    """The split rule of a tokenizer.json; None if it is not supported."""
    steps = parts(content.get("pre_tokenizer"), "pretokenizers")
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1].get("add_prefix_space", True):
        return None
    if steps[-1].get("use_regex", True):
        before = [(step["type"], step.get("individual_digits")) for step in steps[:-1]]
        return GPT2 if not before else DIGITS_GPT2 if before == [("Digits", True)] else None
    expressions = []
    for step in steps[:-1]:
        if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"] or "Regex" not in step["pattern"]:
            return None
        expressions.append(step["pattern"]["Regex"].replace("\r", r"\r").replace("\n", r"\n"))
    return SPLITS.get(tuple(expressions))


class Matches(NamedTuple):
    """The matches of a rule. ends_BP: where the match that begins at each character ends; P if none begins there.
    matched_BP: whether an alternative of the rule matches; otherwise, the match is the text up to the next one that does."""

    text: Text
    ends_BP: jax.Array
    matched_BP: jax.Array

    def first_B(self) -> jax.Array:
        """The first character; P if there is none."""
        return Marks.of(self.text.begins).next()[:, 0]

    def final(self, last_B: jax.Array) -> jax.Array:
        """The last byte [B] up to which no following text can change boundaries, for a last pre-token at last_B.

        Following text can remove a boundary only if it begins the last pre-token and lies inside white space that may
        continue, next to an apostrophe that may become a contraction, or between letters. Otherwise the boundary is final,
        and no further boundary can appear up to the last character that is not white space.
        """
        text, last_B = self.text, jnp.minimum(last_B, self.ends_BP.shape[1] - 1)
        at_P = jnp.arange(self.ends_BP.shape[1], dtype=jnp.int32)
        solid_B = Marks.of(text.lacks(SPACE)).last()[:, -1]
        remaining_B = (text.begins & (at_P >= last_B[:, None])).sum(axis=1, dtype=jnp.int32)
        before_B = jnp.where(text.begins & (at_P < last_B[:, None]), at_P, -1).max(axis=1)
        previous_B = jnp.maximum(before_B, 0)
        quote, space, letter = text.codes == ord("'"), text.has(SPACE), text.has(LETTER | MARK)
        unsafe_B = _at(space, previous_B) & (solid_B < last_B)
        unsafe_B |= (_at(quote, last_B) & (remaining_B < 3)) | (_at(quote, previous_B) & (remaining_B < 2))
        unsafe_B |= _at(letter, previous_B) & _at(letter, last_B)
        unmatched_B = ~_at(self.matched_BP, last_B)  # a later match may begin inside
        final_B = jnp.where(unmatched_B, last_B, jnp.maximum(last_B, solid_B))
        final_B = jnp.where(unsafe_B & (before_B >= 0), before_B, final_B)
        return jnp.where(text.begins.any(axis=1), final_B, 0)


def matches(rules: Sequence[str], text: Text) -> list[Matches]:
    """The matches of each rule in each text."""
    runs = run_ends(text, list(dict.fromkeys(kind for rule in rules for kind in (NOTHING, *RULES[rule][1]))))
    return [_matches(rule, text, runs) for rule in rules]


def run_ends(text: Text, kinds: Sequence[Kind]) -> dict[Kind, jax.Array]:
    """For each kind, the first character from each byte on that is not of this kind [B, P]."""
    outside_XBP = jnp.stack([text.begins & ~kind.inside(text) for kind in kinds])
    next_XBP = Marks.of(outside_XBP.reshape(-1, outside_XBP.shape[-1])).next().reshape(outside_XBP.shape)
    return dict(zip(kinds, next_XBP, strict=True))


def _matches(rule: str, text: Text, runs: dict[Kind, jax.Array]) -> Matches:
    P = text.codes.shape[1]
    stop = jnp.broadcast_to(text.counts_B[:, None], text.codes.shape)
    if rule in (DIGITS_GPT2, DEEPSEEK3):
        stop = jnp.minimum(Marks.of(_breaks(rule, text, Marks.of(text.begins))).after(), stop)
    ends = RULES[rule][0](Scan(text, runs, stop), rule)
    matched = (ends > 0) & text.begins
    # text that no alternative matches is one piece up to the next match
    ends = jnp.where(matched, ends, jnp.minimum(Marks.of(matched).after(), stop))
    # without the barrier, XLA computes the matches again in every use
    return jax.lax.optimization_barrier(Matches(text, jnp.where(text.begins, ends, P), matched))


def split(rules: Sequence[str], text: Text) -> list[tuple[jax.Array, jax.Array]]:
    """Splits each text by several rules. Returns, for each rule, the bytes at which pre-tokens begin [B, P], and the last
    byte [B] up to which no following text can change them, see `Matches.final`."""
    found: Matches = jax.tree.map(lambda *parts: jnp.concatenate(parts), *matches(rules, text))
    at_P = jnp.arange(text.codes.shape[1], dtype=jnp.int32)
    starts_BP = walk(found.ends_BP, found.first_B()) & found.text.begins
    final_B = found.final(jnp.where(starts_BP, at_P, 0).max(axis=1))
    return list(zip(jnp.split(starts_BP, len(rules)), jnp.split(final_B, len(rules)), strict=True))


def walk(ends_BP: jax.Array, first_B: jax.Array) -> jax.Array:
    """The bytes [B, P] that a walk from first_B visits. From each byte, the walk continues at the end in ends_BP."""
    P = ends_BP.shape[1]
    at_P = jnp.arange(P, dtype=jnp.int32)

    def visit(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        visited_BP, at_B = carry
        for _ in range(STEPS):
            visited_BP = visited_BP | (at_P == at_B[:, None])
            at_B = jnp.where(at_B < P, _at(ends_BP, jnp.minimum(at_B, P - 1)), P)
        return visited_BP, at_B

    start = jnp.zeros(ends_BP.shape, bool), first_B
    return jax.lax.while_loop(lambda carry: (carry[1] < P).any(), visit, start)[0]


def _at(x: jax.Array, index_B: jax.Array) -> jax.Array:
    return pick(x, index_B[:, None])[:, 0]


def _breaks(rule: str, text: Text, begins: Marks) -> jax.Array:
    """Characters at which an earlier Split step of the tokenizer begins a new piece."""
    previous = begins.before()

    def before(x: jax.Array) -> jax.Array:
        return pick(x, jnp.maximum(previous, 0)) & (previous >= 0)

    number = text.has(NUMBER)
    if rule == DIGITS_GPT2:
        return number | (before(number) & text.begins)
    count, kana = begins.count(), text.has(KANA)
    first = Marks.of(number & ~before(number)).last()
    place = count - pick(count, jnp.maximum(first, 0))
    return ((number & (place % 3 == 0)) | (number != before(number)) | (kana != before(kana))) & text.begins


class Kind(NamedTuple):
    """A kind of character. With `lacks`: characters of none of these classes. Otherwise: characters of a class in `has`, or
    one of the characters in `codes`."""

    has: int = 0
    lacks: int = 0
    codes: str = ""

    def inside(self, text: Text) -> jax.Array:
        """Whether a character of this kind begins at each byte."""
        if self.lacks:
            return text.lacks(self.lacks)
        return reduce(jnp.logical_or, [text.codes == ord(code) for code in self.codes], text.has(self.has)) & text.begins


NOTHING, BLANK = Kind(), Kind(has=SPACE)
LETTERS, MARKED, NUMBERS, NEWLINES = Kind(has=LETTER), Kind(has=LETTER | MARK), Kind(has=NUMBER), Kind(has=NEWLINE)
OTHERS, OTHERS_UNMARKED = Kind(lacks=SPACE | LETTER | NUMBER), Kind(lacks=SPACE | LETTER | MARK | NUMBER)
UPPERS, LOWERS, TAIL = Kind(has=UPPER), Kind(has=LOWER), Kind(has=NEWLINE, codes="/")
SYMBOLS, LATIN = Kind(has=SYMBOL), Kind(codes=ascii_letters)


@dataclass(frozen=True)
class Scan:
    """Ends of runs within the piece that ends at stop [B, P]. All values are first bytes of characters; 0 means no match.
    runs: see `run_ends`."""

    text: Text
    runs: dict[Kind, jax.Array]
    stop: jax.Array

    @property
    def at(self) -> jax.Array:
        """Bytes [P]."""
        return jnp.arange(self.stop.shape[1], dtype=jnp.int32)

    @property
    def size(self) -> int:
        """P."""
        return self.stop.shape[1]

    @cached_property
    def after(self) -> jax.Array:
        """The next character; stop if it is outside the piece."""
        return jnp.minimum(shifted(self.runs[NOTHING], 1, self.size), self.stop)

    @cached_property
    def second(self) -> jax.Array:
        """The second next character; stop if it is outside the piece."""
        return self.looked_up(self.after, self.after)

    @cached_property
    def third(self) -> jax.Array:
        """The third next character; stop if it is outside the piece."""
        return self.looked_up(self.after, self.second)

    def run_end(self, kind: Kind) -> jax.Array:
        """The end of the run of a kind that contains a character; the character itself if it is of another kind."""
        return jnp.minimum(self.runs[kind], self.stop)

    def value(self, x: jax.Array, index: jax.Array) -> jax.Array:
        """x of the character at `index`; False or 0 outside the piece."""
        inside = jnp.minimum(index, x.shape[1] - 1)
        return jnp.where(index < self.stop, pick(x, inside), 0).astype(x.dtype)

    def some(self, kind: Kind, prefix: jax.Array | None = None) -> jax.Array:
        """`kind+`, or `prefix?kind+`."""
        match = jnp.where(kind.inside(self.text), self.run_end(kind), 0)
        return match if prefix is None else _first_of(self.behind(prefix, kind), match)

    def behind(self, prefix: jax.Array, kind: Kind) -> jax.Array:
        """`prefix kind+`."""
        end = jnp.minimum(shifted(self.runs[kind], 1, self.size), self.stop)
        return jnp.where(prefix & (end > self.after), end, 0)

    def further(self, ends: jax.Array, kind: Kind) -> jax.Array:
        """`…kind*` after matches that end at `ends`."""
        return jnp.where(ends > 0, self.looked_up(self.run_end(kind), ends), 0)

    def looked_up(self, values: jax.Array, index: jax.Array) -> jax.Array:
        """values at `index` if it lies in the piece, else the index itself."""
        at_index = pick(values, jnp.minimum(index, values.shape[1] - 1))
        return jnp.where(index < self.stop, at_index, index)

    def digits(self, most: int) -> jax.Array:
        """`\\p{N}{1,most}`, for 1 and 3."""
        match = self.some(NUMBERS)
        return jnp.where(match > 0, jnp.minimum(match, self.after if most == 1 else self.third), 0)

    def contraction(self, any_case: bool) -> jax.Array:
        """The end of 's, 't, 'm, 'd, 're, 've or 'll at a character, else 0."""
        codes = jnp.where(self.text.begins, self.text.codes, 0)
        long_s = (codes == 0x17F) if any_case else jnp.zeros_like(self.text.begins)
        if any_case:  # the long s is an s to case-insensitive expressions
            codes = jnp.where(long_s, ord("s"), codes)
            codes = jnp.where((codes >= ord("A")) & (codes <= ord("Z")), codes + 32, codes)
        next_code, second_code = shifted(codes, 1, 0), shifted(codes, 2, 0)

        def is_any(x: jax.Array, letters: str) -> jax.Array:
            return reduce(jnp.logical_or, (x == ord(letter) for letter in letters))

        is_long = (next_code == ord("l")) & (second_code == ord("l"))
        is_long |= is_any(next_code, "rv") & (second_code == ord("e"))
        is_long |= shifted(long_s, 1, False)  # a long s has two bytes
        bytes_ = jnp.where(is_long, 3, jnp.where(is_any(next_code, "stmd"), 2, 0))
        behind = self.runs[NOTHING]
        end = jnp.where(bytes_ == 2, shifted(behind, 2, self.size), shifted(behind, 3, self.size))
        matched = (codes == ord("'")) & (bytes_ > 0) & (self.at + bytes_ <= self.stop)
        return jnp.where(matched, jnp.minimum(end, self.stop), 0)

    def spaces(self, newlines: bool) -> jax.Array:
        """`\\s*[\\r\\n]+` (with `newlines`), `\\s+(?!\\S)`, `\\s+`."""
        space = self.text.has(SPACE)
        end = self.run_end(BLANK)
        last = Marks.of(space & (jnp.minimum(shifted(self.runs[BLANK], 1, self.size), self.stop) == self.after)).next()
        match = jnp.where((end == self.stop) | (end == self.after), end, last)
        if newlines:
            last = Marks.of(self.text.has(NEWLINE)).last()
            last = pick(last, jnp.maximum(end - 1, 0))
            behind = pick(self.after, jnp.maximum(last, 0))
            match = jnp.where(last >= self.at, behind, match)
        return jnp.where(space, match, 0)


def _first_of(*matches: jax.Array) -> jax.Array:
    """The first alternative that matches."""
    result = matches[-1]
    for match in reversed(matches[:-1]):
        result = jnp.where(match > 0, match, result)
    return result


def gpt2(scan: Scan, rule: str) -> jax.Array:
    """GPT-2, also after a split at digits. Returns the end of the match at each character [B, P], 0 for none."""
    text = scan.text
    blank = text.codes == 0x20
    runs = [scan.some(kind, blank) for kind in (LETTERS, NUMBERS, OTHERS)]
    return _first_of(scan.contraction(any_case=False), *runs, scan.spaces(newlines=False))


def words(scan: Scan, rule: str) -> jax.Array:
    """Llama 3 (up to three digits per pre-token), Qwen 2 (one digit) and Qwen 3.5 (marks are letters). Returns ends as
    `gpt2` does."""
    text = scan.text
    letter, other = (MARKED, OTHERS_UNMARKED) if rule == QWEN3_5 else (LETTERS, OTHERS)
    letters = scan.some(letter, text.lacks(NEWLINE | LETTER | NUMBER))
    others = scan.further(scan.some(other, text.codes == 0x20), NEWLINES)
    digits = scan.digits(3 if rule == LLAMA3 else 1)
    return _first_of(scan.contraction(any_case=True), letters, digits, others, scan.spaces(newlines=True))


def o200k(scan: Scan, rule: str) -> jax.Array:
    """GPT-OSS. Returns ends as `gpt2` does."""
    text, at = scan.text, scan.at
    upper, lower = text.has(UPPER), text.has(LOWER)
    upper_end = scan.run_end(UPPERS)
    # `upper*lower+`: the longest run of upper that leaves at least one lower; a character may be both
    continued = scan.value(jnp.where(lower, scan.run_end(LOWERS), 0), upper_end)
    last_lower = pick(Marks.of(lower).last(), jnp.maximum(upper_end - 1, 0))
    shorter = jnp.where((last_lower >= at) & upper, pick(scan.after, jnp.maximum(last_lower, 0)), 0)
    mixed = jnp.where(continued > 0, continued, shorter)
    capitals = jnp.where(upper, upper_end, 0)

    prefix = text.lacks(NEWLINE | LETTER | NUMBER)

    mixed, capitals = jax.lax.optimization_barrier((mixed, capitals))
    prefixed = jnp.where(prefix, scan.value(mixed, scan.after), 0)
    word = _first_of(prefixed, mixed, scan.behind(prefix, UPPERS), capitals)
    word = jax.lax.optimization_barrier(word)
    short = jnp.where(word > 0, scan.value(scan.contraction(any_case=True), word), 0)
    word = _first_of(short, word)
    others = scan.further(scan.some(OTHERS, text.codes == 0x20), TAIL)
    return _first_of(word, scan.digits(3), others, scan.spaces(newlines=True))


def deepseek3(scan: Scan, rule: str) -> jax.Array:
    """DeepSeek-V3. Returns ends as `gpt2` does."""
    text = scan.text
    mark = text.has(SYMBOL) & text.between("!", "~")
    tagged = scan.behind(mark, LATIN)
    letters = scan.some(MARKED, text.lacks(NEWLINE | LETTER | SYMBOL))
    others = scan.further(scan.some(SYMBOLS, text.codes == 0x20), NEWLINES)
    return _first_of(tagged, letters, others, scan.spaces(newlines=True))


Rule = Callable[[Scan, str], jax.Array]
_GPT2 = gpt2, (LETTERS, NUMBERS, OTHERS, BLANK)
_WORD_RULE = words, (LETTERS, NUMBERS, OTHERS, NEWLINES, BLANK)
RULES: dict[str, tuple[Rule, tuple[Kind, ...]]] = {
    GPT2: _GPT2,
    DIGITS_GPT2: _GPT2,
    LLAMA3: _WORD_RULE,
    QWEN2: _WORD_RULE,
    QWEN3_5: (words, (MARKED, NUMBERS, OTHERS_UNMARKED, NEWLINES, BLANK)),
    O200K: (o200k, (UPPERS, LOWERS, NUMBERS, OTHERS, TAIL, BLANK)),
    DEEPSEEK3: (deepseek3, (LATIN, MARKED, SYMBOLS, NEWLINES, BLANK)),
}
"""Each rule, and the kinds of characters whose runs it uses."""
