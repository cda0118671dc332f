"""Mean negative log-likelihood per token of the data under the untouched student, by writer and phase.

The student learns little from tokens that it already finds probable. Tokens that are improbable only in style shift its
distribution (Section 2 of the paper: capability and style tokens of the loss, Eq. 2).
"""

from __future__ import annotations

import datetime
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tessy_jax.analyze.data import DataSet
from tessy_jax.config import Model
from tessy_jax.config.analysis import Likelihood
from tessy_jax.models import hf
from tessy_jax.records import PHASES, Row
from tessy_jax.sharding import Partitioner
from tessy_jax.synthesis.model_set import writer_spec
from tessy_jax.synthesis.scores import Score, Scorer, score

KINDS = tuple((source, phase) for phase in PHASES for source in ("student", "teacher"))
DIGITS = 5

Sums = defaultdict[tuple[str, str], list[float]]
"""By source and phase: the sum of log-probabilities, and the number of tokens."""


def likelihoods(sets: Mapping[str, Sequence[DataSet]], settings: Likelihood, mesh: Mapping[str, int]) -> dict[str, Any]:
    """Returns, by variant, the mean over all tokens of its responses and over those of each writer in each phase.

    Each student is loaded once and scores all data sets written for it. Data sets without a student are left out.

    Raises:
        ConfigError, TokenizerError, CheckpointError: a student cannot be loaded.
    """
    partitioner = Partitioner.of(mesh)
    sums: dict[str, Sums] = {name: defaultdict(lambda: [0.0, 0]) for name in sets}
    readers: defaultdict[str, list[tuple[str, Model, DataSet]]] = defaultdict(list)
    for name, own in sets.items():
        for data_set in own:
            if data_set.source.student is not None:
                readers[_weights(data_set.source.student)].append((name, data_set.source.student, data_set))
    for group in readers.values():
        _, student, _ = group[0]
        model = hf.load(hf.resolve(student.model, revision=student.revision), dtype=student.dtype, partitioner=partitioner)
        jobs = {name: sum(name == other for other, _, _ in group) for name, _, _ in group}
        for name, section, data_set in group:
            day = datetime.date.fromisoformat(data_set.source.date or datetime.date.today().isoformat())
            chat = writer_spec("student", section, day).chat
            rows = data_set.first[: share(settings.responses, jobs[name])]
            texts = {"open_text": chat.open_text, "close_text": chat.close_text}
            lines = score(rows, {"student": Scorer(model, chat)}, **texts, limit=settings.tokens)
            add(sums[name], rows, (line["student"] for line in lines))
    return {
        name: {"all": _mean(list(own.values()))}
        | {phase: {s: _mean([own[s, p]] if (s, p) in own else []) for s, p in KINDS if p == phase} for phase in PHASES}
        for name, own in sums.items()
        if own
    }


def share(count: int, jobs: int) -> int:
    """Returns the responses per job so that `jobs` jobs have at least `count` responses."""
    return -(-count // jobs)


def add(sums: Sums, rows: Iterable[Row], scores: Iterable[Sequence[Score]]) -> None:
    """Adds the log-probabilities of rows to the sums; a token belongs to the span in which it starts."""
    for row, spans in zip(rows, scores, strict=True):
        starts = [span.start for span in row.spans]
        for start, _, value in spans:
            span = row.spans[bisect_right(starts, start) - 1]
            total = sums[span.source, span.phase]
            total[0] += value
            total[1] += 1


def _mean(sums: Sequence[Sequence[float]]) -> dict[str, Any] | None:
    """Returns the negative log-likelihood per token in nats and the number of tokens; None without tokens."""
    if not sums:
        return None
    total, tokens = (sum(values) for values in zip(*sums, strict=True))
    return {"nll": round(-total / tokens, DIGITS) + 0.0, "tokens": int(tokens)}


def _weights(student: Model) -> str:
    """Returns the key of the weights to load."""
    return f"{student.model}\0{student.revision}\0{student.dtype}"
