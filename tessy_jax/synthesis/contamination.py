"""Decontamination: finds prompts that also occur in evaluations. Training on them would invalidate the results.

Texts are compared word by word after NFKC normalization, without case, punctuation and layout. Mathematical operators
(`+`, `=`, …) and single Chinese and Japanese characters are words. Only the user's messages of a conversation count.
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
"""Words per shingle."""
PERMUTATIONS = 128
"""Permutations of a MinHash."""
SEED = 1
WEIGHTS = (0.1, 0.9)
"""Costs of false positives and false negatives of the LSH index; candidates are compared exactly afterwards."""
CHARACTERS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
WORD = re.compile(rf"[{CHARACTERS}]|[^\W_{CHARACTERS}]+|[-+*/=<>^%|×÷±≤≥≠∑∫√]")
LAYOUT = re.compile(
    r"^[ \t]*[-*+][ \t]+|([-+*/=<>^%|])\1+|(?<!\w)\*(?=\w)|(?<=\w)\*(?!\w)|(?<=[^\W\d_])-(?=[^\W\d_])", re.MULTILINE
)
"""Layout: a bullet, a repeated mark (`**`, `---`), an emphasis star, a hyphen."""


class Question(NamedTuple):
    """A prompt of an evaluation. name: its name in failures."""

    name: str
    messages: Sequence[Mapping[str, str]]


class Match(NamedTuple):
    """A match of a text with an evaluation prompt. name: the name of the prompt. kind: the kind of match, in words."""

    name: str
    kind: str


def words_of(text: str) -> list[str]:
    """The words of a text, for comparison."""
    text = unicodedata.normalize("NFKC", text).casefold().replace("−", "-")
    return WORD.findall(LAYOUT.sub(" ", text))


def asked(messages: Iterable[Mapping[str, str]]) -> str:
    """The text of the user's messages."""
    return "\n\n".join(message["content"] for message in messages if message["role"] == "user")


def questions(config: Decontamination) -> list[Question]:
    """The prompts in `against`.

    Raises:
        DataError: a source cannot be read, or holds a row that is not a prompt; names file and line.
    """
    result = []
    for source in config.against:
        prompts = read(source.path, source.split, subset=source.subset, prompt=source.prompt).prompts
        result += [Question(f"{source.path}: {prompt.id}", prompt.messages) for prompt in prompts]
    return result


