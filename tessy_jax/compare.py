"""`tessy compare`: variants of one job for several students and seeds, and one table of their results.

The run folder holds a run folder per job, `<student>/seed-<n>/<variant>`, and `<student>/seed-<n>/before`, the evaluation of
the untouched student, which the jobs share. A restart skips finished jobs and resumes the others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean, stdev
from typing import Any

from tessy_jax import __version__
from tessy_jax.config import Cell, Comparison
from tessy_jax.config.comparison import UNTOUCHED
from tessy_jax.config.pipeline import DATA, TRAINING
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.evaluate.tasks import TaskKind
from tessy_jax.pipeline import check, run
from tessy_jax.processes import is_primary, on_primary
from tessy_jax.store import RunReader
from tessy_jax.store.files import within
from tessy_jax.store.job_folder import BEFORE_STAGE, JobFolder, Stage, read_stages
from tessy_jax.store.opening import open_run

logger = logging.getLogger(__name__)
ROUNDING = 1e-9  # smaller differences count as equal


def compare(
    config: Comparison,
    *,
    task_kinds: Mapping[str, TaskKind] = TASK_KINDS,
    progress: bool = True,
    log: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Runs or resumes all jobs of a comparison. Returns its summary, which is also saved.

    task_kinds, log: as in `pipeline.run`.

    Raises:
        TessyError: invalid configuration, input, models or output.
        TrainingError: a loss is not finite, or spikes.
    """
    with ExitStack() as stack:
        store, config, text = open_run(stack, config)
        cells = list(config.cells())
        checked: set[tuple[str, str]] = set()
        for cell in cells:
            if (cell.variant, cell.student) not in checked:  # the checks do not depend on the seed
                checked.add((cell.variant, cell.student))
                check(cell.config, task_kinds)
        store.save_config(text)
        for number, cell in enumerate(cells, 1):
            if is_primary():
                log(f"##### {number} of {len(cells)}: {cell.place}")
            place = {"output": within(config.output, cell.place), "mesh": config.mesh, "date": config.date}
            options: dict[str, Any] = {"task_kinds": task_kinds, "progress": progress, "log": log}
            before = within(config.output, cell.before)
            if not run(cell.config.model_copy(update=place), before=before, page=False, **options)["finished"]:
                return {"finished": False}
        summary = on_primary(lambda: summarize(config.output, cells, config.baseline))
        store.save_summary(summary)
        return summary


def summarize(output: str, cells: Sequence[Cell], baseline: str | None = None) -> dict[str, Any]:
    """The results of finished jobs: per job, and per variant the mean and standard deviation over its jobs, the cost, and
    the differences from the untouched students and from the baseline (see `differences`)."""
    jobs = [_of_cell(output, cell) for cell in cells]
    before: dict[str, dict[str, Any]] = {}
    for cell in cells:
        measures = _pass_at_1(within(output, cell.before))
        before[cell.before] = {"variant": UNTOUCHED, "student": cell.student, "seed": cell.seed, "measures": measures}
    rows = [*before.values(), *jobs]
    variants = dict.fromkeys(row["variant"] for row in rows)
    names = [UNTOUCHED, *([baseline] if baseline else [])]
    return {
        "finished": True,
        "variants": {name: _spread(row["measures"] for row in rows if row["variant"] == name) for name in variants},
        "costs": {
            name: _mean_cost([job["cost"] for job in jobs if job["variant"] == name])
            for name in dict.fromkeys(job["variant"] for job in jobs)
        },
        "against": {name: differences(rows, name) for name in names},
        "jobs": rows,
        "versions": {"tessy_jax": __version__},
    }


def differences(jobs: Sequence[Mapping[str, Any]], other: str) -> dict[str, dict[str, dict[str, Any]]]:
    """The differences between each variant's jobs and those of another variant with the same student and seed, by measure.

    difference: the mean. interval: its 95 % confidence interval. p: the p value. Both come from a paired t test over jobs
    and are None with fewer than two jobs, or if all differences are equal. No value is corrected for multiple comparisons.
    """
    by_job = {(job["variant"], job["student"], job["seed"]): job["measures"] for job in jobs}
    result: dict[str, dict[str, dict[str, Any]]] = {}
    for variant in dict.fromkeys(job["variant"] for job in jobs if job["variant"] not in (other, UNTOUCHED)):
        pairs = [
            (measures, by_job[other, student, seed])
            for (name, student, seed), measures in by_job.items()
            if name == variant and (other, student, seed) in by_job
        ]
        shared = [name for name in pairs[0][0] if name in pairs[0][1]] if pairs else []
        result[variant] = {name: _paired([own[name] - theirs[name] for own, theirs in pairs]) for name in shared}
    return result


def _paired(values: Sequence[float]) -> dict[str, Any]:
    from scipy import stats  # type: ignore[import-untyped, unused-ignore]

    result: dict[str, Any] = {"difference": fmean(values), "interval": None, "p": None, "jobs": len(values)}
    if len(values) > 1 and max(values) - min(values) > ROUNDING:
        test = stats.ttest_1samp(values, 0.0)
        interval = test.confidence_interval(0.95)
        result |= {"interval": [float(interval.low), float(interval.high)], "p": float(test.pvalue)}
    return result


def tables(summary: Mapping[str, Any]) -> str:
    """All tables of a comparison, as Markdown."""
    parts = [table(summary)]
    for name, by_variant in summary["against"].items():
        if by_variant:
            parts.append(
                f"Difference from {name} in points, 95 % interval, p (paired t test over jobs):\n\n{_against(by_variant)}"
            )
    parts.append(f"Cost of a job's data and stages, means:\n\n{_costs(summary['costs'])}")
    return "\n\n".join(parts)


