"""The process that compiles for one target: `python -m tessy_jax.plan.worker`.

It reads a request as JSON from standard input and prints one JSON object per line: a record per program, then `notes`. If it
fails, the last object has `error`.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from tessy_jax.config import Evaluate, Pipeline, Synthesize, Train
from tessy_jax.errors import TessyError
from tessy_jax.plan.measure import measure
from tessy_jax.plan.models import Published
from tessy_jax.plan.programs import planned
from tessy_jax.plan.targets import parse_target, target_mesh_devices
from tessy_jax.sharding import Partitioner, make_mesh

KINDS: dict[str, Any] = {kind.__name__: kind for kind in (Pipeline, Synthesize, Train, Evaluate)}


def compile_all(request: dict[str, Any]) -> None:
    """Compiles the programs of a request: `kind` and `config` of a run, `target`, `programs`, `shapes` (folder of published
    shapes, or null) and `layers` (null: all)."""
    target = parse_target(request["target"])
    config = KINDS[request["kind"]].model_validate(request["config"])
    published = Published(None if request["shapes"] is None else Path(request["shapes"]), request["layers"])
    sizes = dict(config.mesh)
    mesh = make_mesh(sizes, target_mesh_devices(target, sizes))
    for program in planned(config, tuple(request["programs"]), Partitioner(mesh, absent=True), published):
        _print({"devices": math.prod(mesh.devices.shape), **measure(program, target, mesh)})
    _print({"notes": published.used})


def _print(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)


def main() -> int:
    """Reads a request and compiles its programs. Returns the exit code."""
    try:
        compile_all(json.loads(sys.stdin.read()))
    except TessyError as error:
        _print({"error": str(error)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
