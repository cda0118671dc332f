#!/usr/bin/env python3
"""Benchmark of the decode loop on the miniature: compile time and kept tokens per second.

    python scripts/bench_loop.py [--lanes 128] [--responses 256] [--preset paper] [--mode online]

Prints one line of JSON. `compile` has the wall-clock and processor seconds of tracing and compiling, without the compilation
cache: the difference between the first and the second run. `seconds` and `processor` are those of the second run, which
compiles nothing. `kept` counts the tokens that the responses keep, each in the vocabulary of its writer. `digest` is a hash
of the responses; a change of the loop must not change it.
"""

import argparse
import hashlib
import json
import resource
import time
from pathlib import Path

import jax

from tessy_jax.config import Synthesize, reconcile
from tessy_jax.sharding import Partitioner
from tessy_jax.synthesis.job import prompts_of
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.synthesis.prompts import jobs
from tessy_jax.synthesis.scheduler import Scheduler, Task

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "tessy_jax" / "mini" / "checkpoints"
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}


def configuration(args: argparse.Namespace) -> Synthesize:
    """The synthesis of configs/mini.yaml."""
    writers = {"student": "student-0", "teacher": "teacher"}
    return Synthesize.model_validate(
        {
            "output": "runs/none",
            "data": {"path": str(ROOT / "configs" / "mini_prompts.jsonl"), "limit": args.responses},
            **{
                w: {"model": str(MODELS / folder), "dtype": "float32", "sampling": SAMPLING} for w, folder in writers.items()
            },
            "boundary": {w: str(MODELS / f"predictor-{w}") for w in writers} | {"dtype": "float32", "mode": args.mode},
            "synthesis": {
                "preset": args.preset,
                "max_prompt_tokens": 40,
                "max_response_tokens": 168,
                "lanes": args.lanes,
            },
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=128)
    parser.add_argument("--responses", type=int, default=256)
    parser.add_argument("--preset", default="paper", choices=("paper", "reference"))
    parser.add_argument("--mode", default="online", choices=("online", "rollback"))
    args = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    config = reconcile(configuration(args), None)
    models = ModelSet(config, Partitioner.of(config.mesh))
    all_jobs = jobs(prompts_of(config.data, None).prompts, config.data.rollouts)
    for number in range(2):
        engine = models.engine()
        used, started = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
        scheduler = Scheduler(models, engine, [Task(job) for job in all_jobs])
        rows = [row for done, _ in scheduler.dispatches() for row in done]
        seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
        processor = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        if number == 0:
            first = seconds, processor
    loops = [c for c in engine.compilations if c.name == "loop"]
    texts = sorted((row.id, json.dumps([row.messages, row.spans], default=str)) for row in rows)
    kept = int(scheduler.tally.kept.sum())
    print(
        json.dumps(
            {
                "lanes": args.lanes,
                "preset": args.preset,
                "mode": args.mode,
                "responses": len(rows),
                "compile": {"wall": round(first[0] - seconds, 1), "processor": round(first[1] - processor, 1)},
                "loops": len(loops),
                "seconds": round(seconds, 1),
                "processor": round(processor, 1),
                "kept": kept,
                "kept_per_second": round(kept / seconds, 1),
                "passes": [int(n) for n in engine.totals.passes],
                "predictor_passes": [int(n) for n in engine.totals.predictor_passes],
                "rounds": int(engine.totals.rounds),
                "digest": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:12],
            }
        )
    )


if __name__ == "__main__":
    main()
