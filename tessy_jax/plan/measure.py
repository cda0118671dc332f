"""Compiles a program for a target and measures it: seconds, bytes, kernel launches, collectives and copies."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from tessy_jax.plan.hlo import Launches, Module, Scopes, collectives, large_copies, launches
from tessy_jax.plan.programs import Planned
from tessy_jax.plan.remedy import remedy
from tessy_jax.plan.targets import Target

MERGES = 8
"""Assumed iterations of merging: about the number of merges of a word."""
READS = 2
"""Assumed calls of the tokenizer for a proposal, at a hand-over."""
HOST_TEXT = (
    "the tokenizer of the {} runs in a host callback, because the device does not support its rules; XLA compiles host "
    "callbacks for GPUs only with the GPU attached; choose a TPU target or cpu"
)


def measure(planned: Planned, target: Target, mesh: Any) -> dict[str, Any]:
    """Traces, lowers and compiles a program, within `tracing_for` the target. Returns its record for JSON. If the program
    does not compile, the record has `error` instead of measurements; if it does not fit into memory, it has a `remedy`."""
    record: dict[str, Any] = {"program": planned.name, "devices": mesh.size, "rows": planned.rows, "tokens": planned.tokens}
    record["parts"] = planned.parts
    if planned.host_text and target.platform == "cuda":
        return record | {"error": HOST_TEXT.format(" and the ".join(planned.host_text))}
    record |= _measured(planned, target, mesh)
    advice = remedy(record, target, planned.lanes_key, planned.pool_key)
    return record if advice is None else record | {"remedy": advice}


def _measured(planned: Planned, target: Target, mesh: Any) -> dict[str, Any]:
    record: dict[str, Any] = {}
    try:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            started = time.perf_counter()
            traced = planned.program.jitted.trace(*planned.program.args)
            at_trace = time.perf_counter()
            lowered = traced.lower(lowering_platforms=(target.platform,))
            at_lower = time.perf_counter()
        compiled = lowered.compile()
    except (RuntimeError, NotImplementedError) as error:  # errors of the compiler and of lowering
        return {"error": _reason(error)}
    seconds = {"trace": at_trace - started, "lower": at_lower - at_trace, "compile": time.perf_counter() - at_lower}
    record["seconds"] = {name: round(value, 1) for name, value in seconds.items()}
    memory = compiled.memory_analysis()
    record["bytes"] = {
        "arguments": memory.argument_size_in_bytes,
        "outputs": memory.output_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
        "aliased": memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
    }
    module = Module.parse(compiled.as_text())
    record["kernels"] = launches(module, module.entry).total
    record["collectives"] = [move._asdict() for move in collectives(module)]
    record["copies"] = [move._asdict() for move in _faults(module, planned)]
    if planned.program.name == "loop":
        record["steps"] = list(_steps(module, planned))
    if target.platform == "tpu":
        cost = compiled.cost_analysis() or {}
        seconds = cost.get("optimal_seconds", -1.0)
        record["roofline_seconds"] = seconds if seconds >= 0 else None  # negative if XLA has no estimate for a part
        record["bytes_accessed"] = cost.get("bytes accessed")
    return record | _fit(planned, target, record["bytes"])


def _faults(module: Module, planned: Planned) -> Any:
    """Copies in loops that are at least as large as a layer's cache or weight. Every iteration repeats them."""
    least = min(size for size in (planned.cache_bytes, planned.weight_bytes) if size)
    bodies = [i.attribute("body") for i in module.walk() if i.operation == "while"]
    largest: dict[tuple[str, str], Any] = {}
    for body in bodies:
        for move in large_copies(module, least, body):
            largest.setdefault((move.operation, move.shape), move)
    return list(largest.values())


def _steps(module: Module, planned: Planned) -> Iterator[dict[str, Any]]:
    """The launches of each side in an iteration of the loop: one record for a `step` in which no lane catches up, and one
    for a `hand-over`, i.e. the iteration at the beginning of a turn, which has no forward pass."""
    rounds = [i for i in module.computations[module.entry] if i.operation == "while"]
    if len(rounds) != 1:
        return
    body = rounds[0].attribute("body")
    assert body is not None
    sides = [f"side{m}" for m in range(len(planned.writers))]
    one_form = not any("catch_up" in i.scopes for i in module.walk(body))  # each predictor is compiled once
    for m, side in enumerate(sides):
        others = {other: 0 for other in sides if other != side}
        step = others | {"catch_up": 0, "tokenize": int(planned.hears[m]), "merges": MERGES}
        turn = others | {"forward": 0, "decide": 0, "read_token": int(one_form), "tokenize": READS, "merges": MERGES}
        for part, iterations in (("step", step), ("hand-over", turn)):
            found = launches(module, body, skip=lambda scopes: "wide" in scopes, group=_group, iterations=iterations)
            yield _record(planned.writers, m, part, found)


def _record(writers: Sequence[str], side: int, part: str, found: Launches) -> dict[str, Any]:
    models = found.kernels["model"] + found.kernels["predictor"]
    return {
        "side": side,
        "writer": writers[side],
        "part": part,
        "kernels": found.total,
        "models": models,
        "bookkeeping": found.total - models,
        "host_reads": found.host_reads,
        "collectives": {
            name: {"count": number, "bytes": found.collective_bytes[name]} for name, number in found.collectives.items()
        },
        "groups": dict(found.kernels.most_common()),
    }


GROUPS: tuple[str, ...] = (
    "sample",
    "proposals",
    "tokenize",
    "read_predictors",
    "decide",
    "commit",
    "resolve_proposal",
    "find_close_marker",
    "append_sampled",
)


def _group(scopes: Scopes) -> str:
    if "predict" in scopes:
        return "predictor"
    if not {"decode_step", "logits"}.isdisjoint(scopes):
        return "model"
    return next((name for name in GROUPS if name in scopes), "other")


def _fit(planned: Planned, target: Target, used: dict[str, int]) -> dict[str, Any]:
    """Bytes on one device, whether they fit into its usable memory, and the number of lanes or rows that fit, for each
    number of tokens. It assumes temporaries in proportion to the lanes or rows."""
    total = used["arguments"] + used["outputs"] - used["aliased"] + used["temporaries"] + used["code"]
    record: dict[str, Any] = {"device_bytes": total}
    memory = target.usable
    if memory is None:
        return record
    record |= {"memory": memory, "fits": total <= memory}
    temporaries = -(-used["temporaries"] // planned.rows)
    rows = {}
    for tokens, size in planned.row_bytes.items():
        fixed = total - planned.rows * (planned.row_bytes[planned.tokens] + temporaries)
        number = max(0, (memory - fixed) // max(1, size + temporaries))
        rows[tokens] = number // planned.multiple * planned.multiple
    return record | {"rows_that_fit": rows} if rows else record


def _reason(error: Exception) -> str:
    """The most informative line of a compiler's error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if "memory" in line.lower()), lines[0] if lines else type(error).__name__)[:400]
