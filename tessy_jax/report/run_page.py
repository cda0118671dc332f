"""The page of a pipeline run: evaluation results, training data and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tessy_jax.report.compared import compared
from tessy_jax.report.figures import Series, line_chart
from tessy_jax.report.page import Figure, Page, Section, SideBySide, Table, asset, count, percent, render, size
from tessy_jax.report.plan_section import plan_section
from tessy_jax.report.results import DOMAINS, results
from tessy_jax.report.span_section import written
from tessy_jax.report.synthesis_section import NOTHING, lengths, shares, waste
from tessy_jax.report.view import Round, RunView, Training

LOSSES = ("loss", "loss_cap", "loss_sty")
"""Training metrics that are plotted."""


def run_report(view: RunView, *, title: str, version: str) -> str:
    """Returns the page as HTML; equal arguments give equal bytes. version: of this package."""
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
    planned = plan_section(view.plan)
    sections += [planned] if planned is not None else []
    subtitle = f"{_described(view)}; tessy_jax {version}"
    return render(Page(title, subtitle, sections, styles=asset("run.css"), script=asset("run.js")))


def _described(view: RunView) -> str:
    """Describes the run in one line."""
    student, teacher = (_model(view.config, name) for name in ("student", "teacher"))
    recipe = (view.config.get("synthesis") or {}).get("recipe")
    parts = [f"{student or 'a student'} learns from {teacher or 'its own responses'}"]
    parts += [f"recipe {recipe}"] if recipe else []
    rounds = view.summary.get("rounds") or view.config.get("rounds") or len(view.rounds)
    parts.append(f"{rounds} round{'s' * (rounds != 1)}")
    if not view.summary.get("finished"):
        parts.append("not finished")
    return ", ".join(parts)


def _model(config: Mapping[str, Any], name: str) -> str | None:
    """Returns the last component of a model's name or folder."""
    model = (config.get(name) or {}).get("model")
    return str(model).rstrip("/").rpartition("/")[2] if model else None


def _losses(rounds: Sequence[Round]) -> Section:
    heading = "Training"
    trained = [(round_, round_.training) for round_ in rounds if round_.training is not None]
    if not trained:
        return Section(heading, "No training has started.")
    lead = (
        "The loss is the mean negative log-likelihood of the targets, weighted by kind. The capability loss is over text of "
        "the teacher, and the style loss is over text of the student, both unweighted."
    )
    charts = [_curves(round_, training) for round_, training in trained if training.metrics]
    charts += [_accuracy(round_) for round_, _ in trained if round_.accuracy]
    numbers = _trainings(trained)
    if len(charts) == 1:
        return Section(heading, lead, [SideBySide([*charts, numbers])])
    return Section(heading, lead, [SideBySide(charts), numbers])


def _curves(round_: Round, training: Training) -> Figure:
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
    image = line_chart(lines, label=f"Losses by step, {round_.name}", x_label="step", y_label="loss")
    note = f"Each point is the mean over {training.steps_per_point} steps." if training.steps_per_point > 1 else ""
    return Figure(f"Loss, {round_.name}", image, note)


def _accuracy(round_: Round) -> Figure:
    lines = [
        Series(
            DOMAINS.get(domain, domain),
            [float(step) for step, _ in points],
            [100 * share for _, share in points],
            markers=True,
        )
        for domain, points in round_.accuracy.items()
    ]
    image = line_chart(
        lines,
        label=f"pass@1 by step, {round_.name}",
        x_label="step",
        y_label="pass@1, %",
        y_range=(0, 100),
    )
    return Figure(f"pass@1 after epochs, {round_.name}", image, "From the start of the round to its end.")


def _trainings(trained: Sequence[tuple[Round, Training]]) -> Table:
    """Returns the training statistics with one column per round."""
    summaries = [training.summary for _, training in trained]

    def row(name: str, values: Sequence[str]) -> list[str]:
        return [name, *values]

    kinds = [kind for kind in ("teacher", "student", "template", "unknown") if any(_targets(s).get(kind) for s in summaries)]
    rows = [
        row("steps", [_count(s.get("steps")) for s in summaries]),
        row("examples", [_count(s.get("examples")) for s in summaries]),
        *(row(f"targets, {kind}", [_count(_targets(s).get(kind, 0)) for s in summaries]) for kind in kinds),
        row("examples skipped as too long", [_count(len(s.get("skipped", ()))) for s in summaries]),
        row("examples truncated", [_count(len(s.get("cut", ()))) for s in summaries]),
        row("first loss", [_loss(t.metrics[0]["loss"] if t.metrics else None) for _, t in trained]),
        row("last loss", [_loss(s.get("loss")) for s in summaries]),
    ]
    if any(t.evaluations for _, t in trained):
        firsts = [t.evaluations[0][1] if t.evaluations else None for _, t in trained]
        rows.append(row("first evaluation loss", [_loss(value) for value in firsts]))
        rows.append(row("last evaluation loss", [_loss(s.get("evaluation_loss")) for s in summaries]))
    rows.append(row("tokens per second, median", [NOTHING if t.rate is None else count(round(t.rate)) for _, t in trained]))
    if any(t.mfu is not None for _, t in trained):
        rows.append(
            row("model FLOP utilization, median", [NOTHING if t.mfu is None else percent(t.mfu) for _, t in trained])
        )
    return Table("Training statistics", ["", *(round_.name for round_, _ in trained)], rows)


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
        rows.append(["total", duration(total), percent(1.0)])
    machine = _machine(view.summary)
    tables = [Table("Time", ["stage", "time", "share"], rows)] if rows else []
    tables += [Table("Memory and devices", ["", ""], machine)] if machine else []
    lead = "" if tables else "The run has no summary yet."
    if view.predictors:
        named = ", ".join(f"{metrics['style']['f1']:.3f} ({speaker})" for speaker, metrics in view.predictors.items())
        lead = f"The run trained its own boundary predictors. F1 of style: {named}. Their report is in `predictors`."
    return Section("Time and memory", lead, [SideBySide(tables)] if tables else [])


def _machine(summary: Mapping[str, Any]) -> list[list[str]]:
    memory = summary.get("peak_memory") or {}
    rows = [
        [f"peak memory, {where}", size(memory[f"{where}_bytes"])]
        for where in ("host", "device")
        if memory.get(f"{where}_bytes") is not None
    ]
    if summary.get("devices"):
        rows.append(["devices", ", ".join(map(str, summary["devices"]))])
    return rows + [[str(name), str(version)] for name, version in (summary.get("versions") or {}).items()]


def duration(seconds: float) -> str:
    """Formats a duration, such as 12.3 s, 4 min 5 s or 2 h 13 min."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    rounded = round(seconds)
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
