"""Split rules on the device: the bytes at which pre-tokens of byte-level BPE tokenizers begin.

A tokenizer.json states its rule as a regular expression. Each of the six supported rules has a few alternatives over runs of
character classes. For every character, the end of a match that begins there is computed from the ends of runs (reverse
cumulative minima). Pointer doubling from the first character then gives the characters at which matches begin.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tessy_jax.text.scan import running_max, running_min, running_sum
from tessy_jax.text.vocab import parts

GPT2, DIGITS_GPT2, LLAMA3, QWEN2, O200K, DEEPSEEK3 = "gpt2", "digits+gpt2", "llama3", "qwen2", "o200k", "deepseek3"

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_REST = r" ?[^\s\p{L}\p{N}]+"
SPLITS = {
    (rf"{_CONTRACTION}|{_WORDS}|\p{{N}}|{_REST}[\r\n]*|{_SPACES}",): QWEN2,
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

LETTER, NUMBER, SPACE, NEWLINE, UPPER, LOWER, MARK, SYMBOL, KANA = (1 << i for i in range(9))
"""Classes of a code point, in this order: \\p{L}, \\p{N}, \\s, [\\r\\n], the two letter classes of o200k, \\p{M}, \\p{P} or
\\p{S}, and DeepSeek's ranges of Chinese and Japanese."""


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
    """Text as characters. Arrays are [B, P]: code points, classes, first bytes, and whether a character is valid. counts_B:
    number of characters."""

    codes: jax.Array
    classes: jax.Array
    bytes_at: jax.Array
    valid: jax.Array
    counts_B: jax.Array

    def has(self, mask: int) -> jax.Array:
        """Whether each character is valid and in one of the classes, bool [B, P]."""
        return ((self.classes & mask) != 0) & self.valid

    def lacks(self, mask: int) -> jax.Array:
        """Whether each character is valid and in none of the classes, bool [B, P]."""
        return ((self.classes & mask) == 0) & self.valid

    def between(self, first: str, last: str) -> jax.Array:
        """Whether each character is valid and in a range of code points, bool [B, P]."""
        return (self.codes >= ord(first)) & (self.codes <= ord(last)) & self.valid


def characters(bytes_BP: jax.Array, counts_B: jax.Array, pages_X: jax.Array, classes_X256: jax.Array) -> Text:
    """The characters of UTF-8 text, without an unfinished one at the end. Bytes that are not UTF-8 give arbitrary
    characters."""
    B, P = bytes_BP.shape
    at_P = jnp.arange(P, dtype=jnp.int32)
    first = bytes_BP.astype(jnp.int32)
    second, third, fourth = (_next(first, i, 0) & 0x3F for i in (1, 2, 3))
    length = jnp.where(first < 0xC0, 1, jnp.where(first < 0xE0, 2, jnp.where(first < 0xF0, 3, 4)))
    two = ((first & 0x1F) << 6) | second
    three = ((first & 0x0F) << 12) | (second << 6) | third
    four = ((first & 0x07) << 18) | (second << 12) | (third << 6) | fourth
    code = jnp.where(length == 1, first, jnp.where(length == 2, two, jnp.where(length == 3, three, four)))
    code = jnp.minimum(code, 0x10FFFF)
    begins = ((first & 0xC0) != 0x80) & (at_P + length <= counts_B[:, None])
    place = jnp.where(begins, running_sum(begins) - 1, P)
    lanes_B1 = jnp.arange(B)[:, None]
    codes = jnp.zeros((B, P), jnp.int32).at[lanes_B1, place].set(code, mode="drop")
    bytes_at = jnp.zeros((B, P), jnp.int32).at[lanes_B1, place].set(jnp.broadcast_to(at_P, (B, P)), mode="drop")
    total_B = begins.sum(axis=1, dtype=jnp.int32)
    valid = at_P < total_B[:, None]
    classes = jnp.where(valid, classes_X256[pages_X[codes >> 8], codes & 0xFF], 0)
    return Text(codes, classes, bytes_at, valid, total_B)


