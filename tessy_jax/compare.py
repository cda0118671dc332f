"""`tessy compare`: the same job in variants, for several students and seeds, and one table of what they are worth.

The run folder holds a run folder per job, `<student>/seed-<n>/<variant>`, and `<student>/seed-<n>/before`, the evaluation of
the untouched student, which they share. A job that is finished is passed over; one that is not goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from statistics import fmean, stdev
from typing import Any

from tessy_jax import __version__
from tessy_jax.config import Cell, Comparison
from tessy_jax.config.pipeline import DATA, EVALUATION, TRAINING
from tessy_jax.evaluate.job import BENCHES
from tessy_jax.evaluate.tasks import Bench
from tessy_jax.pipeline import check, round_folder, run
from tessy_jax.processes import first, once
from tessy_jax.store import RunReader
from tessy_jax.store.files import within
from tessy_jax.store.opening import opened

log = logging.getLogger(__name__)
UNTOUCHED = "untouched"
"""What the table calls students before any training."""


def compare(
    config: Comparison,
    *,
    benches: Mapping[str, Bench] = BENCHES,
    progress: bool = True,
    tell: Callable[[str], None] = log.info,
) -> dict[str, Any]:
    """Runs or continues all jobs of a comparison; returns its summary, which is saved, too.

    Raises:
        TessyError: what is wrong with configuration, input, models or output.
        TrainingError: a loss is no number, or spikes.
    """
    with ExitStack() as stack:
        stores, config, text = opened(stack, config)
        cells = list(config.cells())
        for cell in cells:
            if cell.seed == config.seeds[0]:  # another seed changes nothing that can be wrong
                check(cell.config, benches)
        once(lambda: stores[0].save_config(text))
        for number, cell in enumerate(cells, 1):
            if first():
                tell(f"##### {number} of {len(cells)}: {cell.place}")
            place = {"output": within(config.output, cell.place), "mesh": config.mesh, "date": config.date}
            how: dict[str, Any] = {"benches": benches, "progress": progress, "tell": tell}
            before = within(config.output, cell.before)
            if not run(cell.config.model_copy(update=place), before=before, page=False, **how)["finished"]:
                return {"finished": False}
        summary = once(lambda: summarize(config.output, cells))
        once(lambda: stores[0].save_summary(summary))
        return summary


def summarize(output: str, cells: Sequence[Cell]) -> dict[str, Any]:
    """What finished jobs came to: per job, and per variant the mean and the standard deviation over its jobs."""
    found = [_of_cell(output, cell) for cell in cells]
    before: dict[str, dict[str, Any]] = {}
    for cell in cells:
        measures = _pass_at_1(within(output, cell.before))
        before[cell.before] = {"variant": UNTOUCHED, "student": cell.student, "seed": cell.seed, "measures": measures}
    everything = [*before.values(), *found]
    variants = dict.fromkeys(one["variant"] for one in everything)
    return {
        "finished": True,
        "variants": {name: _spread(one["measures"] for one in everything if one["variant"] == name) for name in variants},
        "jobs": everything,
        "versions": {"tessy_jax": __version__},
    }


def table(summary: Mapping[str, Any]) -> str:
    """The means and deviations as a Markdown table: shares in percent."""
    columns = list(next(reversed(summary["variants"].values())))
    lines = [["variant", "jobs", *columns]]
    for name, measures in summary["variants"].items():
        jobs = max(measure["jobs"] for measure in measures.values())
        lines.append([name, str(jobs), *(_cell(measures.get(column)) for column in columns)])
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(measure: Mapping[str, Any] | None) -> str:
    if measure is None:
        return "–"
    spread = "" if measure["deviation"] is None else f" ± {100 * measure['deviation']:.1f}"
    return f"{100 * measure['mean']:.1f}{spread}"


def _of_cell(output: str, cell: Cell) -> dict[str, Any]:
    folder = round_folder(within(output, cell.place), cell.config.rounds)
    data, training = (RunReader(within(folder, name)).summary() or {} for name in (DATA, TRAINING))
    kept = {name: data["run"][f"tokens_{name}"] for name in ("student", "teacher")}
    return {
        "variant": cell.variant,
        "student": cell.student,
        "seed": cell.seed,
        "measures": {
            **_pass_at_1(within(folder, EVALUATION)),
            "teacher's tokens": kept["teacher"] / max(1, sum(kept.values())),
        },
        "responses": data["run"]["responses"],
        "discarded_share": data["discarded_share"],
        "loss": training["loss"],
        "seconds": {
            stage["name"]: stage["seconds"]
            for stage in (RunReader(within(output, cell.place)).summary() or {}).get("stages", [])
        },
    }


def _pass_at_1(output: str) -> dict[str, float]:
    """pass@1 of every task, or of its families where it has any, and of all tasks in and out of the domain."""
    summary = RunReader(output).summary() or {}
    found: dict[str, float] = {}
    for name, task in summary["tasks"].items():
        found |= {family: measures["pass@1"] for family, measures in task["families"].items()} or {name: task["pass@1"]}
    return found | {f"{domain} domain": measures["pass@1"] for domain, measures in summary["domains"].items()}


def _spread(found: Iterable[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    every = list(found)
    spread = {}
    for name in every[0]:
        values = [measures[name] for measures in every]
        deviation = stdev(values) if len(values) > 1 else None
        spread[name] = {"mean": fmean(values), "deviation": deviation, "jobs": len(values)}
    return spread
