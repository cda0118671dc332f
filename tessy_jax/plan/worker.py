"""The process that compiles for one target: `python -m tessy_jax.plan.worker`.

It reads a request as one line of JSON from standard input and writes one JSON object per line to standard output: a record
per program, then `notes`. If it fails, the last object has `error`. The output of libraries goes to standard error. The
process and its children end when standard input ends, for example because the parent was killed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessy_jax.errors import TessyError


def compile_all(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Compiles the programs of a request and yields the records. request: `kind` and `config` of a run, `target`,
    `programs`, `shapes` (folder of published shapes, or null) and `layers` (null: all).

    Raises:
        TessyError: the target or a model is refused.
    """
    # imported after `main` has redirected stdout, because libraries may print on import
    from tessy_jax.backend import tracing_for, use_kernels
    from tessy_jax.config import Evaluate, Pipeline, Synthesize, Train
    from tessy_jax.plan.measure import measure
    from tessy_jax.plan.models import Published
    from tessy_jax.plan.programs import planned
    from tessy_jax.plan.targets import parse_target, target_mesh_devices
    from tessy_jax.sharding import Partitioner, make_mesh

    target = parse_target(request["target"])
    kinds: dict[str, Any] = {kind.__name__: kind for kind in (Pipeline, Synthesize, Train, Evaluate)}
    config = kinds[request["kind"]].model_validate(request["config"])
    published = Published(None if request["shapes"] is None else Path(request["shapes"]), request["layers"])
    sizes = dict(config.mesh)
    mesh = make_mesh(sizes, target_mesh_devices(target, sizes))
    use_kernels(config.kernels == "auto")
    with tracing_for(target.backend):
        for program in planned(config, tuple(request["programs"]), Partitioner(mesh, absent=True), published):
            yield measure(program, target, mesh)
    yield {"notes": published.used}


def _end_with_parent() -> None:
    """Waits for the end of standard input, then kills the process group."""
    while os.read(0, 1):  # a read of sys.stdin would hold a lock at exit
        pass
    os.killpg(0, signal.SIGKILL)


def main() -> int:
    """Reads a request and compiles its programs. Returns the exit code."""
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as records:
        os.dup2(2, 1)
        try:
            for record in compile_all(request):
                print(json.dumps(record), file=records, flush=True)
        except TessyError as error:
            print(json.dumps({"error": str(error)}), file=records, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
