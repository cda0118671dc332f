"""Benchmark of fine-tuning: our step against torch/transformers, each system in processes of its own.

python scripts/bench_train.py MODELS_DIR [--max-seq-len 512] [--batch-size 8] [--steps 3]
    [--dtype float32 bfloat16] [--remat none full]

MODELS_DIR holds smollm2. A step is forward, backward, clipping and AdamW on rows full of random tokens, all of them targets;
master weights are float32 in both. Tokens/s are of the fastest step after the first; peak memory is the process's.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

RATE = 1e-5


def batch_of(args):
    return np.random.default_rng(0).integers(10, 40_000, (args.batch_size, args.max_seq_len)).astype(np.int32)


def print_rates(seconds, losses, args, **more):
    peak = psutil.Process().memory_info()
    high = getattr(peak, "peak_wset", None) or int(_status("VmHWM")) * 1024
    best = min(seconds[1:])
    print(
        json.dumps(
            {
                "tokens_per_second": round(args.batch_size * args.max_seq_len / best, 1),
                "seconds": [round(s, 2) for s in seconds],
                "losses": [round(loss, 4) for loss in losses],
                "peak_mib": high >> 20,
                **more,
            }
        )
    )


def _status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return line.split()[1]
    raise SystemExit(f"/proc/self/status has no {name}")


def ours(args):
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from tessy_jax.models import hf
    from tessy_jax.train.pack import Batch
    from tessy_jax.train.step import State, train_step

    graph, params, frozen = nnx.split(hf.load(args.models / "smollm2", dtype=jnp.float32, stacked=True), nnx.Param, ...)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.01))
    state = State(params, optimizer.init(params), jnp.int32(0))
    tokens = batch_of(args)
    targets = np.roll(tokens, -1, axis=1)
    kinds = np.ones(tokens.shape, np.uint8)
    kinds[:, -1] = 0
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], Batch(tokens, np.ones_like(tokens), targets, kinds))
    weights = jnp.asarray([0.0, 1.0])
    start = time.perf_counter()
    step = jax.jit(
        lambda s, b, w: train_step(graph, optimizer, jnp.dtype(args.dtype[0]), args.remat[0], s, frozen, b, w),
        donate_argnums=0,
    )
    program = step.lower(state, batch, weights).compile()
    compile_seconds = time.perf_counter() - start
    seconds, losses = [], []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        state, sums, _ = program(state, batch, weights)
        losses.append(float(sums.loss) / float(sums.weight))
        seconds.append(time.perf_counter() - start)
    temporary = program.memory_analysis().temp_size_in_bytes >> 20
    print_rates(seconds, losses, args, compile_seconds=round(compile_seconds, 1), temporaries_mib=temporary)


def theirs(args):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(os.cpu_count() or 1)
    model = AutoModelForCausalLM.from_pretrained(args.models / "smollm2", dtype=torch.float32).train()
    if args.remat[0] != "none":
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    tokens = torch.from_numpy(batch_of(args)).long()
    seconds, losses = [], []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype[0] == "bfloat16"):
            loss = model(tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    print_rates(seconds, losses, args)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--max-seq-len", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--remat", nargs="+", choices=("none", "dots", "full"), default=["none", "full"])
    parser.add_argument("--only", choices=("ours", "theirs"), help=argparse.SUPPRESS)  # a process of its own
    args = parser.parse_args()
    if args.only:
        (ours if args.only == "ours" else theirs)(args)
        return
    for dtype in args.dtype:
        for remat in args.remat:
            rates = {}
            for system in ("ours", "theirs"):
                command = [sys.executable, __file__, args.models, "--max-seq-len", args.max_seq_len]
                command += ["--batch-size", args.batch_size, "--steps", args.steps]
                command += ["--dtype", dtype, "--remat", remat, "--only", system]
                done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise SystemExit(done.stderr[-2000:])
                result = json.loads(done.stdout.splitlines()[-1])
                rates[system] = result["tokens_per_second"]
                print(f"{dtype} remat {remat} {system}: {json.dumps(result)}", flush=True)
            print(f"{dtype} remat {remat} ratio {rates['ours'] / rates['theirs']:.2f}", flush=True)


if __name__ == "__main__":
    main()
