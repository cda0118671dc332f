#!/usr/bin/env python3
"""Compiles the decode loop and a training step of the model pairs of configs/ for TPUs and GPUs that are not attached.

    python scripts/plan_pairs.py                          # pairs that scripts/plans.jsonl lacks; hours on two cores
    python scripts/plan_pairs.py --only h100 --layers 1   # quick; prints the results and does not save them

Each result is a line of scripts/plans.jsonl with its date and versions. scripts/document_configs.py generates a table of
configs/README.md from this file. Needs the extras plan-tpu and plan-gpu, but no weights, devices or network.
"""

import argparse
import datetime
import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from tessy_jax.config import Train
from tessy_jax.config.file import from_values
from tessy_jax.plan.job import plan_job, read_any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "scripts" / "plans.jsonl"
STUDENTS = {
    "gpt-oss-120b_qwen3-30b-a3b": "Qwen/Qwen3-30B-A3B",
    "small_pair": "HuggingFaceTB/SmolLM2-135M-Instruct",
}
LONGEST = {"small_pair": 8_192}
"""Tokens per training row for students with fewer than 40,960 positions."""
PAIRS = (
    ("small_pair", "h100:1", {}),
    ("small_pair", "v5e:1x1", {}),
    ("gpt-oss-20b_qwen3-8b_h100", "h100:1", {}),
    ("gpt-oss-20b_qwen3-8b_h100", "v6e:2x4", {"tensor": 8}),
    ("gpt-oss-120b_qwen3-8b", "h100:8", {"tensor": 8}),
    ("gpt-oss-120b_qwen3-8b", "v5p:2x2x2", {"tensor": 8}),
    ("gpt-oss-120b_qwen3-30b-a3b", "h100:8", {"tensor": 4, "expert": 2}),
    ("gpt-oss-120b_qwen3-30b-a3b", "v5p:2x2x2", {"tensor": 4, "expert": 2}),
    ("qwen3-235b_qwen3-8b", "h100:8", {"tensor": 4, "expert": 2}),
    ("qwen3-235b_qwen3-8b", "v5p:2x2x2", {"tensor": 4, "expert": 2}),
    ("deepseek-r1_qwen3-8b", "h100:32", {"tensor": 8, "expert": 4}),
    ("deepseek-r1_qwen3-8b", "v5p:4x4x2", {"tensor": 8, "expert": 4}),
)
TRAINING = {"dtype": "bfloat16", "remat": "full", "steps": 100}


def training_of(student: str, devices: int, tokens: int) -> Train:
    """The configuration of SFT with one row of `tokens` tokens per device."""
    values = {
        "output": "runs/plan",
        "mesh": {"fsdp": devices} if devices > 1 else {},
        "student": {"model": student},
        "data": {"path": "rows"},
        "training": TRAINING | {"batch_size": devices, "max_seq_len": tokens},
    }
    return from_values(Train, values, [], "plan_pairs")


def planned(name: str, target: str, mesh: dict, layers: int | None, timeout: int) -> dict:
    """Compiles a pair for a target and returns its record."""
    file = ROOT / "configs" / f"{name}.yaml"
    shown = ", ".join(f"{axis}: {size}" for axis, size in mesh.items())
    loop = read_any(file, [f"mesh={{{shown}}}"])
    options = {"shapes": ROOT / "configs" / "models", "layers": layers, "timeout": timeout}
    results = [plan_job(loop, [target], ["loop"], **options)["targets"][0]]
    devices = results[0]["devices"]
    training = training_of(STUDENTS.get(name, "Qwen/Qwen3-8B"), devices, LONGEST.get(name, 40_960))
    results.append(plan_job(training, [target], ["train"], **options)["targets"][0])
    return {
        "pair": name,
        "target": target,
        "mesh": mesh,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip(),
        "versions": {package: version(package) for package in ("jax", "jaxlib", "flax")},
        "loop": results[0],
        "train": results[1],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="only pairs and targets whose names contain this text")
    parser.add_argument("--layers", type=int, help="number of layers of every model; prints the results only")
    parser.add_argument("--again", action="store_true", help="compile pairs again that have results")
    parser.add_argument("--timeout", type=int, default=5400, help="seconds for each program")
    args = parser.parse_args()
    known = [json.loads(line) for line in RESULTS.read_text("utf-8").splitlines()] if RESULTS.exists() else []
    there = {(record["pair"], record["target"]) for record in known}
    for name, target, mesh in PAIRS:
        if args.only not in f"{name} {target}" or ((name, target) in there and not (args.again or args.layers)):
            continue
        record = planned(name, target, mesh, args.layers, args.timeout)
        line = json.dumps(record)
        if args.layers:
            print(line, flush=True)
            continue
        known = [k for k in known if (k["pair"], k["target"]) != (name, target)] + [record]
        RESULTS.write_text("".join(json.dumps(k) + "\n" for k in known), "utf-8")
        print(f"{name} on {target}: done", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
