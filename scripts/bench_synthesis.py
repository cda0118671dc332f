"""Benchmark of the interleaved decode: our engine against the same algorithm on transformers (plain_tessy.py).

python scripts/bench_synthesis.py MODELS_DIR PROMPTS.jsonl [--responses 16] [--limit 300] [--dtype float32] [--skip-plain]

MODELS_DIR holds smollm2 (student) and qwen-coder-0.5b (teacher); the predictors are random ones (make_predictor.py). Every
attempt counts, also one that reaches the limit, and no attempt is repeated. Committed tokens are those that a system wrote
and kept. Seconds include reading prompts and writing, not loading and compiling.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

from make_predictor import make_predictor

COUNTS = (
    "passes",
    "occupancy",
    "caught_up_tokens",
    "prefilled_tokens",
    "shared_prompt_tokens",
    "predictor_passes",
    "host_syncs",
    "switches",
)


def ours(models: Path, prompts: Path, folder: Path, args: argparse.Namespace) -> dict:
    from tessy_jax.config import Synthesize
    from tessy_jax.synthesis.job import synthesize

    rows = sum(1 for line in prompts.read_text("utf-8").splitlines() if line.strip())
    thinking = {"open": args.open, "close": args.close}
    config = Synthesize.model_validate(
        {
            "output": str(folder / "run"),
            "data": {"path": str(prompts), "rollouts": -(-args.responses // rows)},
            "student": {"model": str(models / "smollm2"), "dtype": args.dtype, "thinking": thinking},
            "teacher": {"model": str(models / "qwen-coder-0.5b"), "dtype": args.dtype, "thinking": thinking},
            "boundary": {
                "student": str(folder / "student"),
                "teacher": str(folder / "teacher"),
                "dtype": args.dtype,
                "mode": args.mode,
            },
            "synthesis": {
                "max_prompt_tokens": 1024,
                "max_response_tokens": args.limit,
                "max_attempts": 1,
                "lanes": args.lanes,
                "pass_lanes": args.pass_lanes,
                "handover": args.handover,
                "repetition": {"window": 0},
            },
        }
    )
    return synthesize(config, progress=False).summary


def plain(models: Path, prompts: Path, folder: Path, args: argparse.Namespace) -> dict:
    import plain_tessy
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    texts = [json.loads(line)["prompt"] for line in prompts.read_text("utf-8").splitlines() if line.strip()]
    return plain_tessy.run(
        models / "smollm2",
        models / "qwen-coder-0.5b",
        folder / "student",
        folder / "teacher",
        [texts[i % len(texts)] for i in range(args.responses)],
        open=args.open,
        close=args.close,
        max_response_tokens=args.limit,
        dtype=args.dtype,
        deadline_s=args.most_seconds,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("--responses", type=int, default=8)
    parser.add_argument("--limit", type=int, default=200)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--mode", choices=("online", "rollback"), default="online")
    parser.add_argument("--flip-rate", type=float, default=0.12)
    parser.add_argument("--lanes", type=int, default=8)
    parser.add_argument("--pass-lanes", type=int, help="lanes that a forward pass continues (default: all)")
    parser.add_argument("--handover", type=float, default=0.5)
    parser.add_argument("--open", default="<think>\n")
    parser.add_argument("--close", default="\n</think>\n\n")
    parser.add_argument("--most-seconds", type=float, help="of the plain version; what it has committed by then counts")
    parser.add_argument("--skip-plain", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed, speaker in enumerate(("student", "teacher")):
            make_predictor(folder / speaker, args.models / "smollm2", seed, args.flip_rate, cuts_at=seed)
        print(f"{args.dtype}, {args.mode}, flip rate {args.flip_rate}, limit {args.limit}, {args.lanes} lanes", flush=True)
        a = ours(args.models, args.prompts, folder, args)
        committed = {k: a["kept_tokens"][k] + a["failed_tokens"][k] for k in a["kept_tokens"]}
        rate = sum(committed.values()) / a["seconds_running"]
        discarded = sum(a["discarded_tokens"].values())
        print(f"ours: {sum(committed.values())} committed tokens in {a['seconds_running']:.1f} s, {rate:.2f} tok/s")
        print(f"  committed {committed}, discarded/generated {discarded / (sum(committed.values()) + discarded):.4f}")
        for key in COUNTS:
            print(f"  {key}: {a[key]}")
        busy = {k: round(a["lane_passes"][k] / max(committed[k], 1), 3) for k in committed}
        print(f"  lane passes per committed token: {busy}")
        print(f"  host syncs per committed token: {a['host_syncs'] / sum(committed.values()):.5f}")
        print(f"  responses {a['responses']}, failures {a['failures']}; compile {a['compile_seconds']} s:")
        for c in a["compilations"]:
            temporaries = f"{c['temporary_bytes'] / 2**20:.1f} MiB of temporaries"
            print(f"    {c['name']}: {c['seconds']:.1f} s, {temporaries}")
        if args.skip_plain:
            return
        b = plain(args.models, args.prompts, folder, args)
        kept, other = sum(b["kept_tokens"].values()), sum(b["generated_tokens"].values())
        print(f"plain: {kept} committed tokens in {b['seconds']:.1f} s, {kept / b['seconds']:.2f} tok/s")
        print(f"  committed {b['kept_tokens']}, discarded/generated {1 - kept / other:.4f}")
        for key in ("prefill_seconds", "passes", "lane_passes", "predictor_passes", "switches", "statuses"):
            print(f"  {key}: {b[key]}")
        print(f"ratio {rate / (kept / b['seconds']):.2f}")


if __name__ == "__main__":
    main()
