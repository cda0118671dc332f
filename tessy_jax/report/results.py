"""A section of the run page: pass@1 before and after training, and whether the change exceeds the noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tessy_jax.report.page import Section, count, fragment, percent
from tessy_jax.report.view import Evaluation

DOMAINS = {"in": "in domain", "out": "out of domain"}
MANY = 8  # table rows from which the note warns of chance findings


class Change(NamedTuple):
    """A difference of two shares with its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def beyond(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class _Line:
    """A table row. level: 0 for domains, 1 for tasks, 2 for graders and families. measures: one per evaluation."""

    label: str
    level: int
    measures: Sequence[Mapping[str, Any] | None]


def results(evaluations: Sequence[Evaluation]) -> Section:
    """Returns the section; the first evaluation is the baseline of the others."""
    heading = "Results"
    if not evaluations:
        return Section(heading, "The student has not been evaluated.")
    lines = list(_lines(evaluations))
    confidence = evaluations[-1].summary["confidence"]
    names = [evaluation.name for evaluation in evaluations]
    table = fragment(
        "results.html",
        title="pass@1 and its confidence interval",
        columns=[(name, i > 0) for i, name in enumerate(names)],
        names=names,
        lines=[_shown(line) for line in lines],
        note=_note(confidence, len(lines), len(evaluations) > 1),
    )
    return Section(heading, _words(evaluations, lines), [table])


def as_text(evaluations: Sequence[Evaluation]) -> str:
    """Returns the table and its summary sentences as text for a terminal."""
    if not evaluations:
        return "The student has not been evaluated."
    lines = list(_lines(evaluations))
    table: list[list[str]] = [["pass@1", *(evaluation.name for evaluation in evaluations)]]
    for line in lines:
        cells = []
        for cell in _shown(line)["cells"]:
            more = f"  {cell['change']['value']}" if cell and "change" in cell else ""
            cells.append(f"{cell['value']} ({cell['interval']}){more}" if cell else "–")
        table.append(["  " * line.level + line.label, *cells])
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    rows = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table)
    return "\n".join([*rows, "", _words(evaluations, lines)])


def change(before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    """Returns the change of pass@1 between two measures and its interval at their confidence level, computed from their
    intervals (Newcombe 1998, method 10) under the assumption that they are independent."""
    (old, old_low, old_high), (new, new_low, new_high) = _three(before), _three(after)
    value = new - old
    down, up = math.hypot(new - new_low, old_high - old), math.hypot(new_high - new, old - old_low)
    return Change(value, value - down, value + up)


def _three(measure: Mapping[str, Any]) -> tuple[float, float, float]:
    return measure["pass@1"], *measure["interval"]


def _lines(evaluations: Sequence[Evaluation]) -> Iterator[_Line]:
    """Yields the rows in the order of the last evaluation: domains, then each task with its graders, if it has several, and
    its families."""
    summaries = [evaluation.summary for evaluation in evaluations]
    last = summaries[-1]
    for domain in last["domains"]:
        yield _Line(DOMAINS.get(domain, domain), 0, [summary["domains"].get(domain) for summary in summaries])
    for name, task in last["tasks"].items():
        measures = [summary["tasks"].get(name) for summary in summaries]
        yield _Line(name, 1, measures)
        for grader in task.get("graders") or ():
            yield _Line(f"graded {grader}", 2, [measure and _graded(measure, grader) for measure in measures])
        for family in task["families"]:
            yield _Line(family, 2, [measure and measure["families"].get(family) for measure in measures])


def _graded(task: Mapping[str, Any], grader: str) -> Mapping[str, Any] | None:
    """Returns the measure of a task by one of its graders; None if the grader is missing."""
    measure = task.get("graders", {}).get(grader)
    return measure and {"problems": task["problems"], **measure}


def _shown(line: _Line) -> dict[str, Any]:
    cells: list[dict[str, Any] | None] = []
    for i, measure in enumerate(line.measures):
        if measure is None:
            cells.append(None)
            continue
        mean, low, high = _three(measure)
        cell: dict[str, Any] = {"value": percent(mean), "interval": f"{100 * low:.1f}–{100 * high:.1f}"}
        cell["at"] = [round(100 * x, 2) for x in (low, mean, high)]
        first = line.measures[0]
        if i and first is not None:
            difference = change(first, measure)
            way = ("gain" if difference.value > 0 else "loss") if difference.beyond else "noise"
            sign = {"gain": "▲", "loss": "▼", "noise": "≈"}[way]
            noise = "beyond the noise" if difference.beyond else "within the noise"
            cell["change"] = {"way": way, "value": f"{sign} {points(difference.value)}", "noise": noise}
        cells.append(cell)
    problems = next((measure["problems"] for measure in reversed(line.measures) if measure is not None), 0)
    return {"label": line.label, "level": line.level, "problems": count(problems), "cells": cells}


def points(share: float) -> str:
    """Formats a difference of shares in percentage points, such as +1.5."""
    value = round(100 * share, 1)
    return "0.0" if not value else f"{value:+.1f}".replace("-", "−")


def _words(evaluations: Sequence[Evaluation], lines: Sequence[_Line]) -> str:
    """Summarizes the change of each domain in sentences."""
    sentences = []
    for line in lines:
        if line.level:
            continue
        before, after = line.measures[0], line.measures[-1]
        assert after is not None
        where = line.label.capitalize()
        if len(evaluations) == 1:
            sentences.append(f"{where}, the student's pass@1 is {percent(after['pass@1'])} {evaluations[0].name}.")
        elif before is not None:
            difference = change(before, after)
            noise = "beyond the noise of both" if difference.beyond else "within the noise of both, no evidence of a change"
            sentences.append(
                f"{where}, pass@1 is {percent(before['pass@1'])} {evaluations[0].name} and {percent(after['pass@1'])} "
                f"{evaluations[-1].name}: {points(difference.value)} points, {noise}."
            )
    return " ".join(sentences)


def _note(confidence: float, lines: int, several: bool) -> str:
    note = (
        "pass@1 is the mean over problems of the share of right answers; a failed response counts as wrong. It is followed "
        f"by its {100 * confidence:g} % confidence interval, in per cent."
    )
    if several:
        note += (
            " A change is the difference from the first evaluation, in percentage points. It is beyond the noise if its "
            "interval, computed from the intervals of both evaluations, excludes 0. The interval assumes independent "
            "evaluations, which is conservative because both use the same problems."
        )
    if several and lines >= MANY:
        note += (
            f" Even without any change, up to {100 * (1 - confidence):.2g} of 100 rows would be beyond the noise: read the "
            "domains first."
        )
    return note
