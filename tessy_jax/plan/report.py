"""Prints a plan as tables and lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

COLUMNS = ("program", "rows × tokens", "compile s", "per device", "temporaries", "rows that fit", "collectives", "copies")


def show(config: str, result: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the result of `plan_job`. config: name of the configuration, for the first line."""
    console = console or Console()
    mesh = ", ".join(f"{axis}={size}" for axis, size in result["mesh"].items()) or "one device"
    console.print(f"{config}, mesh {mesh}")
    for target in result["targets"]:
        memory = f", {_bytes(target['memory'])} each" if target["memory"] else ""
        console.print(f"\n[bold]{target['target']}[/bold]: {target['devices']} devices{memory}, {target['seconds']:.0f} s")
        if target["programs"]:
            console.print(_table(target["programs"]))
        for program in target["programs"]:
            for line in details(program):
                console.print(f"  {line}", highlight=False)
        for note in target["notes"]:
            console.print(f"  note: {note}", highlight=False)
        if "error" in target:
            console.print(f"  [bold red]error[/bold red]: {target['error']}", highlight=False)


def _table(programs: list[Mapping[str, Any]]) -> Table:
    table = Table(*COLUMNS)
    for program in programs:
        size = f"{program['rows']} × {program['tokens']}"
        if "error" in program:
            table.add_row(program["program"], size, "–", "does not compile")
            continue
        used, seconds = program["bytes"], program["seconds"]
        fits = "" if program.get("fits", True) else " (does not fit)"
        rows = ", ".join(f"{n} × {tokens}" for tokens, n in program.get("rows_that_fit", {}).items())
        table.add_row(
            program["program"],
            size,
            f"{sum(seconds.values()):.0f}",
            _bytes(program["device_bytes"]) + fits,
            _bytes(used["temporaries"]),
            rows,
            _moved(program["collectives"]),
            _moved(program["copies"]),
        )
    return table


def details(program: Mapping[str, Any]) -> Iterator[str]:
    """Lines on one program: its error, its remedy, the kernel launches of its steps, and large copies in its loops."""
    if "error" in program:
        yield f"{program['program']}: {program['error']}"
    if "remedy" in program:
        yield f"{program['program']}: {program['remedy']}"
    for step in program.get("steps", []):
        groups = ", ".join(f"{name} {count}" for name, count in step["groups"].items() if name not in ("model", "predictor"))
        yield (
            f"{step['writer']} {step['part']}: {step['kernels']} kernel launches, {step['models']} of them in models; "
            f"{step['host_reads']} predicates of loops and branches{_collectives(step['collectives'])}; {groups}"
        )
    for move in program.get("copies", []):
        what = f"{move['count']} × {move['operation']} {move['shape']}"
        yield f"{program['program']}: {what} in a loop, at least as large as a layer's cache or weight"


def _collectives(moves: Mapping[str, Any]) -> str:
    return "".join(f", {move['count']} {name} of {_bytes(move['bytes'])}" for name, move in moves.items())


def _moved(moves: list[Mapping[str, Any]]) -> str:
    return f"{sum(m['count'] for m in moves)} ({_bytes(sum(m['bytes'] for m in moves))})" if moves else "none"


def _bytes(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.4g} {unit}"
        number /= 1000
    return f"{number:.2f} GB"
