"""Prompts that evaluations ask, too: what the student has been trained on says nothing when it is asked.

Texts are compared word by word: NFKC, without case, marks of punctuation or layout; what calculates (`+`, `=`, …) is a word,
and so is every character of Chinese and Japanese. What a conversation's user says counts, and nothing else of it.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tessy_jax.config import Data, Decontamination
from tessy_jax.errors import DataError
from tessy_jax.synthesis.prompts import Prompt, read

CONTAMINATED = "contaminated"
SHINGLE = 3
"""Words of a shingle."""
PERMUTATIONS = 128
"""Numbers of a MinHash."""
SEED = 1
WEIGHTS = (0.1, 0.9)
"""How much candidates that are no duplicates cost, and duplicates that are none of the candidates: the former are compared
exactly afterwards."""
CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{CHARACTERS}]|[^\W_{CHARACTERS}]+|[-+*/=<>^%|×÷±≤≥≠∑∫√]")
LAYOUT = re.compile(
    r"^[ \t]*[-*+][ \t]+|([-+*/=<>^%|])\1+|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|(?<=[^\W\d_])-(?=[^\W\d_])", re.MULTILINE
)
"""A bullet, a run of one mark (`**`, `---`), a star of emphasis, a hyphen."""


class Question(NamedTuple):
    """A prompt of an evaluation. name: what failures call it."""

    name: str
    messages: Sequence[Mapping[str, str]]


class Like(NamedTuple):
    """How much a text is like one of an evaluation; in words."""

    name: str
    how: str


def words_of(text: str) -> list[str]:
    """The words by which a text is compared."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    return WORD.findall(LAYOUT.sub(" ", text))


def asked(messages: Iterable[Mapping[str, str]]) -> str:
    """What the user says in a conversation."""
    return "\n\n".join(message["content"] for message in messages if message["role"] == "user")


def questions(config: Decontamination) -> list[Question]:
    """The prompts in `against`.

    Raises:
        DataError: one cannot be read, or holds a row that is no prompt; names file and line.
    """
    found = []
    for source in config.against:
        prompts = read(source.path, source.split, prompt=source.prompt).prompts
        found += [Question(f"{source.path}: {prompt.id}", prompt.messages) for prompt in prompts]
    return found


