#!/usr/bin/env python3
"""Writes the tables of configs/README.md: the paper's models and pairs on real slices, planned without weights.

    python scripts/plan_pairs.py            # print the tables
    python scripts/plan_pairs.py --write    # put them into configs/README.md

Every row is what `tessy inspect --model configs/models/NAME --mesh … --json` prints; a pair adds teacher, student and two
boundary predictors. Lanes that fit: cache of both large models at 40,960 tokens in 90 % of the memory that weights leave.
"""

import sys
from math import prod
from pathlib import Path

from tessy_jax.decode.generate import CHUNK
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.plan import plan
from tessy_jax.sharding import parse_mesh

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
CONTEXT = 40_960
PREDICTOR = "qwen3-0.6b-base"
# memory in GB of one device
DEVICES = {"H100": 80, "v5p": 95, "v6e": 32}
PAIRS = (
    ("gpt-oss-20b", "qwen3-8b", ("1 H100 data=1", "4 H100 tensor=4", "4 v5p tensor=4", "8 v6e tensor=8")),
    ("gpt-oss-120b", "qwen3-8b", ("8 H100 tensor=8", "4 v5p tensor=4", "8 v5p tensor=8", "16 v6e tensor=8,expert=2")),
    ("gpt-oss-120b", "qwen3-30b-a3b", ("8 H100 tensor=4,expert=2", "8 v5p tensor=4,expert=2", "16 v6e tensor=4,expert=4")),
    (
        "qwen3-235b-a22b-thinking",
        "qwen3-8b",
        ("8 H100 tensor=4,expert=2", "8 v5p tensor=4,expert=2", "32 v6e tensor=4,expert=8"),
    ),
    (
        "deepseek-r1",
        "qwen3-8b",
        ("32 H100 tensor=8,expert=4", "32 v5p tensor=8,expert=4", "64 v6e tensor=8,expert=8", "128 v6e tensor=8,expert=16"),
    ),
)
BEGIN, END = "<!-- tables: scripts/plan_pairs.py -->\n", "<!-- end of tables -->\n"


def gb(number: float) -> str:
    return f"{number / 1e9:.1f}"


def model_table() -> str:
    rows = [
        "| model | family | total | active | weights GB (bfloat16) | cache KiB / token | window MiB / lane |",
        "|---|---|---|---|---|---|---|",
    ]
    for folder in sorted((CONFIGS / "models").iterdir()):
        p = plan(read_config(folder), dtype="bfloat16", slack=CHUNK)
        total, active = (p["parameters"][key] / 1e9 for key in ("total", "active"))
        rows.append(
            f"| {folder.name} | {p['family']} | {total:.2f}B | {active:.2f}B | {gb(p['weights']['bytes'])} "
            f"| {p['kv']['bytes_per_token'] / 1024:g} | {p['kv']['window_bytes_per_lane'] / 2**20:g} |"
        )
    return "\n".join(rows) + "\n"


def pair_table() -> str:
    rows = [
        "| teacher → student | slice | mesh | weights GB / device | cache GB / device (1 lane a shard) | lanes that fit |",
        "|---|---|---|---|---|---|",
    ]
    for teacher, student, slices in PAIRS:
        for text in slices:
            count, kind, mesh = text.split()
            sizes = parse_mesh(mesh)
            assert prod(sizes.values()) == int(count), text
            shards = sizes.get("data", 1) * sizes.get("fsdp", 1) * sizes.get("expert", 1)
            plans = [
                plan(
                    read_config(CONFIGS / "models" / name),
                    dtype="bfloat16",
                    mesh=sizes,
                    lanes=shards,
                    context=CONTEXT,
                    slack=CHUNK,
                )
                for name in (teacher, student, PREDICTOR, PREDICTOR)
            ]
            weights = sum(p["weights"]["bytes_per_device"] for p in plans)
            lane = sum(p["kv"]["bytes_per_device"] for p in plans[:2])
            fit = int((0.9 * DEVICES[kind] * 1e9 - weights) // lane) * shards
            cells = (
                f"{teacher} → {student}",
                f"{count} × {kind}",
                f"`{mesh}`",
                gb(weights),
                gb(lane),
                max(fit, 0) or "none",
            )
            rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows) + "\n"


def tables() -> str:
    return f"\n{model_table()}\n{pair_table()}\n"


def main() -> None:
    text = tables()
    if sys.argv[1:] != ["--write"]:
        print(text)
        return
    readme = CONFIGS / "README.md"
    before, _, rest = readme.read_text("utf-8").partition(BEGIN)
    readme.write_text(before + BEGIN + text + END + rest.partition(END)[2], "utf-8")


if __name__ == "__main__":
    main()
