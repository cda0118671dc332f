"""Builds the models of the miniature that the package ships: python scripts/build_mini.py

Trains teacher, students and predictors from scratch, from fixed seeds. A restart continues an interrupted build. Writes the
folders, with evaluation.json and build.log, to --output.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

from tessy_jax.mini.build import build

if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--output", type=Path, default=Path("tessy_jax/mini/checkpoints"))
    options.add_argument("--work", type=Path, default=Path(".cache/build_mini"), help="training runs, for a restart")
    options.add_argument("--students", type=int, default=3)
    args = options.parse_args()
    logging.basicConfig(level=logging.WARNING)
    args.output.mkdir(parents=True, exist_ok=True)
    began = time.time()
    with (args.output / "build.log").open("a", encoding="utf-8") as out:

        def log(text: str) -> None:
            line = f"{(time.time() - began) / 60:6.1f} min  {text}"
            print(line, flush=True)
            out.write(line + "\n")
            out.flush()

        summary = build(args.output, args.work, students=args.students, log=log)
        log(f"{summary['bytes'] / 1e6:.2f} MB in {args.output}")
