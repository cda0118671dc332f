"""What the page of a run shows, as plain data: counts that do not grow with the run, and a few examples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tessy_jax.records import Row, Source

POINTS = 240
"""Points of a curve at most; where there are more steps, each is the mean over several."""

Kind = Literal["gained", "lost", "right", "wrong"]
"""What became of a response's verdict: wrong and then right, right and then wrong, right both times, wrong both times."""
Score = tuple[int, int, float]
"""Code points start…end−1 of a response, and the log-probability of the token that stands there."""


@dataclass
class Tally:
    """Counts over responses. tokens: each model's own. characters: code points by who wrote them, of thinking and answers.
    lengths: per writer, how many spans of the thinking have how many characters. answers: characters of the answers."""

    responses: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    characters: Counter[Source] = field(default_factory=Counter)
    lengths: defaultdict[Source, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    answers: int = 0

    def add(self, row: Row) -> None:
        """Counts a response."""
        self.responses += 1
        for name in ("student", "teacher"):
            self.tokens[name] += int(row.meta.get(f"tokens_{name}") or 0)
        for span in row.spans:
            length = span.end - span.start
            self.characters[span.source] += length
            if span.phase == "answer":
                self.answers += length
            elif span.source != "template":
                self.lengths[span.source][length] += 1


class Evaluation(NamedTuple):
    """name: when it was, such as "before" or "after round 1". summary: what `evaluate` found."""

    name: str
    summary: Mapping[str, Any]


class Response(NamedTuple):
    """A response to look at. scores: by the model whose they are; none where there are none."""

    row: Row
    scores: Mapping[str, Sequence[Score]]


class Answer(NamedTuple):
    """What a model answered, and the verdict. evaluation: its name. why: a word. said: what was compared. row: None where
    the response came to nothing, or is not there."""

    evaluation: str
    right: bool
    why: str
    said: str | None
    row: Row | None


class Compared(NamedTuple):
    """Responses to one problem, of one evaluation after the other. domain: in or out."""

    id: str
    task: str
    family: str | None
    domain: str
    kind: Kind
    prompt: Sequence[Mapping[str, str]]
    reference: str
    answers: Sequence[Answer]


@dataclass(frozen=True)
class Training:
    """A training. metrics: of its steps, or of groups of steps, see `reduced`. losses of the evaluation file: (step, loss).
    together: so many steps are one point. rate, mfu: medians over steps of tokens per second, and of the share of the
    devices' peak."""

    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float | None]]
    evaluations: Sequence[tuple[int, float]]
    together: int
    rate: float | None
    mfu: float | None


@dataclass(frozen=True)
class Round:
    """A round, as far as it has come. synthesis: its summary. failures: by reason. accuracy: by domain, pass@1 over the
    steps of the training from its beginning on; none where the student was not evaluated after epochs."""

    number: int
    synthesis: Mapping[str, Any] | None = None
    tally: Tally | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    responses: Sequence[Response] = ()
    training: Training | None = None
    accuracy: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the page calls it."""
        return f"round {self.number}"


@dataclass(frozen=True)
class RunView:
    """All of a run. config, summary: of its folder, as far as they are there. changes: per domain, how many responses of the
    last evaluation are of which kind, compared with the first. compared: some of them. predictors: measures of those that
    the run has made, by speaker."""

    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    evaluations: Sequence[Evaluation] = ()
    rounds: Sequence[Round] = ()
    changes: Mapping[str, Mapping[Kind, int]] = field(default_factory=dict)
    compared: Sequence[Compared] = ()
    predictors: Mapping[str, Any] = field(default_factory=dict)


def kind_of(before: bool, after: bool) -> Kind:
    """What became of a verdict."""
    if before:
        return "right" if after else "lost"
    return "gained" if after else "wrong"


def reduced(
    lines: Iterable[Mapping[str, Any]], names: Sequence[str], count: int
) -> tuple[int, list[dict[str, float | None]]]:
    """Metrics of `count` steps as at most POINTS points, and how many steps are one: the mean of those that have the metric,
    at the last of them."""
    together = max(1, -(-count // POINTS))
    points: list[dict[str, float | None]] = []
    group: list[Mapping[str, Any]] = []

    def close() -> None:
        point: dict[str, float | None] = {"step": group[-1]["step"]}
        for name in names:
            values = [line[name] for line in group if line.get(name) is not None]
            point[name] = sum(values) / len(values) if values else None
        points.append(point)
        group.clear()

    for line in lines:
        group.append(line)
        if len(group) == together:
            close()
    if group:
        close()
    return together, points
