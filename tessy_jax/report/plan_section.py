"""The section of a run's page on the plan that `tessy plan --save` has saved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tessy_jax.report.page import Section, Table, count, size


def plan_section(plan: Mapping[str, Any]) -> Section | None:
    """Returns the section, or None if the run has no plan. plan: the result of `plan.job.plan_job`."""
    targets = plan.get("targets", [])
    if not targets:
        return None
    rows = []
    for target in targets:
        for program in target["programs"]:
            rows.append([target["target"], *_cells(program)])
        if "error" in target:
            rows.append([target["target"], "–", target["error"], "", "", "", ""])
    columns = ["target", "program", "compilation", "memory per device", "fits", "kernel launches of a step", "collectives"]
    lead = "The programs of this configuration, compiled by `tessy plan` for TPUs, GPUs or CPUs."
    return Section("Plan", lead, [Table("Programs", columns, rows)])


def _cells(program: Mapping[str, Any]) -> list[str]:
    if "error" in program:
        return [program["program"], program.get("remedy") or program["error"], "", "", "", ""]
    steps = [step for step in program.get("steps", []) if step["part"] == "step"]
    fits = [f"{count(rows)} of {count(int(tokens))} tokens" for tokens, rows in program.get("rows_that_fit", {}).items()]
    return [
        program["program"],
        f"{sum(program['seconds'].values()):.0f} s",
        size(program["device_bytes"]) + ("" if program.get("fits", True) else ", does not fit"),
        program.get("remedy") or ", ".join(fits),
        ", ".join(f"{step['writer']} {count(step['kernels'])}" for step in steps),
        count(sum(move["count"] for move in program["collectives"])),
    ]