def table(summary: Mapping[str, Any]) -> str:
    """The means and deviations as a Markdown table: shares in percent."""
    columns = list(next(reversed(summary["variants"].values())))
    lines = [["variant", "jobs", *columns]]
    for name, measures in summary["variants"].items():
        jobs = max(measure["jobs"] for measure in measures.values())
        lines.append([name, str(jobs), *(_cell(measures.get(column)) for column in columns)])
    return _markdown(lines)


def _against(by_variant: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    columns = [name for name in next(iter(by_variant.values())) if name.endswith(" domain")]
    lines = [["variant", *columns]]
    for variant, measures in by_variant.items():
        lines.append([variant, *(_difference(measures[column]) for column in columns)])
    return _markdown(lines)


def _difference(measure: Mapping[str, Any]) -> str:
    text = f"{100 * measure['difference']:+.1f}"
    if measure["interval"] is None:
        return text
    low, high = (100 * value for value in measure["interval"])
    p = measure["p"]
    return f"{text} ({low:+.1f} to {high:+.1f}), p {'< 0.001' if p < 0.001 else f'{p:.3f}'}"


def _costs(costs: Mapping[str, Mapping[str, Any]]) -> str:
    names = ["student's tokens", "teacher's tokens", "discarded", "failed", "data s", "training s", "all s"]
    lines = [["variant", *names]]
    for variant, cost in costs.items():
        numbers = [cost["generated"]["student"], cost["generated"]["teacher"], cost["discarded"], cost["failed"]]
        seconds = [cost["seconds"][stage] for stage in ("data", "training", "all")]
        lines.append([variant, *(f"{number:.0f}" for number in [*numbers, *seconds])])
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(measure: Mapping[str, Any] | None) -> str:
    if measure is None:
        return "–"
    spread = "" if measure["deviation"] is None else f" ± {100 * measure['deviation']:.1f}"
    return f"{100 * measure['mean']:.1f}{spread}"


def _of_cell(output: str, cell: Cell) -> dict[str, Any]:
    job = JobFolder(within(output, cell.place))
    folders = [job.round(number) for number in range(1, cell.config.rounds + 1)]
    rounds = [RunReader(folder.synthesis).summary() or {} for folder in folders]
    folder, data = folders[-1], rounds[-1]
    training = RunReader(folder.training).summary() or {}
    stages = read_stages(RunReader(job.output).summary() or {}, job.output)
    kept = {name: data["run"][f"tokens_{name}"] for name in ("student", "teacher")}
    return {
        "variant": cell.variant,
        "student": cell.student,
        "seed": cell.seed,
        "measures": {
            **_pass_at_1(folder.evaluation),
            "teacher's tokens": kept["teacher"] / max(1, sum(kept.values())),
        },
        "responses": data["run"]["responses"],
        "discarded_share": data["discarded_share"],
        "cost": cost_of(rounds, stages),
        "loss": training["loss"],
        "seconds": {stage.name: seconds for stage, seconds in stages.items()},
    }


def cost_of(rounds: Sequence[Mapping[str, Any]], stages: Mapping[Stage, float]) -> dict[str, Any]:
    """The cost of a job over all rounds and passes: generated tokens by writer, discarded tokens, tokens of failed attempts,
    and seconds. Of an interrupted synthesis, only the last start counts.

    rounds: summaries of each round's synthesis. stages: seconds by stage; all variants share the evaluation
    of the untouched student, which does not count."""
    parts = [*rounds]
    # a summary of chosen responses already has the measures of its first pass
    parts += [data["first_pass"] for data in rounds if "first_pass" in data and not data.get("chosen")]

    own = {stage: value for stage, value in stages.items() if stage != BEFORE_STAGE}

    def seconds(kind: str) -> float:
        return sum(value for stage, value in own.items() if stage.kind == kind)

    return {
        "generated": {name: sum(part["generated_tokens"].get(name, 0) for part in parts) for name in ("student", "teacher")},
        "discarded": sum(sum(part["discarded_tokens"].values()) for part in parts),
        "failed": sum(sum(part["failed_tokens"].values()) for part in parts),
        "seconds": {"data": seconds(DATA), "training": seconds(TRAINING), "all": sum(own.values())},
    }


def _mean_cost(costs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        key: {name: fmean(cost[key][name] for cost in costs) for name in value}
        if isinstance(value, dict)
        else fmean(cost[key] for cost in costs)
        for key, value in costs[0].items()
    }


def _pass_at_1(output: str) -> dict[str, float]:
    """pass@1 of every task, or of its families where it has any, and of all tasks in and out of the domain."""
    summary = RunReader(output).summary() or {}
    shares: dict[str, float] = {}
    for name, task in summary["tasks"].items():
        shares |= {family: measures["pass@1"] for family, measures in task["families"].items()} or {name: task["pass@1"]}
    return shares | {f"{domain} domain": measures["pass@1"] for domain, measures in summary["domains"].items()}


def _spread(by_job: Iterable[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    jobs = list(by_job)
    spread = {}
    for name in jobs[0]:
        values = [measures[name] for measures in jobs]
        deviation = stdev(values) if len(values) > 1 else None
        spread[name] = {"mean": fmean(values), "deviation": deviation, "jobs": len(values)}
    return spread