def split(
    rule: str, bytes_BP: jax.Array, counts_B: jax.Array, pages_X: jax.Array, classes_X256: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Splits the first counts_B bytes of each lane. Returns the bytes at which pre-tokens begin [B, P], and the last byte
    [B] up to which no following text can change them.

    Following text can remove a boundary only if it begins the last pre-token and lies inside white space that may continue,
    next to an apostrophe that may become a contraction, or between letters. Otherwise the boundary is final, and no further
    boundary can appear up to the last character that is not white space.
    """
    B, P = bytes_BP.shape
    text = characters(bytes_BP, counts_B, pages_X, classes_X256)
    at_P = jnp.arange(P, dtype=jnp.int32)
    breaks = _breaks(rule, text)
    stop = _next(_first_at_or_after(breaks), 1, P)
    stop = jnp.minimum(stop, text.counts_B[:, None])
    scan = Scan(text, stop)
    ends = {GPT2: gpt2, DIGITS_GPT2: gpt2, LLAMA3: words, QWEN2: words, O200K: o200k, DEEPSEEK3: deepseek3}[rule](scan, rule)
    matched = (ends > 0) & text.valid
    # text that no alternative matches is one piece up to the next match
    ends = jnp.where(matched, ends, jnp.minimum(_next(_first_at_or_after(matched), 1, P), stop))
    ends = jnp.where(text.valid, ends, P)

    lanes_B1 = jnp.arange(B)[:, None]

    def follow(_: int, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        starts, jump = carry
        starts |= jnp.zeros_like(starts).at[lanes_B1, jump].max(starts)
        return starts, jnp.take_along_axis(jump, jump, axis=1)

    jump = jnp.concatenate([ends, jnp.full((B, 1), P)], axis=1)
    starts = jnp.broadcast_to(jnp.arange(P + 1) == 0, (B, P + 1))
    starts, _ = jax.lax.fori_loop(0, max(1, (P - 1).bit_length()), follow, (starts, jump))
    starts = starts[:, :P] & text.valid

    last_B = jnp.where(starts, at_P, 0).max(axis=1)
    solid_B = jnp.where(text.lacks(SPACE), at_P, -1).max(axis=1)
    remaining_B = text.counts_B - last_B
    previous_B = jnp.maximum(last_B - 1, 0)

    def at(x: jax.Array, index_B: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, index_B[:, None], axis=1)[:, 0]

    quote, space, letter = text.codes == ord("'"), text.has(SPACE), text.has(LETTER | MARK)
    unsafe_B = at(space, previous_B) & (solid_B < last_B)
    unsafe_B |= (at(quote, last_B) & (remaining_B < 3)) | (at(quote, previous_B) & (remaining_B < 2))
    unsafe_B |= at(letter, previous_B) & at(letter, last_B)
    unmatched_B = ~at(matched, last_B)  # a later match may begin inside
    final_B = jnp.where(unmatched_B, last_B, jnp.maximum(last_B, solid_B))
    final_B = jnp.where(unsafe_B & (last_B > 0), last_B - 1, final_B)
    final_B = at(text.bytes_at, jnp.maximum(final_B, 0))
    slots = jnp.where(starts, text.bytes_at, P)
    starts_BP = jnp.zeros((B, P), bool).at[lanes_B1, slots].set(True, mode="drop")
    return starts_BP, final_B


def _next(x: jax.Array, by: int, fill: int) -> jax.Array:
    """x[:, i + by] at i."""
    return jnp.pad(x[:, by:], ((0, 0), (0, by)), constant_values=fill)


def _first_at_or_after(where: jax.Array) -> jax.Array:
    P = where.shape[1]
    return running_min(jnp.where(where, jnp.arange(P, dtype=jnp.int32), P), fill=P)


def _breaks(rule: str, text: Text) -> jax.Array:
    """Characters at which an earlier Split step of the tokenizer begins a new piece."""
    number = text.has(NUMBER)
    before = jnp.pad(number, ((0, 0), (1, 0)))[:, :-1]
    if rule == DIGITS_GPT2:
        return number | before
    if rule == DEEPSEEK3:
        at_P = jnp.arange(number.shape[1], dtype=jnp.int32)
        run = running_max(jnp.where(number & ~before, at_P, 0))
        kana = text.has(KANA)
        return (number & ((at_P - run) % 3 == 0)) | (number != before) | (kana != jnp.pad(kana, ((0, 0), (1, 0)))[:, :-1])
    return jnp.zeros_like(number)


@dataclass(frozen=True)
class Scan:
    """Ends of runs within the piece that ends at stop [B, P]. All values are character indices; 0 means no match."""

    text: Text
    stop: jax.Array

    @property
    def at(self) -> jax.Array:
        """Character indices [P]."""
        return jnp.arange(self.stop.shape[1], dtype=jnp.int32)

    def run_end(self, inside: jax.Array) -> jax.Array:
        """The end of the run of `inside` that contains a character; the character itself if it is not inside."""
        return jnp.minimum(_first_at_or_after(~inside), self.stop)

    def ahead(self, x: jax.Array, by: int = 1) -> jax.Array:
        """x of the character `by` positions ahead; False or 0 outside the piece."""
        return jnp.where(self.at + by < self.stop, _next(x, by, 0), 0).astype(x.dtype)

    def some(self, inside: jax.Array, prefix: jax.Array | None = None) -> jax.Array:
        """`prefix?inside+`."""
        ends = self.run_end(inside)
        match = jnp.where(inside, ends, 0)
        if prefix is None:
            return match
        return jnp.where(prefix & self.ahead(inside), _next(ends, 1, 0), match)

    def further(self, ends: jax.Array, inside: jax.Array) -> jax.Array:
        """`…inside*` after matches that end at `ends`."""
        return jnp.where(ends > 0, self.looked_up(self.run_end(inside), ends), 0)

    def looked_up(self, values: jax.Array, index: jax.Array) -> jax.Array:
        """values at `index` if it lies in the piece, else the index itself."""
        at_index = jnp.take_along_axis(values, jnp.minimum(index, values.shape[1] - 1), axis=1)
        return jnp.where(index < self.stop, at_index, index)

    def contraction(self, any_case: bool) -> jax.Array:
        """The length of 's, 't, 'm, 'd, 're, 've or 'll at a character, else 0."""
        codes = jnp.where(self.text.valid, self.text.codes, 0)
        if any_case:
            codes = jnp.where(codes == 0x17F, ord("s"), codes)  # the long s is an s to case-insensitive expressions
            codes = jnp.where((codes >= ord("A")) & (codes <= ord("Z")), codes + 32, codes)
        next_code, second_code = self.ahead(codes, 1), self.ahead(codes, 2)

        def is_any(x: jax.Array, letters: str) -> jax.Array:
            return jnp.isin(x, jnp.array([ord(c) for c in letters]))

        double_l = (next_code == ord("l")) & (second_code == ord("l"))
        is_long = double_l | (is_any(next_code, "rv") & (second_code == ord("e")))
        length = jnp.where(is_any(next_code, "stmd"), 2, jnp.where(is_long, 3, 0))
        return jnp.where(codes == ord("'"), length, 0)

    def spaces(self, newlines: bool) -> jax.Array:
        """`\\s*[\\r\\n]+` (with `newlines`), `\\s+(?!\\S)`, `\\s+`."""
        space = self.text.has(SPACE)
        end = self.run_end(space)
        match = jnp.where((end == self.stop) | (end == self.at + 1), end, end - 1)
        if newlines:
            last = running_max(jnp.where(self.text.has(NEWLINE), self.at, -1))
            last = jnp.take_along_axis(last, jnp.maximum(end - 1, 0), axis=1)
            match = jnp.where(last >= self.at, last + 1, match)
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
    short = scan.contraction(any_case=False)
    kinds = (text.has(LETTER), text.has(NUMBER), text.lacks(SPACE | LETTER | NUMBER))
    runs = [scan.some(kind, blank) for kind in kinds]
    return _first_of(jnp.where(short > 0, scan.at + short, 0), *runs, scan.spaces(newlines=False))


def words(scan: Scan, rule: str) -> jax.Array:
    """Llama-3 (up to three digits per pre-token) and Qwen (one digit). Returns ends as `gpt2` does."""
    text = scan.text
    short = scan.contraction(any_case=True)
    letters = scan.some(text.has(LETTER), text.lacks(NEWLINE | LETTER | NUMBER))
    digits = scan.some(text.has(NUMBER))
    digits = jnp.where(digits > 0, jnp.minimum(digits, scan.at + (1 if rule == QWEN2 else 3)), 0)
    others = scan.further(scan.some(text.lacks(SPACE | LETTER | NUMBER), text.codes == 0x20), text.has(NEWLINE))
    return _first_of(jnp.where(short > 0, scan.at + short, 0), letters, digits, others, scan.spaces(newlines=True))


def o200k(scan: Scan, rule: str) -> jax.Array:
    """GPT-OSS. Returns ends as `gpt2` does."""
    text, at = scan.text, scan.at
    upper, lower = text.has(UPPER), text.has(LOWER)
    upper_end = scan.run_end(upper)
    # `upper*lower+`: the longest run of upper that leaves at least one lower; a character may be both
    lower_run = scan.run_end(lower)
    continued = scan.looked_up(jnp.where(lower, lower_run, 0), upper_end)
    continued = jnp.where(upper_end < scan.stop, continued, 0)
    last_lower = running_max(jnp.where(lower, at, -1))
    last_lower = jnp.take_along_axis(last_lower, jnp.maximum(upper_end - 1, 0), axis=1)
    shorter = jnp.where((last_lower >= at) & upper, last_lower + 1, 0)
    mixed = jnp.where(continued > 0, continued, shorter)
    capitals = jnp.where(upper, upper_end, 0)

    prefix = text.lacks(NEWLINE | LETTER | NUMBER)

    def prefixed(match: jax.Array) -> jax.Array:
        return jnp.where(prefix, scan.ahead(match), 0)

    word = _first_of(prefixed(mixed), mixed, prefixed(capitals), capitals)
    short = scan.contraction(any_case=True)
    short = jnp.where(word < scan.stop, jnp.take_along_axis(short, jnp.minimum(word, short.shape[1] - 1), axis=1), 0)
    word = jnp.where(word > 0, word + short, 0)
    digits = scan.some(text.has(NUMBER))
    digits = jnp.where(digits > 0, jnp.minimum(digits, at + 3), 0)
    tail = text.has(NEWLINE) | ((text.codes == ord("/")) & text.valid)
    others = scan.further(scan.some(text.lacks(SPACE | LETTER | NUMBER), text.codes == 0x20), tail)
    return _first_of(word, digits, others, scan.spaces(newlines=True))


def deepseek3(scan: Scan, rule: str) -> jax.Array:
    """DeepSeek-V3. Returns ends as `gpt2` does."""
    text = scan.text
    latin = text.between("A", "Z") | text.between("a", "z")
    mark = text.has(SYMBOL) & text.between("!", "~")
    letter = text.has(LETTER | MARK)
    tagged = jnp.where(mark & scan.ahead(latin), _next(scan.run_end(latin), 1, 0), 0)
    letters = scan.some(letter, text.lacks(NEWLINE | LETTER | SYMBOL))
    others = scan.further(scan.some(text.has(SYMBOL), text.codes == 0x20), text.has(NEWLINE))
    return _first_of(tagged, letters, others, scan.spaces(newlines=True))
