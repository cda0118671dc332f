"""The tasks of the miniature world: a prompt, the steps that solve it, and the answer, all as words between single spaces.

| family | prompt | step | answer |
|---|---|---|---|
| A, Ae, Ah: sums modulo 19, left to right | `A 7 + 3 * 8 - 2` | `7 + 3 = 10 now ;`, the last `we get 4 - 2 = 2 ;` | `2` |
| B: letters reversed | `B a c d` | `at 1 we put d ;` | `d c a` |
| C: how often a letter comes | `C b : a b b` | `b yes so 1 ;` | `2` |
| D: the largest number | `D 3 12 7` | `7 then best 12 ;` | `12` |

Ae has no multiplier from 6 to 9; in Ah about half of the steps multiply by one, and at least one does; A has whatever comes.
Some words of the steps ("now", "we", "so", "then", the letter a, the digit 1) are words of the styles, too (see `styles`):
who should write a word follows from where it stands, not from the word.

Which split an item belongs to is decided by a hash of its prompt, so that no prompt is ever in two splits, whatever the
families and seeds: data are clean of the test set if `split_of` says so of every prompt.
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
"""The multipliers that Ae lacks."""
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
_REPEATS = 10_000  # prompts in a row that have been seen already: there are hardly any others


@dataclass(frozen=True, slots=True)
class Item:
    """One task. id: says how to make it again, see `item_of`. steps: what has to be worked out, in order."""

    id: str
    family: Family
    prompt: str
    steps: tuple[str, ...]
    answer: str


def stream(*key: str | int) -> Random:
    """Random numbers that depend on the key alone, on every machine."""
    return Random(int.from_bytes(_hash(*key)))


def split_of(prompt: str) -> Split:
    """The split that a prompt belongs to: 70 % train, 10 % validation, 20 % test."""
    number = int.from_bytes(_hash(prompt)) % 10
    return "test" if number < 2 else "validation" if number < 3 else "train"


def item(family: Family, split: Split, seed: int, index: int) -> Item:
    """The index-th item, from 0, of a family and split. Small families come upon some prompts twice; see `items`."""
    made = (_MAKERS[family](stream(family, split, seed, index, attempt)) for attempt in count())
    prompt, steps, answer = next(solved for solved in made if split_of(solved[0]) == split)
    return Item(f"{family}-{split}-{seed}-{index}", family, prompt, steps, answer)


def items(family: Family, split: Split, seed: int) -> Iterator[Item]:
    """Items of a family and split with prompts that all differ, in the order of their indices.

    Raises:
        ConfigError: after so many that hardly any others are left; the message says how many.
    """
    seen: set[str] = set()
    repeats = 0
    for index in count():
        found = item(family, split, seed, index)
        if found.prompt in seen:
            repeats += 1
            if repeats == _REPEATS:
                raise ConfigError(f"family {family}, {split}: hardly has more than {len(seen)} prompts; ask for fewer")
            continue
        repeats = 0
        seen.add(found.prompt)
        yield found


def item_of(id: str) -> Item:
    """The item that has this id.

    Raises:
        DataError: it is no id of ours.
    """
    match = _ID.fullmatch(id)
    if match is None:
        raise DataError(f"{id!r} is no id of a miniature task; it should be like Ah-test-0-12: family, split, seed, index")
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
    turned = letters[::-1]
    steps = tuple(f"at {i} we put {letter} ;" for i, letter in enumerate(turned, 1))
    return " ".join(["B", *letters]), steps, " ".join(turned)


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
