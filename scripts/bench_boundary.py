"""Benchmark of making boundary predictors, against torch/transformers, each system in processes of its own, and of their
cost in the decode loop.

python scripts/bench_boundary.py MODELS_DIR TRACES [--segments 32] [--steps 2] [--dtype float32] [--only-train]
python scripts/bench_boundary.py MODELS_DIR TRACES --loop RUN --predictor FOLDER

MODELS_DIR holds smollm2, the backbone and the annotator. TRACES: a run folder or JSONL of responses with thinking. train: a
step (forward, backward, clipping, AdamW) on so many segments of 60 words, packed by us, padded by them; tokens/s are of the
segments' own tokens, in the fastest step after the first. annotate: segments/s of greedy replies of 64 tokens to our
instruction. --loop: the share of a synthesis' running time that its predictors took: passes of its summary, times the
seconds of one pass of that predictor measured here, alone.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

WORDS, RATE, REPLY = 60, 1e-5, 64


def segments_of(args):
    from tessy_jax.boundary.rules import Rules
    from tessy_jax.boundary.segments import segments
    from tessy_jax.boundary.traces import rows
    from tessy_jax.config import Predictors

    config = Predictors.model_validate(
        {"output": "unused", "traces": {"student": str(args.traces)}, "segments": {"words": WORDS, "per_trace": 4}}
    )
    cut = segments(rows(config, "student"), config.segments, seed=0, open_text="<think>", close_text="</think>").segments
    full = [s for s in cut if len(s.text.split()) == WORDS]
    if len(full) < args.segments:
        raise SystemExit(f"{args.traces} has {len(full)} segments of {WORDS} words, {args.segments} are asked for")
    return Rules(None).annotate(full[: args.segments])


def tokens(args):
    from tessy_jax.boundary.examples import reader, tokens_of

    tokenizer = reader(args.models / "smollm2")
    return [tokens_of(annotation, tokenizer) for annotation in segments_of(args)]


def print_rates(seconds, count, **more):
    print(json.dumps({"per_second": round(count / min(seconds[1:]), 2), "seconds": [round(s, 3) for s in seconds], **more}))


def train_ours(args):
    import jax
    import jax.numpy as jnp
    import optax
    from flax import nnx

    from tessy_jax.boundary.examples import examples
    from tessy_jax.config.predictors import PredictorTraining
    from tessy_jax.models import hf
    from tessy_jax.models.labels import CLASSES
    from tessy_jax.train.data import BatchPlan
    from tessy_jax.train.pack import pack
    from tessy_jax.train.step import State, train_step

    data = examples(tokens(args), 200)
    size = PredictorTraining().max_seq_len
    rows = len(pack(data.lengths, size, seed=0, epoch=0))
    plan = BatchPlan(data, size, rows, seed=0)
    rows_of_batch = plan.epoch(0)[0]
    batch = jax.tree.map(lambda x: jnp.asarray(x)[None], plan.assembled(rows_of_batch))
    count = int(data.lengths[[i for row in rows_of_batch for i in row]].sum())
    model = hf.load(args.models / "smollm2", dtype=jnp.float32, stacked=True, classes=CLASSES)
    graph, params, frozen = nnx.split(model, nnx.Param, ...)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(RATE, weight_decay=0.01))
    state = State(params, optimizer.init(params), jnp.int32(0))
    step = jax.jit(
        lambda s, b, w: train_step(graph, optimizer, jnp.dtype(args.dtype), "full", s, frozen, b, w), donate_argnums=0
    )
    seconds, losses, weights = [], [], jnp.asarray([0.0, 1.0, 1.0])
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        state, sums, _ = step(state, batch, weights)
        losses.append(float(sums.loss) / float(sums.weight))
        seconds.append(time.perf_counter() - start)
    print_rates(
        seconds, count, tokens=count, padding=round(1 - count / (rows * size), 4), losses=[round(x, 4) for x in losses]
    )


def train_theirs(args):
    import torch
    from transformers import AutoModelForTokenClassification

    torch.set_num_threads(os.cpu_count() or 1)
    parts = tokens(args)
    longest = max(len(part.ids) for part in parts)
    ids, labels, seen = (np.full((len(parts), longest), fill) for fill in (0, -100, 0))
    for i, part in enumerate(parts):
        n = len(part.ids)
        ids[i, :n], seen[i, :n] = part.ids, 1
        labels[i, : n - 1] = part.labels[: n - 1]
    model = AutoModelForTokenClassification.from_pretrained(args.models / "smollm2", num_labels=2, dtype=torch.float32)
    model.train().gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    ids, labels, seen = (torch.from_numpy(x).long() for x in (ids, labels, seen))
    seconds, losses = [], []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
            logits = model(ids, attention_mask=seen).logits
            loss = torch.nn.functional.cross_entropy(logits.float().view(-1, 2), labels.view(-1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        seconds.append(time.perf_counter() - start)
    count = int(seen.sum())
    print_rates(
        seconds, count, tokens=count, padding=round(1 - count / seen.numel(), 4), losses=[round(x, 4) for x in losses]
    )


def prompts(args, tokenizer):
    from tessy_jax.boundary.spans import INSTRUCTION

    texts = [annotation.segment.text for annotation in segments_of(args)]
    messages = [[{"role": "user", "content": INSTRUCTION.format(text=text)}] for text in texts]
    return [tokenizer.apply_chat_template(m, add_generation_prompt=True, tokenize=False) for m in messages]


def annotate_ours(args):
    from tessy_jax.boundary.annotate import LocalModel
    from tessy_jax.config.predictors import Annotator
    from tessy_jax.sharding import Partitioner

    section = {"kind": "model", "model": {"model": str(args.models / "smollm2"), "dtype": args.dtype}}
    section |= {"batch": args.segments, "max_new_tokens": REPLY}
    annotator = LocalModel(Annotator.model_validate(section), partitioner=Partitioner(), seed=0)
    parts = [annotation.segment for annotation in segments_of(args)]
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        annotator.annotate(parts)
        seconds.append(time.perf_counter() - start)
    print_rates(seconds, len(parts))


def annotate_theirs(args):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(os.cpu_count() or 1)
    dtype = getattr(torch, args.dtype)
    model = AutoModelForCausalLM.from_pretrained(args.models / "smollm2", dtype=dtype).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.models / "smollm2", padding_side="left")
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        batch = tokenizer(prompts(args, tokenizer), return_tensors="pt", padding=True, add_special_tokens=False)
        with torch.no_grad():
            model.generate(**batch, max_new_tokens=REPLY, do_sample=False)
        seconds.append(time.perf_counter() - start)
    print_rates(seconds, args.segments)


def loop(args):
    """The time of one pass of a predictor over all lanes, and its share of a run."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from tessy_jax.decode.predictor_window import new_predictor_state, predict
    from tessy_jax.models import hf
    from tessy_jax.sharding import Partitioner

    summary = json.loads((args.loop / "summary.json").read_text())
    model = hf.load(args.predictor, dtype=args.dtype)
    graph, params = nnx.split(model)
    lanes = summary["lanes"]
    state = new_predictor_state(model.config, lanes, 200, 256, model.embed.dtype, Partitioner())
    step = jax.jit(
        lambda p, j, t: predict(graph, p, j, t, jnp.ones(lanes, jnp.int32), 100, jnp.float32(0)), donate_argnums=1
    )
    ids, seconds = jnp.ones((lanes, 1), jnp.int32), []
    for _ in range(60):
        start = time.perf_counter()
        state, labels = step(params, state, ids)
        jax.block_until_ready(labels)
        seconds.append(time.perf_counter() - start)
    each = sorted(seconds[5:])[len(seconds[5:]) // 2]
    passes = sum(summary["predictor_passes"].values())
    share = passes * each / summary["seconds_running"]
    print(f"one pass over {lanes} lanes: {1000 * each:.1f} ms; {passes:.0f} passes in {summary['seconds_running']:.0f} s: "
          f"{share:.1%} of the loop")  # fmt: skip


TASKS = {"train": (train_ours, train_theirs), "annotate": (annotate_ours, annotate_theirs)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("traces", type=Path)
    parser.add_argument("--segments", type=int, default=32)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--only-train", action="store_true")
    parser.add_argument("--loop", type=Path)
    parser.add_argument("--predictor", type=Path)
    parser.add_argument("--only", nargs=2, help=argparse.SUPPRESS)  # a process of its own
    args = parser.parse_args()
    if args.only:
        TASKS[args.only[0]][int(args.only[1])](args)
        return
    if args.loop:
        loop(args)
        return
    for task in TASKS if not args.only_train else ("train",):
        rates = []
        for system, name in enumerate(("ours", "theirs")):
            command = [sys.executable, __file__, args.models, args.traces, "--segments", args.segments]
            command += ["--steps", args.steps, "--dtype", args.dtype, "--only", task, system]
            done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-2000:])
            result = json.loads(done.stdout.splitlines()[-1])
            rates.append(result["per_second"])
            print(f"{task} {args.dtype} {name}: {json.dumps(result)}", flush=True)
        print(f"{task} {args.dtype} ratio {rates[0] / rates[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