class Index:
    """An index of evaluation prompts. Matches do not depend on the order of prompts or queries."""

    def __init__(self, config: Decontamination, evaluation_prompts: Iterable[Question]) -> None:
        self._config = config
        names: dict[tuple[str, ...], str] = {}  # the first name among equal texts
        for question in evaluation_prompts:
            words = tuple(words_of(asked(question.messages)))
            if words:
                names[words] = min(question.name, names.get(words, question.name))
        texts = sorted((name, words) for words, name in names.items())
        self._names = [name for name, _ in texts]
        self._words = [words for _, words in texts]
        self._by_words = {words: number for number, words in enumerate(self._words)}
        self._hashes: dict[str, int] = {}
        self._grams, self._first = self._indexed()
        threshold = config.near_duplicates
        self._near_duplicates = None if threshold is None else _NearDuplicates(self._words, threshold)

    def like(self, text: str) -> Match | None:
        """The evaluation prompt that a text matches: an equal text, one that shares consecutive words, or the nearest
        duplicate; None without a match."""
        words = words_of(text)
        if not words:
            return None
        number = self._by_words.get(tuple(words))
        if number is not None:
            return Match(self._names[number], "is the same text")
        return self._shared_ngram(words) or self._nearest(words)

    def _shared_ngram(self, words: list[str]) -> Match | None:
        size = self._config.ngram
        if size is None or len(words) < size or not self._grams.size:
            return None
        grams = _grams([self._hashes.get(word, 0) for word in words], size)
        places = np.minimum(np.searchsorted(self._grams, grams), self._grams.size - 1)
        shared = np.flatnonzero(self._grams[places] == grams)
        if not shared.size:
            return None
        number, start = min((int(self._first[places[i]]), int(i)) for i in shared)
        return Match(self._names[number], f"shares {size} words in a row: {' '.join(words[start : start + size])}")

    def _nearest(self, words: list[str]) -> Match | None:
        nearest = None if self._near_duplicates is None else self._near_duplicates.nearest(words)
        return nearest and Match(self._names[nearest[1]], f"is a near duplicate (Jaccard similarity {nearest[0]:.2f})")

    def _indexed(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """The sorted hashes of consecutive words and the first text with each, without common n-grams."""
        size = self._config.ngram
        parts, owners = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
        for number, words in enumerate(self._words if size is not None else ()):
            assert size is not None
            if len(words) >= size:
                grams = np.unique(_grams([self._hashes.setdefault(word, _hash(word)) for word in words], size))
                parts.append(grams)
                owners.append(np.full(len(grams), number))
        grams, firsts, counts = np.unique(np.concatenate(parts), return_index=True, return_counts=True)
        rare = counts <= self._config.common
        return grams[rare], np.concatenate(owners)[firsts[rare]]


class _NearDuplicates:
    """An index of near duplicates by shingles (MinHash and LSH; candidates are compared exactly)."""

    def __init__(self, texts: Sequence[Sequence[str]], threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped, unused-ignore] # slow: imports scipy

        self._threshold = threshold
        self._empty = MinHash(PERMUTATIONS, SEED)
        self._shingles = [shingles(words) for words in texts]
        self._index = MinHashLSH(threshold, PERMUTATIONS, WEIGHTS)
        for number, text_shingles in enumerate(self._shingles):
            self._index.insert(number, self._sketch(text_shingles))

    def nearest(self, words: list[str]) -> tuple[float, int] | None:
        """The highest Jaccard similarity, if it reaches the threshold, and the first text with it."""
        query = shingles(words)
        numbers = self._index.query(self._sketch(query))
        best = max(((jaccard(query, self._shingles[number]), -number) for number in numbers), default=(0.0, 0))
        return (best[0], -best[1]) if best[0] >= self._threshold else None

    def _sketch(self, text_shingles: frozenset[str]) -> object:
        sketch = self._empty.copy()
        sketch.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in text_shingles])
        return sketch


def shingles(words: Sequence[str]) -> frozenset[str]:
    """All runs of `SHINGLE` consecutive words; a shorter text is one shingle."""
    return frozenset(" ".join(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """The Jaccard similarity of two sets: intersection over union."""
    return len(a & b) / len(a | b)


def contaminated(data: Data, prompts: Sequence[Prompt], job_questions: Iterable[Question]) -> dict[str, str]:
    """The prompts that match evaluation prompts: by prompt id, a description of the match.

    job_questions: the prompts of the job's own evaluation.

    Raises:
        DataError: there are no evaluation prompts, or all prompts match; or see `questions`.
    """
    config = data.decontaminate
    if config is None:
        return {}
    evaluation_prompts = [*questions(config), *(job_questions if config.evaluation else ())]
    if not evaluation_prompts:
        raise DataError(
            "data.decontaminate has nothing to compare with: against is empty, and this job has no evaluation; name "
            "prompts of evaluations in against, or set data.decontaminate to null"
        )
    index, matches = Index(config, evaluation_prompts), {}
    for prompt in {prompt.id: prompt for prompt in prompts}.values():
        match = index.like(asked(prompt.messages))
        if match is not None:
            matches[prompt.id] = f"{match.name}: {match.kind}"
    if all(prompt.id in matches for prompt in prompts):
        name, description = next(iter(matches.items()))
        raise DataError(
            f"{data.path}: all prompts match prompts of evaluations, such as {name!r} ({description}); give other prompts, "
            "or change data.decontaminate"
        )
    return matches


def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest())


def _grams(hashes: Sequence[int], size: int) -> NDArray[np.uint64]:
    """A hash of every `size` consecutive words: the sum of odd multiples of their hashes, modulo 2^64. Words that occur in
    no evaluation have the hash 0."""
    rows = np.lib.stride_tricks.sliding_window_view(np.array(hashes, np.uint64), size)
    return (rows * _factors(size)).sum(axis=1, dtype=np.uint64)


@cache
def _factors(size: int) -> NDArray[np.uint64]:
    return np.random.default_rng(SEED).integers(0, 1 << 63, size, np.uint64) * np.uint64(2) + np.uint64(1)
