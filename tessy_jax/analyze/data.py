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
    data_set = DataSet(source)
    data_set.first = heapq.nsmallest(first, _counted(source.data.rows(), data_set, check), key=lambda row: row.place)
    data_set.failures = sum(1 for _ in source.data.failures())
    summary = source.data.summary() or {}
    for use in ("discarded", "failed", "generated"):
        data_set.uses[use] = sum((summary.get(f"{use}_tokens") or {}).values())
    data_set.uses["kept"] = data_set.uses.pop("generated") - data_set.uses["discarded"] - data_set.uses["failed"]
    return data_set


def _counted(rows: Iterable[Row], data_set: DataSet, check: AnswerCheck | None) -> Iterator[Row]:
    for row in rows:
        data_set.responses += 1
        tokens = {name: int(row.meta.get(f"tokens_{name}") or 0) for name in WRITERS}
        data_set.tokens.update(tokens)
        data_set.lengths["tokens"].append(sum(tokens.values()))
        written = (" " if span.source == "template" else row.content[span.start : span.end] for span in row.spans)
        data_set.lengths["words"].append(len("".join(written).split()))
        if check is not None:
            right, samples = data_set.right.get(row.prompt_id, (0, 0))
            data_set.right[row.prompt_id] = right + check(row), samples + 1
        yield row


def lengths(sets: Mapping[str, Sequence[DataSet]]) -> dict[str, Any]:
    """Returns quantiles and means of the response lengths by variant, in tokens and in words (Fig. 12)."""
    result: dict[str, Any] = {"quantiles": list(QUANTILES), "tokens": {}, "words": {}}
    for name, own in sets.items():
        for unit in ("tokens", "words"):
            values = [length for data_set in own for length in data_set.lengths[unit]]
            result[unit][name] = {
                "mean": round(float(np.mean(values)), DIGITS),
                "quantiles": [round(float(value), DIGITS) for value in np.quantile(values, QUANTILES)],
            }
    return result


def shares(sets: Mapping[str, Sequence[DataSet]]) -> dict[str, Any]:
    """Returns the kept tokens by writer (Fig. 17) and the generated tokens by use, by variant."""
    writers = {name: sum((data_set.tokens for data_set in own), Counter[str]()) for name, own in sets.items()}
    uses = {name: sum((data_set.uses for data_set in own), Counter[str]()) for name, own in sets.items()}
    return {
        "kept": {name: {writer: own[writer] for writer in WRITERS} for name, own in writers.items()},
        "generated": {name: {use: own[use] for use in USES} for name, own in uses.items()},
    }
