"""The page of a run of the whole job: what became of the student, what it learnt from, and what it cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tessy_jax.report.compared import compared
from tessy_jax.report.figures import Series, line_chart
from tessy_jax.report.page import Beside, Figure, Page, Section, Table, asset, count, percent, render
from tessy_jax.report.results import DOMAINS, results
from tessy_jax.report.span_section import written
from tessy_jax.report.synthesis_section import NOTHING, lengths, shares, waste
from tessy_jax.report.view import Round, RunView, Training

LOSSES = ("loss", "loss_cap", "loss_sty")
"""Metrics of a training that are drawn."""


def run_report(view: RunView, *, title: str, version: str) -> str:
    """The page as HTML; equal arguments give equal bytes. version: of this package."""
    sections = [
        results(view.evaluations),
        _losses(view.rounds),
        shares(view.rounds),
        waste(view.rounds),
        lengths(view.rounds),
        written(view.rounds),
        compared(view),
        _cost(view),
    ]
    subtitle = f"{_described(view)}; tessy_jax {version}"
    return render(Page(title, subtitle, sections, styles=asset("run.css"), script=asset("run.js")))


def _described(view: RunView) -> str:
    """What the run is, in a line."""
    student, teacher = (_model(view.config, name) for name in ("student", "teacher"))
    recipe = (view.config.get("synthesis") or {}).get("recipe")
    parts = [f"{student or 'a student'} learns from {teacher or 'what it writes itself'}"]
    parts += [f"recipe {recipe}"] if recipe else []
    wanted, done = view.summary.get("rounds") or view.config.get("rounds"), len(view.rounds)
    parts.append(f"{wanted or done} round{'s' * ((wanted or done) != 1)}")
    if not view.summary.get("finished"):
        parts.append("not finished")
    return ", ".join(parts)


def _model(config: Mapping[str, Any], name: str) -> str | None:
    """The last part of a model's name or folder."""
    model = (config.get(name) or {}).get("model")
    return str(model).rstrip("/").rpartition("/")[2] if model else None


def _losses(rounds: Sequence[Round]) -> Section:
    heading = "Training"
    found = [(one, one.training) for one in rounds if one.training is not None]
    if not found:
        return Section(heading, "Nothing has been trained.")
    lead = (
        "The loss is the mean negative log-likelihood of the targets, with the weights of their kinds. That on capability "
        "is of what the teacher wrote, and that on style of what the student wrote, both without weights."
    )
    charts = [_curves(one, training) for one, training in found if training.metrics]
    charts += [_accuracy(one) for one, _ in found if one.accuracy]
    numbers = _trainings(found)
    together = len(charts) == 1
    return Section(heading, lead, [Beside([*charts, numbers])] if together else [Beside(charts), numbers])


def _curves(one: Round, training: Training) -> Figure:
    steps = [point["step"] or 0.0 for point in training.metrics]
    named = {"loss": "all targets", "loss_cap": "capability", "loss_sty": "style"}
    colours: dict[str, Any] = {"loss": "green", "loss_cap": "blue", "loss_sty": "orange"}
    lines = [
        Series(
            named[name],
            steps,
            [float("nan") if point.get(name) is None else float(point[name] or 0.0) for point in training.metrics],
            colours[name],
            markers=len(steps) == 1,
        )
        for name in LOSSES
        if any(point.get(name) is not None for point in training.metrics)
    ]
    if training.evaluations:
        at, values = zip(*training.evaluations, strict=True)
        lines.append(Series("evaluation", at, values, "purple", markers=True))
    image = line_chart(lines, label=f"Losses over the steps, {one.name}", x_label="step", y_label="loss")
    note = f"Each point is the mean over {training.together} steps." if training.together > 1 else ""
    return Figure(f"Loss, {one.name}", image, note)


def _accuracy(one: Round) -> Figure:
    lines = [
        Series(
            DOMAINS.get(domain, domain),
            [float(step) for step, _ in points],
            [100 * share for _, share in points],
            markers=True,
        )
        for domain, points in one.accuracy.items()
    ]
    image = line_chart(
        lines,
        label=f"pass@1 over the steps, {one.name}",
        x_label="step",
        y_label="pass@1, %",
        y_range=(0, 100),
    )
    return Figure(
        f"pass@1 after epochs, {one.name}", image, "From the student that the round began with to the one it ended with."
    )


