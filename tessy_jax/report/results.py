"""Part of the page of a run: how often the student is right, before and after, and whether that is more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tessy_jax.report.page import Section, count, fragment, percent
from tessy_jax.report.view import Evaluation

DOMAINS = {"in": "in domain", "out": "out of domain"}
MANY = 8  # rows of the table from which on chance findings are worth a warning


class Change(NamedTuple):
    """A difference of two shares, and its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def beyond(self) -> bool:
        """Whether it is more than the noise of both shares would give."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class _Line:
    """A row of the table. level: 0 for domains, 1 for tasks, 2 for graders and families. measures: of each evaluation."""

    label: str
    level: int
    measures: Sequence[Mapping[str, Any] | None]


def results(evaluations: Sequence[Evaluation]) -> Section:
    """The section; the first evaluation is what the others are compared with."""
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
    """The same table for a terminal, with what it says in words."""
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
    """The change of pass@1 from one measure to another, and its interval at their confidence, from their intervals alone
    (Newcombe 1998, method 10): as if the two were independent."""
    (old, old_low, old_high), (new, new_low, new_high) = _three(before), _three(after)
    value = new - old
    down, up = math.hypot(new - new_low, old_high - old), math.hypot(new_high - new, old - old_low)
    return Change(value, value - down, value + up)


def _three(measure: Mapping[str, Any]) -> tuple[float, float, float]:
    return measure["pass@1"], *measure["interval"]


def _lines(evaluations: Sequence[Evaluation]) -> Iterator[_Line]:
    """Domains, and then each task with what each grader says, where there are several, and its families; in the order of the
    last evaluation."""
    summaries = [evaluation.summary for evaluation in evaluations]
    last = summaries[-1]
    for domain in last["domains"]:
        yield _Line(DOMAINS.get(domain, domain), 0, [summary["domains"].get(domain) for summary in summaries])
    for name, task in last["tasks"].items():
        found = [summary["tasks"].get(name) for summary in summaries]
        yield _Line(name, 1, found)
        for grader in task.get("graders") or ():
            yield _Line(f"graded {grader}", 2, [one and _graded(one, grader) for one in found])
        for family in task["families"]:
            yield _Line(family, 2, [one and one["families"].get(family) for one in found])


def _graded(task: Mapping[str, Any], grader: str) -> Mapping[str, Any] | None:
    """What one of several graders says of a task."""
    found = task.get("graders", {}).get(grader)
    return found and {"problems": task["problems"], **found}


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
            found = change(first, measure)
            way = ("gain" if found.value > 0 else "loss") if found.beyond else "noise"
            sign = {"gain": "▲", "loss": "▼", "noise": "≈"}[way]
            noise = "beyond the noise" if found.beyond else "within the noise"
            cell["change"] = {"way": way, "value": f"{sign} {points(found.value)}", "noise": noise}
        cells.append(cell)
    problems = next((measure["problems"] for measure in reversed(line.measures) if measure is not None), 0)
    return {"label": line.label, "level": line.level, "problems": count(problems), "cells": cells}


def points(share: float) -> str:
    """A difference of shares in percentage points, such as +1.5."""
    value = round(100 * share, 1)
    return "0.0" if not value else f"{value:+.1f}".replace("-", "−")


def _words(evaluations: Sequence[Evaluation], lines: Sequence[_Line]) -> str:
    """What became of each domain, in sentences."""
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
            found = change(before, after)
            noise = (
                "more than the noise of both explains" if found.beyond else "within the noise of both, so no change is shown"
            )
            sentences.append(
                f"{where}, pass@1 is {percent(before['pass@1'])} {evaluations[0].name} and {percent(after['pass@1'])} "
                f"{evaluations[-1].name}: {points(found.value)} points, {noise}."
            )
    return " ".join(sentences)


def _note(confidence: float, lines: int, several: bool) -> str:
    note = (
        "pass@1 is the mean over problems of the share of answers that are right; a response that came to nothing is wrong. "
        f"Behind it stands its {100 * confidence:g} % confidence interval, in per cent."
    )
    if several:
        note += (
            " A change, in percentage points from the first evaluation on, is beyond the noise where its own interval, made "
            "from the intervals of both, leaves out 0. It takes both for independent, which is cautious: the same "
            "problems are asked."
        )
    if several and lines >= MANY:
        note += (
            f" Even where nothing has changed, up to {100 * (1 - confidence):.2g} of 100 rows would be called beyond the "
            "noise: look at the domains first."
        )
    return note
