"""The data behind the run page: counts whose size does not grow with the run, and a few examples."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tessy_jax.records import Row, Source

POINTS = 240
"""Maximum number of points of a curve; with more steps, each point is the mean over several."""

Kind = Literal["gained", "lost", "right", "wrong"]
"""Change of a verdict: wrong then right, right then wrong, right both times, wrong both times."""
Score = tuple[int, int, float]
"""(start, end, log-probability) of a token at the code points start…end−1 of a response."""


@dataclass
class Tally:
    """Counts over responses. tokens: by model, in its own vocabulary. characters: code points of thinking and answers, by
    source. lengths: by source, the number of thinking spans per length in code points. answers: code points of the
    answers."""

    responses: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    characters: Counter[Source] = field(default_factory=Counter)
    lengths: defaultdict[Source, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    answers: int = 0

    def add(self, row: Row) -> None:
        """Adds a response to the counts."""
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
    """An evaluation. name: such as "before" or "after round 1". summary: the result of `evaluate`."""

    name: str
    summary: Mapping[str, Any]


class Response(NamedTuple):
    """An example response. scores: by scoring model; empty if the response was not scored."""

    row: Row
    scores: Mapping[str, Sequence[Score]]


class Answer(NamedTuple):
    """The answer of one evaluation with its verdict. evaluation: its name. reason: of the verdict. extracted: the answer
    that the verifier compared. row: None if the response failed or is missing."""

    evaluation: str
    right: bool
    reason: str
    extracted: str | None
    row: Row | None


class Compared(NamedTuple):
    """The responses of all evaluations to one problem, in chronological order. domain: "in" or "out"."""

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
    """A training stage. metrics: by step or group of steps, see `reduced`. evaluations: (step, loss) on the evaluation file.
    steps_per_point: steps averaged in one point. rate, mfu: medians over steps of the tokens per second and of the model
    FLOP utilization."""

    summary: Mapping[str, Any]
    metrics: Sequence[Mapping[str, float | None]]
    evaluations: Sequence[tuple[int, float]]
    steps_per_point: int
    rate: float | None
    mfu: float | None


@dataclass(frozen=True)
class Round:
    """The finished stages of a round. synthesis: its summary. failures: counts by reason. accuracy: (step, pass@1) by
    domain, from step 0 to the end of the training; empty if the student was not evaluated after epochs."""

    number: int
    synthesis: Mapping[str, Any] | None = None
    tally: Tally | None = None
    failures: Mapping[str, int] = field(default_factory=dict)
    responses: Sequence[Response] = ()
    training: Training | None = None
    accuracy: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The display name of the round."""
        return f"round {self.number}"


@dataclass(frozen=True)
class RunView:
    """The data of a run. config, summary: of its folder; empty if missing. changes: by domain, the number of responses per
    kind of change from the first to the last evaluation. compared: a sample of them. predictors: metrics of the predictors
    that the run has trained, by speaker. plan: the saved result of `tessy plan`; empty if missing."""

    config: Mapping[str, Any]
    summary: Mapping[str, Any]
    evaluations: Sequence[Evaluation] = ()
    rounds: Sequence[Round] = ()
    changes: Mapping[str, Mapping[Kind, int]] = field(default_factory=dict)
    compared: Sequence[Compared] = ()
    predictors: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)


def kind_of(before: bool, after: bool) -> Kind:
    """Returns the change between two verdicts."""
    if before:
        return "right" if after else "lost"
    return "gained" if after else "wrong"


def reduced(
    lines: Iterable[Mapping[str, Any]], names: Sequence[str], count: int
) -> tuple[int, list[dict[str, float | None]]]:
    """Reduces the metrics of `count` steps to at most POINTS points. Returns the number of steps per point and the points.

    Each point is the mean over the steps that have the metric, placed at the last step of its group.
    """
    steps_per_point = max(1, -(-count // POINTS))
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
        if len(group) == steps_per_point:
            close()
    if group:
        close()
    return steps_per_point, points