def _trainings(found: Sequence[tuple[Round, Training]]) -> Table:
    """A column per round."""
    summaries = [training.summary for _, training in found]

    def row(name: str, values: Sequence[str]) -> list[str]:
        return [name, *values]

    kinds = [kind for kind in ("teacher", "student", "template", "unknown") if any(_targets(s).get(kind) for s in summaries)]
    rows = [
        row("steps", [_count(s.get("steps")) for s in summaries]),
        row("examples", [_count(s.get("examples")) for s in summaries]),
        *(row(f"targets, {kind}", [_count(_targets(s).get(kind, 0)) for s in summaries]) for kind in kinds),
        row("rows left out, being too long", [_count(len(s.get("skipped", ()))) for s in summaries]),
        row("rows cut", [_count(len(s.get("cut", ()))) for s in summaries]),
        row("first loss", [_loss(t.metrics[0]["loss"] if t.metrics else None) for _, t in found]),
        row("last loss", [_loss(s.get("loss")) for s in summaries]),
    ]
    if any(t.evaluations for _, t in found):
        firsts = [t.evaluations[0][1] if t.evaluations else None for _, t in found]
        rows.append(row("first loss on the evaluation file", [_loss(value) for value in firsts]))
        rows.append(row("last loss on the evaluation file", [_loss(s.get("evaluation_loss")) for s in summaries]))
    rows.append(row("tokens per second, median", [NOTHING if t.rate is None else count(round(t.rate)) for _, t in found]))
    if any(t.mfu is not None for _, t in found):
        rows.append(row("of the devices' peak, median", [NOTHING if t.mfu is None else percent(t.mfu) for _, t in found]))
    return Table("The training in numbers", ["", *(one.name for one, _ in found)], rows)


def _targets(summary: Mapping[str, Any]) -> Mapping[str, int]:
    return summary.get("targets") or {}


def _count(value: int | None) -> str:
    return NOTHING if value is None else count(value)


def _loss(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"


def _cost(view: RunView) -> Section:
    stages = view.summary.get("stages") or []
    total = sum(stage["seconds"] for stage in stages)
    rows = [[stage["name"], duration(stage["seconds"]), percent(stage["seconds"] / max(total, 1e-9))] for stage in stages]
    if stages:
        rows.append(["all", duration(total), percent(1.0)])
    machine = _machine(view.summary)
    tables = [Table("Time", ["stage", "time", "share"], rows)] if rows else []
    tables += [Table("Memory and machine", ["", ""], machine)] if machine else []
    lead = "" if tables else "The run has no summary yet."
    if view.predictors:
        named = ", ".join(f"{found['style']['f1']:.3f} for the {speaker}'s" for speaker, found in view.predictors.items())
        lead = (
            f"The run has made its own boundary predictors, whose F1 of style is {named}; their report is in `predictors`."
        )
    return Section("Time and memory", lead, [Beside(tables)] if tables else [])


def _machine(summary: Mapping[str, Any]) -> list[list[str]]:
    memory = summary.get("peak_memory") or {}
    rows = [
        [f"most memory of the {where}", size(memory[f"{where}_bytes"])]
        for where in ("host", "device")
        if memory.get(f"{where}_bytes") is not None
    ]
    if summary.get("devices"):
        rows.append(["devices", ", ".join(map(str, summary["devices"]))])
    return rows + [[str(name), str(version)] for name, version in (summary.get("versions") or {}).items()]


def duration(seconds: float) -> str:
    """A time such as 12.3 s, 4 min 5 s or 2 h 13 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def size(count_of_bytes: float) -> str:
    """A size such as 1.23 GiB."""
    return f"{count_of_bytes / 2**30:,.2f} GiB" if count_of_bytes >= 1 << 30 else f"{count_of_bytes / 2**20:,.1f} MiB"