class Index:
    """Texts of evaluations. What it says of a text depends on neither their order nor that of the texts."""

    def __init__(self, config: Decontamination, given: Iterable[Question]) -> None:
        self._config = config
        names: dict[tuple[str, ...], str] = {}  # of texts that are equal, the first
        for question in given:
            words = tuple(words_of(asked(question.messages)))
            if words:
                names[words] = min(question.name, names.get(words, question.name))
        texts = sorted((name, words) for words, name in names.items())
        self._names = [name for name, _ in texts]
        self._words = [words for _, words in texts]
        self._whole = {words: number for number, words in enumerate(self._words)}
        self._known: dict[str, int] = {}
        self._grams, self._first = self._indexed()
        self._near = None if config.near_duplicates is None else _Near(self._words, config.near_duplicates)

    def like(self, text: str) -> Like | None:
        """The text of an evaluation that this one is too much like: that it is equal to, shares words in a row with, or is
        nearest to; None where there is none."""
        words = words_of(text)
        if not words:
            return None
        number = self._whole.get(tuple(words))
        if number is not None:
            return Like(self._names[number], "is the same text")
        return self._in_a_row(words) or self._nearest(words)

    def _in_a_row(self, words: list[str]) -> Like | None:
        size = self._config.ngram
        if size is None or len(words) < size or not self._grams.size:
            return None
        grams = _grams([self._known.get(word, 0) for word in words], size)
        places = np.minimum(np.searchsorted(self._grams, grams), self._grams.size - 1)
        shared = np.flatnonzero(self._grams[places] == grams)
        if not shared.size:
            return None
        number, start = min((int(self._first[places[i]]), int(i)) for i in shared)
        return Like(self._names[number], f"shares {size} words in a row: {' '.join(words[start : start + size])}")

    def _nearest(self, words: list[str]) -> Like | None:
        found = self._near.nearest(words) if self._near is not None else None
        return found and Like(self._names[found[1]], f"is a near duplicate (Jaccard similarity {found[0]:.2f})")

    def _indexed(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The hashes of words in a row, sorted, and the first text that has each; without those that are common."""
        size = self._config.ngram
        parts, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for number, words in enumerate(self._words if size is not None else ()):
            assert size is not None
            if len(words) >= size:
                grams = np.unique(_grams([self._known.setdefault(word, _hash(word)) for word in words], size))
                parts.append(grams)
                owners.append(np.full(len(grams), number))
        grams, firsts, counts = np.unique(np.concatenate(parts), return_index=True, return_counts=True)
        rare = counts <= self._config.common
        return grams[rare], np.concatenate(owners)[firsts[rare]]


class _Near:
    """Texts whose shingles are much like those of others (MinHash and LSH; candidates are compared exactly)."""

    def __init__(self, texts: Sequence[Sequence[str]], threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped, unused-ignore] # with scipy, it takes a while

        self._threshold = threshold
        self._empty = MinHash(PERMUTATIONS, SEED)
        self._shingles = [shingles(words) for words in texts]
        self._index = MinHashLSH(threshold, PERMUTATIONS, WEIGHTS)
        for number, own in enumerate(self._shingles):
            self._index.insert(number, self._hashed(own))

    def nearest(self, words: list[str]) -> tuple[float, int] | None:
        """The highest Jaccard similarity that is enough, and the first text that has it."""
        own = shingles(words)
        near = [(jaccard(own, self._shingles[number]), -number) for number in self._index.query(self._hashed(own))]
        best = max(near, default=(0.0, 0))
        return (best[0], -best[1]) if best[0] >= self._threshold else None

    def _hashed(self, found: frozenset[str]) -> object:
        sketch = self._empty.copy()
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in found])
        return sketch


def shingles(words: Sequence[str]) -> frozenset[str]:
    """All that stands in a row of `SHINGLE` words; of a shorter text, all of it."""
    return frozenset(" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """The share that two sets have in common."""
    return len(a & b) / len(a | b)


def contaminated(data: Data, prompts: Sequence[Prompt], given: Iterable[Question]) -> dict[str, str]:
    """The prompts that are too much like those of evaluations, by id, and like which, and how. given: of the job's own.

    Raises:
        DataError: there is nothing to compare with, or no prompt is left; or see `questions`.
    """
    config = data.decontaminate
    if config is None:
        return {}
    others = [*questions(config), *(given if config.evaluation else ())]
    if not others:
        raise DataError(
            "data.decontaminate has nothing to compare with: against is empty, and there is no evaluation here; name "
            "prompts of evaluations in against, or set data.decontaminate to null"
        )
    index, found = Index(config, others), {}
    for prompt in {prompt.id: prompt for prompt in prompts}.values():
        like = index.like(asked(prompt.messages))
        if like is not None:
            found[prompt.id] = f"{like.name}: {like.how}"
    if all(prompt.id in found for prompt in prompts):
        name, how = next(iter(found.items()))
        raise DataError(
            f"{data.path}: all prompts are too much like those of evaluations, such as {name!r} ({how}); give others, or "
            "change data.decontaminate"
        )
    return found


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _grams(hashes: Sequence[int], size: int) -> NDArray[np.uint64]:
    """A hash for every `size` words in a row: odd multiples of their hashes, summed modulo 2^64. 0 stands for words that no
    evaluation has."""
    rows = np.lib.stride_tricks.sliding_window_view(np.array(hashes, np.uint64), size)
    return (rows * _factors(size)).sum(axis=1, dtype=np.uint64)


@cache
def _factors(size: int) -> NDArray[np.uint64]:
    return np.random.default_rng(SEED).integers(0, 1 << 63, size, np.uint64) * np.uint64(2) + np.uint64(1)
