"""`tessy plan`: compiles the programs of a configuration for targets, with one process per target."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from tessy_jax.config import Analyze, Comparison, Evaluate, Pipeline, Predictors, Synthesize, Train, read, reconcile
from tessy_jax.errors import ConfigError
from tessy_jax.plan.programs import PROGRAMS, programs_of
from tessy_jax.plan.targets import Target, check_extras, check_mesh, environment, parse_target
from tessy_jax.store import RunStore
from tessy_jax.store.job_folder import PLAN

WORKER = (sys.executable, "-m", "tessy_jax.plan.worker")
START_UP = re.compile(r"WARNING: All log messages before absl|[A-Z]\d{4} .*\bcudart_stub")
"""Lines that libraries print at every start. They are not errors."""
KINDS: tuple[Any, ...] = (Synthesize, Train, Evaluate, Pipeline, Comparison, Predictors, Analyze)


def read_any(path: Path, overrides: Sequence[str]) -> Any:
    """Reads a configuration file. Its keys determine the kind of configuration.

    Raises:
        ConfigError: the configuration is invalid.
    """
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        raw = None  # read() raises the error
    keys = set(raw) if isinstance(raw, dict) else set()

    def strangeness(kind: Any) -> tuple[int, int]:
        required = {name for name, field in kind.model_fields.items() if field.is_required()}
        return len(keys - set(kind.model_fields)), len(required - keys)

    return read(min(KINDS, key=strangeness), path, overrides)


def check_request(config: Any, targets: Sequence[str], programs: Sequence[str]) -> tuple[list[Target], list[str]]:
    """Parses and checks the targets and programs of a request, and removes duplicates.

    Raises:
        ConfigError: a target or program is unknown, a target's packages are missing, the configuration lacks a program, or
            no target has enough devices for the mesh.
    """
    parsed = [parse_target(text) for text in dict.fromkeys(text.strip() for text in targets)]
    for target in parsed:
        check_extras(target)
    has = programs_of(config)
    if not has:
        raise ConfigError(
            f"a {type(config).__name__} configuration has no programs to plan; give a configuration of `tessy run`, "
            "`synthesize`, `train` or `evaluate`"
        )
    names = list(dict.fromkeys(name.strip() for name in programs))
    for name in names:
        if name not in PROGRAMS:
            raise ConfigError(f"program {name!r} is unknown; the programs are {', '.join(PROGRAMS)}")
        if name not in has:
            raise ConfigError(f"this configuration has no program {name!r}; it has {', '.join(has)}")
    for target in sorted(parsed, key=lambda target: target.devices)[-1:]:
        check_mesh(target, dict(config.mesh))
    return parsed, names or list(has)


def plan_job(
    config: Any,
    targets: Sequence[str],
    programs: Sequence[str] = (),
    *,
    shapes: Path | None = None,
    layers: int | None = None,
    timeout: float = 3600,
    log: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Compiles programs for targets, one target at a time. Needs no weights, no devices of the target, and no network.

    programs: names (default: all programs of the configuration). shapes: folder of published shapes, see `models.Published`.
    layers: number of layers of every model (default: all). timeout: seconds for each target. log: receives one line per
    program.

    Returns:
        `mesh`, and `targets`: per target `target`, `devices`, `memory` in bytes per device, `programs` (records of
        `measure.measure`), `notes`, `seconds`, and `error` if it ended early.

    Raises:
        ConfigError: see `check_request`.
    """
    parsed, names = check_request(config, targets, programs)
    request = {
        "kind": type(config).__name__,
        "config": reconcile(config, None).model_dump(mode="json"),
        "programs": names,
        "shapes": None if shapes is None else str(shapes),
        "layers": layers,
    }
    return {"mesh": dict(config.mesh), "targets": [_one(target, request, timeout, log) for target in parsed]}


def complete(result: dict[str, Any]) -> bool:
    """Whether every program of a plan compiles and fits. result: the result of `plan_job`."""
    targets = result["targets"]
    programs = [program for target in targets for program in target["programs"]]
    return not any("error" in part for part in (*targets, *programs)) and all(p.get("fits", True) for p in programs)


def save_plan(store: RunStore, result: dict[str, Any]) -> None:
    """Writes a plan to a run folder.

    Raises:
        DataError: the folder cannot be written.
    """
    store.files.put(PLAN, (json.dumps(result, indent=1) + "\n").encode("utf-8"))


def _one(target: Target, request: dict[str, Any], timeout: float, log: Callable[[str], None]) -> dict[str, Any]:
    """Compiles for one target in its own process. A crash or the time limit ends only this process."""
    result: dict[str, Any] = {
        "target": target.text,
        "devices": target.devices,
        "memory": target.memory,
        "programs": [],
        "notes": [],
    }
    process = subprocess.Popen(
        WORKER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env=environment(target),
        start_new_session=True,
    )
    over = threading.Event()

    def end() -> None:
        over.set()
        os.killpg(process.pid, signal.SIGKILL)

    errors: list[str] = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr or ()), daemon=True)
    reader.start()
    timer = threading.Timer(timeout, end)
    timer.start()
    started = time.perf_counter()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError):  # the process has ended; its exit code is reported below
            process.stdin.write(json.dumps({**request, "target": target.text}) + "\n")
            process.stdin.flush()  # stdin stays open, because the process ends when stdin ends
        for line in process.stdout:
            if not line.endswith("\n"):  # incomplete: the process was killed
                break
            record = json.loads(line)
            if "program" in record:
                result["programs"].append(record)
                log(f"{target.text}: {record['program']}: {record.get('error') or 'compiled'}")
            else:
                result |= record
        process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        with suppress(BrokenPipeError):
            process.stdin.close()
    reader.join()
    result["seconds"] = round(time.perf_counter() - started, 1)
    if over.is_set():
        result["error"] = f"stopped after {timeout:.0f} seconds; increase --timeout"
    elif process.returncode:
        last = [line.strip() for line in errors if line.strip() and not START_UP.match(line)][-1:] or ["no message"]
        result["error"] = f"the compiling process ended with exit code {process.returncode} ({last[0][:300]})"
    return result
