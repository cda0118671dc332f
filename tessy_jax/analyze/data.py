"""Reads data sets in one pass: counts over all responses, and the first responses in full."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tessy_jax.analyze.sources import Source
from tessy_jax.records import Row

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
WRITERS = ("student", "teacher")
USES = ("kept", "discarded", "failed")
DIGITS = 4

AnswerCheck = Callable[[Row], bool]
"""Returns whether a response is right."""


@dataclass
class DataSet:
    """The counts of one data set.

    lengths: of each response, in tokens of the writers' vocabularies and in words. tokens: kept tokens by writer. uses:
    generated tokens by use. first: the first responses in prompt order. right: (right responses, responses) by prompt, if
    the responses were verified.
    """

    source: Source
    responses: int = 0
    failures: int = 0
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"tokens": [], "words": []})
    tokens: Counter[str] = field(default_factory=Counter)
    uses: Counter[str] = field(default_factory=Counter)
    first: Sequence[Row] = ()
    right: dict[str, tuple[int, int]] = field(default_factory=dict)


def read(source: Source, first: int, check: AnswerCheck | None) -> DataSet:
    """Reads a finished data set. first: the number of responses kept in full, at least one. check: None skips verification.

    Raises:
        DataError: the data set cannot be read, or a response cannot be verified.
    """
    assert source.data is not None
    found = DataSet(source)
    found.first = heapq.nsmallest(first, _counted(source.data.rows(), found, check), key=lambda row: row.place)
    found.failures = sum(1 for _ in source.data.failures())
    summary = source.data.summary() or {}
    for use in ("discarded", "failed", "generated"):
        found.uses[use] = sum((summary.get(f"{use}_tokens") or {}).values())
    found.uses["kept"] = found.uses.pop("generated") - found.uses["discarded"] - found.uses["failed"]
    return found


def _counted(rows: Iterable[Row], found: DataSet, check: AnswerCheck | None) -> Iterator[Row]:
    for row in rows:
        found.responses += 1
        tokens = {name: int(row.meta.get(f"tokens_{name}") or 0) for name in WRITERS}
        found.tokens.update(tokens)
        found.lengths["tokens"].append(sum(tokens.values()))
        written = (" " if span.source == "template" else row.content[span.start : span.end] for span in row.spans)
        found.lengths["words"].append(len("".join(written).split()))
        if check is not None:
            right, samples = found.right.get(row.prompt_id, (0, 0))
            found.right[row.prompt_id] = right + check(row), samples + 1
        yield row


def lengths(sets: Mapping[str, Sequence[DataSet]]) -> dict[str, Any]:
    """Returns quantiles and means of the response lengths by variant, in tokens and in words (Fig. 12)."""
    found: dict[str, Any] = {"quantiles": list(QUANTILES), "tokens": {}, "words": {}}
    for name, own in sets.items():
        for unit in ("tokens", "words"):
            values = [length for one in own for length in one.lengths[unit]]
            found[unit][name] = {
                "mean": round(float(np.mean(values)), DIGITS),
                "quantiles": [round(float(value), DIGITS) for value in np.quantile(values, QUANTILES)],
            }
    return found


def shares(sets: Mapping[str, Sequence[DataSet]]) -> dict[str, Any]:
    """Returns the kept tokens by writer (Fig. 17) and the generated tokens by use, by variant."""
    writers = {name: sum((one.tokens for one in own), Counter[str]()) for name, own in sets.items()}
    uses = {name: sum((one.uses for one in own), Counter[str]()) for name, own in sets.items()}
    return {
        "kept": {name: {writer: own[writer] for writer in WRITERS} for name, own in writers.items()},
        "generated": {name: {use: own[use] for use in USES} for name, own in uses.items()},
    }
