#!/usr/bin/env python3
"""Measures compile time, bytes and kernel launches of the decode loop for TPUs and GPUs that are not attached.

    python scripts/bench_compile.py [--targets h100:1 v5p:2x2x1 v6e:2x4] [--layers 1 0] [--teacher gpt-oss-20b | --alone]

The models are the teacher, Qwen3-8B, and two predictors of Qwen3-0.6B's shape, with 32 lanes of 4,096 tokens. `--alone`:
Qwen3-8B is the only writer, and there are no predictors. `--layers 0` means all layers. Prints one line of JSON per target:
wall seconds, processor seconds of the compiling process, seconds to trace, lower and compile, bytes per device, and for each
side the kernel launches of a step and of a hand-over. Of these, `models` belong to the models. Counts do not depend on the
machine that compiles.
"""

import argparse
import json
import resource
import time

from plan_pairs import ROOT  # scripts/ is the folder of this file

from tessy_jax.config import Synthesize
from tessy_jax.config.file import from_values
from tessy_jax.plan.job import plan_job

MESHES = {"h100:1": {}, "v5p:2x2x1": {"tensor": 4}, "v6e:2x4": {"tensor": 8}, "v5e:4x4": {"tensor": 8}}


def configuration(teacher: str, mesh: dict, alone: bool = False) -> Synthesize:
    """The configuration of the synthesis that is compiled. alone: the student is the only writer."""
    models = {"student": "Qwen/Qwen3-8B", "teacher": f"openai/{teacher}"}
    limits = {"max_prompt_tokens": 1024, "max_response_tokens": 3008, "lanes": 32, "repetition": {"window": 0}}
    return from_values(
        Synthesize,
        {
            "output": "runs/plan",
            "mesh": mesh,
            "data": {"path": "prompts.jsonl"},
            **{speaker: {"model": model} for speaker, model in models.items()},
            "boundary": {speaker: f"predictors/{speaker}" for speaker in models},
            "synthesis": limits | ({"recipe": "student_only"} if alone else {}),
        },
        [],
        "bench_compile",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", nargs="+", default=["h100:1", "v5p:2x2x1", "v6e:2x4"])
    parser.add_argument("--layers", nargs="+", type=int, default=[1])
    parser.add_argument("--teacher", default="gpt-oss-20b")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--timeout", type=int, default=5400)
    args = parser.parse_args()
    for layers in args.layers:
        for target in args.targets:
            config = configuration(args.teacher, MESHES.get(target, {}), args.alone)
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            (result,) = plan_job(
                config,
                [target],
                ["loop"],
                shapes=ROOT / "configs" / "models",
                layers=layers or None,
                timeout=args.timeout,
            )["targets"]
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            record = {"target": target, "layers": layers or "all", "wall": round(time.perf_counter() - started, 1)}
            record["processor"] = round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 1)
            program = (result["programs"] or [{}])[0]
            names = ("seconds", "bytes", "kernels", "steps", "collectives", "copies", "error")
            record |= {name: program[name] for name in names if name in program}
            record |= {"error": result["error"]} if "error" in result else {}
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
