"""The tasks of the miniature: a prompt, the steps that solve it, and the answer, as words separated by single spaces.

| family | prompt | step | answer |
|---|---|---|---|
| A, Ae, Ah: sums modulo 19, left to right | `A 7 + 3 * 8 - 2` | `7 + 3 = 10 now ;`, the last `we get 4 - 2 = 2 ;` | `2` |
| B: letters reversed | `B a c d` | `at 1 we put d ;` | `d c a` |
| C: count of a letter | `C b : a b b` | `b yes so 1 ;` | `2` |
| D: the largest number | `D 3 12 7` | `7 then best 12 ;` | `12` |

Multipliers from 6 to 9 do not occur in Ae; about half of the steps of Ah, and at least one, have such a multiplier; A has no
restriction. Some words of the steps ("now", "we", "so", "then", the letter a, the digit 1) are also words of the styles (see
`styles`): the context decides which speaker should write a word.

A hash of its prompt decides the split of an item, so that no prompt is in two splits, for any families and seeds. Data are
free of the test set if `split_of` confirms it for every prompt.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, count
from random import Random
from typing import Literal, get_args

from tessy_jax.errors import ConfigError, DataError

Family = Literal["A", "Ae", "Ah", "B", "C", "D"]
Split = Literal["train", "validation", "test"]
Solved = tuple[str, tuple[str, ...], str]
"""Prompt, steps and answer."""

FAMILIES: tuple[Family, ...] = get_args(Family)
SPLITS: tuple[Split, ...] = get_args(Split)
MODULUS = 19
OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda x, d: (x + d) % MODULUS,
    "-": lambda x, d: (x - d) % MODULUS,
    "*": lambda x, d: (x * d) % MODULUS,
}
HARD = range(6, 10)
"""The multipliers that do not occur in Ae."""
LETTERS = "abcdefghijklmnop"

_NUMBER, _LETTER = "[0-9]+", f"[{LETTERS}]"
_SUM = rf"{_NUMBER} [-+*] {_NUMBER} = {_NUMBER}"
STEP = re.compile(
    rf"{_SUM} now ;|we get {_SUM} ;|at {_NUMBER} we put {_LETTER} ;"
    rf"|{_LETTER} (?:yes|no) so {_NUMBER} ;|{_NUMBER} then best {_NUMBER} ;"
)
"""A step of any family, right or wrong."""
ANSWER = re.compile(rf"{_NUMBER}|{_LETTER}(?: {_LETTER})*")
"""An answer of any family, right or wrong."""
_ID = re.compile(rf"({'|'.join(FAMILIES)})-({'|'.join(SPLITS)})-(0|-?[1-9][0-9]{{0,17}})-(0|[1-9][0-9]{{0,17}})")
_REPEATS = 10_000  # after this many consecutive repeated prompts, a family counts as exhausted


@dataclass(frozen=True, slots=True)
class Item:
    """One task. id: determines the item, see `item_of`. steps: the steps of the solution, in order."""

    id: str
    family: Family
    prompt: str
    steps: tuple[str, ...]
    answer: str


def stream(*key: str | int) -> Random:
    """Random numbers that depend only on the key, on every machine."""
    return Random(int.from_bytes(_hash(*key)))


def split_of(prompt: str) -> Split:
    """The split of a prompt: 70 % train, 10 % validation, 20 % test."""
    number = int.from_bytes(_hash(prompt)) % 10
    return "test" if number < 2 else "validation" if number < 3 else "train"


def item(family: Family, split: Split, seed: int, index: int) -> Item:
    """The item with an index, from 0, of a family and split. Small families repeat some prompts; see `items`."""
    candidates = (_MAKERS[family](stream(family, split, seed, index, attempt)) for attempt in count())
    prompt, steps, answer = next(solved for solved in candidates if split_of(solved[0]) == split)
    return Item(f"{family}-{split}-{seed}-{index}", family, prompt, steps, answer)


def items(family: Family, split: Split, seed: int) -> Iterator[Item]:
    """Items of a family and split with distinct prompts, in the order of their indices.

    Raises:
        ConfigError: the family has hardly any further prompts; the message gives the number of prompts so far.
    """
    seen: set[str] = set()
    repeats = 0
    for index in count():
        candidate = item(family, split, seed, index)
        if candidate.prompt in seen:
            repeats += 1
            if repeats == _REPEATS:
                raise ConfigError(f"family {family}, {split}: hardly has more than {len(seen)} prompts; ask for fewer")
            continue
        repeats = 0
        seen.add(candidate.prompt)
        yield candidate


def item_of(id: str) -> Item:
    """The item with an id.

    Raises:
        DataError: it is not the id of an item.
    """
    match = _ID.fullmatch(id)
    if match is None:
        raise DataError(f"{id!r} is not an id of a miniature task; write it like Ah-test-0-12: family, split, seed, index")
    families: dict[str, Family] = {family: family for family in FAMILIES}
    splits: dict[str, Split] = {split: split for split in SPLITS}
    return item(families[match[1]], splits[match[2]], int(match[3]), int(match[4]))


def _hash(*key: str | int) -> bytes:
    return hashlib.sha256("\0".join(map(str, key)).encode("utf-8", "surrogatepass")).digest()[:8]


def _any_operation(rng: Random) -> tuple[str, int]:
    return rng.choice(list(OPERATORS)), rng.randint(2, 9)


def _easy_operation(rng: Random) -> tuple[str, int]:
    operator = rng.choice(list(OPERATORS))
    return operator, rng.randint(2, HARD.start - 1 if operator == "*" else 9)


def _hard_operation(rng: Random) -> tuple[str, int]:
    return "*", rng.choice(HARD)


def _mixed(rng: Random) -> Solved:
    return _arithmetic(rng, [_any_operation(rng) for _ in range(rng.randint(2, 6))])


def _easy(rng: Random) -> Solved:
    return _arithmetic(rng, [_easy_operation(rng) for _ in range(rng.randint(2, 6))])


def _hard(rng: Random) -> Solved:
    operations = [_easy_operation(rng) for _ in range(rng.randint(2, 6))]
    places = range(len(operations))
    for place in [i for i in places if rng.random() < 0.5] or [rng.choice(places)]:
        operations[place] = _hard_operation(rng)
    return _arithmetic(rng, operations)


def _arithmetic(rng: Random, operations: list[tuple[str, int]]) -> Solved:
    value = rng.randrange(MODULUS)
    prompt = " ".join([f"A {value}", *(f"{operator} {d}" for operator, d in operations)])
    steps = []
    for operator, d in operations:
        before, value = value, OPERATORS[operator](value, d)
        steps.append(f"{before} {operator} {d} = {value}")
    return prompt, (*(f"{step} now ;" for step in steps[:-1]), f"we get {steps[-1]} ;"), str(value)


def _reverse(rng: Random) -> Solved:
    letters = [rng.choice(LETTERS) for _ in range(rng.randint(3, 6))]
    reversed_letters = letters[::-1]
    steps = tuple(f"at {i} we put {letter} ;" for i, letter in enumerate(reversed_letters, 1))
    return " ".join(["B", *letters]), steps, " ".join(reversed_letters)


def _count(rng: Random) -> Solved:
    key = rng.choice(LETTERS)
    letters = [key if rng.random() < 0.4 else rng.choice(LETTERS) for _ in range(rng.randint(3, 7))]
    counts = list(accumulate(int(letter == key) for letter in letters))
    steps = tuple(
        f"{letter} {'yes' if letter == key else 'no'} so {so_far} ;" for letter, so_far in zip(letters, counts, strict=True)
    )
    return " ".join([f"C {key} :", *letters]), steps, str(counts[-1])


def _largest(rng: Random) -> Solved:
    numbers = [rng.randrange(MODULUS) for _ in range(rng.randint(3, 6))]
    best = list(accumulate(numbers, max))
    steps = tuple(f"{number} then best {so_far} ;" for number, so_far in zip(numbers, best, strict=True))
    return " ".join(["D", *map(str, numbers)]), steps, str(best[-1])


_MAKERS: dict[Family, Callable[[Random], Solved]] = {
    "A": _mixed,
    "Ae": _easy,
    "Ah": _hard,
    "B": _reverse,
    "C": _count,
    "D": _largest,
}
