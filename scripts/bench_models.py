#!/usr/bin/env python3
"""Loading, greedy decoding and compiling, against Hugging Face transformers on the same machine.

    python scripts/bench_models.py MODELS_DIR [--part load decode compile] [--threads 2] [--new-tokens 64]

MODELS_DIR holds Hugging Face folders (here smollm2 and qwen-coder-0.5b). Needs the `test` extra (torch). Every figure is
printed as one JSON object per line, with counts that do not depend on the machine. Each measurement runs in a
process of its own, so that peak memory and compile counts are its own.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = Path(os.environ.get("TESSY_SHARED", ROOT.parent / "shared")) / "data" / "ojbench-examples.jsonl"
DTYPES = ("float32", "bfloat16")


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def load(model: str, dtype: str) -> dict:
    import jax

    from tessy_jax.models import hf

    jax.devices()
    before, start = peak_mb(), time.perf_counter()
    decoder = jax.block_until_ready(hf.load(model, dtype=dtype))
    seconds = time.perf_counter() - start
    weights = sum(x.nbytes for x in jax.tree.leaves(decoder)) / 2**20
    peak = peak_mb()
    return {
        "load_s": round(seconds, 2),
        "weights_mib": round(weights),
        "peak_mib": round(peak),
        "of_which_imports_mib": round(before),
        "limit_mib": round(1.5 * weights + 300),
        "within_limit": peak <= 1.5 * weights + 300,
    }


def prompts(tokenizer: object, count: int) -> list[list[int]]:
    texts = [json.loads(line)["prompt"] for line in PROMPTS.read_text().splitlines()]
    return [tokenizer(texts[i % len(texts)])["input_ids"] for i in range(count)]


def decode(model: str, dtype: str, batch: int, new: int, threads: int) -> dict:
    """Greedy decoding of the same prompts by both, in turns, in one process; the faster of three each."""
    import torch
    import transformers

    from tessy_jax.decode.generate import CHUNK, generate
    from tessy_jax.models import hf

    torch.set_num_threads(threads)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    ids = prompts(tokenizer, batch)
    longest = max(map(len, ids))
    ours = hf.load(model, dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).eval()
    padded = [[0] * (longest - len(p)) + p for p in ids]
    inputs = torch.tensor(padded)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in ids])

    def jax_run(tokens: int) -> tuple[float, list]:
        start = time.perf_counter()
        out = generate(ours, ids, max_new_tokens=tokens, eos_ids=[])
        return time.perf_counter() - start, [c.token_ids for c in out]

    def torch_run(tokens: int) -> tuple[float, list]:
        start = time.perf_counter()
        with torch.no_grad():
            out = theirs.generate(
                inputs,
                attention_mask=mask,
                max_new_tokens=tokens,
                min_new_tokens=tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return time.perf_counter() - start, out[:, longest:].tolist()

    runs = {"ours": jax_run, "transformers": torch_run}
    first = {name: run(new)[0] for name, run in runs.items()}
    short = {name: min(run(1)[0] for _ in range(3)) for name, run in runs.items()}
    long: dict = {name: [] for name in runs}
    tokens = {}
    for _ in range(3):
        for name, run in runs.items():
            seconds, tokens[name] = run(new)
            long[name].append(seconds)
    rate = {name: batch * (new - 1) / (min(long[name]) - short[name]) for name in runs}
    same = sum(a == b for a, b in zip(tokens["ours"], tokens["transformers"], strict=True))
    return {
        "ours_tokens_per_s": round(rate["ours"], 1),
        "transformers_tokens_per_s": round(rate["transformers"], 1),
        "ratio": round(rate["ours"] / rate["transformers"], 2),
        "prefill_s": {name: round(value, 2) for name, value in short.items()},
        "first_call_s": {name: round(value, 2) for name, value in first.items()},
        "same_continuations": f"{same}/{batch}",
        "prompt_tokens": [len(p) for p in ids],
        "decode_steps": new,
        "prefill_chunks": -(-(longest - 1) // CHUNK),
    }


def compile_seconds(layers: int, what: str) -> dict:
    """SmolLM2-135M's layer shape with another depth; random weights, float32, nothing cached."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from tessy_jax.decode import generate
    from tessy_jax.models.hf_config import parse_config
    from tessy_jax.models.transformer import Decoder

    config = parse_config(
        {
            "model_type": "llama",
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": layers,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "rope_theta": 100000,
            "tie_word_embeddings": True,
        }
    )
    decoder = Decoder(config, nnx.Rngs(0), stacked=what == "train")
    graph, params = nnx.split(decoder)
    if what == "train":

        def loss(params: object, tokens_BT: jax.Array) -> jax.Array:
            model = nnx.merge(graph, params)
            logits = jax.nn.log_softmax(model.logits(model(tokens_BT)[0]))
            return -jnp.take_along_axis(logits[:, :-1], tokens_BT[:, 1:, None], axis=-1).mean()

        arguments = (params, jnp.zeros((2, 128), jnp.int32))
        function = jax.jit(jax.value_and_grad(loss))
    else:
        lanes = generate._start(decoder, [[1] * 100] * 8, range(8), 64)
        arguments = (graph, params, lanes, jnp.array([0]), jnp.float32(0), jnp.uint32(0))
        function = generate.decode
    start = time.perf_counter()
    lowered = function.lower(*arguments)
    lowered_at = time.perf_counter()
    program = lowered.compile()
    figures = {
        "trace_s": round(lowered_at - start, 2),
        "compile_s": round(time.perf_counter() - lowered_at, 2),
        "temporaries_mib": round(program.memory_analysis().temp_size_in_bytes / 2**20, 1),
    }
    if what == "decode":  # the loop's body is counted once: one step, which has to read weights and cache
        ideal = sum(x.nbytes for x in jax.tree.leaves((params, lanes.cache.kv.pages)))
        figures["bytes_accessed_over_ideal"] = round(program.cost_analysis()["bytes accessed"] / ideal, 2)
    return figures


def child(arguments: list[object]) -> dict:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def report(**values: object) -> None:
    print(json.dumps(values), flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        part, *rest = sys.argv[2:]
        if part == "load":
            print(json.dumps(load(*rest)))
        elif part == "decode":
            print(json.dumps(decode(rest[0], rest[1], *map(int, rest[2:]))))
        else:
            print(json.dumps(compile_seconds(int(rest[0]), rest[1])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path)
    parser.add_argument("--part", nargs="+", choices=("load", "decode", "compile"), default=["load", "decode", "compile"])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--new-tokens", type=int, default=64)
    args = parser.parse_args()
    import jax

    report(machine=platform.processor() or platform.machine(), cores=os.cpu_count(), python=platform.python_version())
    report(jax=jax.__version__, date=time.strftime("%Y-%m-%d"))
    names = [p for p in sorted(args.models.iterdir(), reverse=True) if (p / "config.json").exists()]
    if "load" in args.part:
        for model in names:
            for dtype in DTYPES:
                report(part="load", model=model.name, dtype=dtype, **child(["load", model, dtype]))
    if "decode" in args.part:
        for model in names:
            for dtype in DTYPES:
                for batch in (1, 8):
                    figures = child(["decode", model, dtype, batch, args.new_tokens, args.threads])
                    report(part="decode", model=model.name, dtype=dtype, batch=batch, **figures)
    if "compile" in args.part:
        for what in ("train", "decode"):
            for layers in (8, 32):
                report(part="compile", program=what, layers=layers, **child(["compile", layers, what]))


if __name__ == "__main__":
    main()
