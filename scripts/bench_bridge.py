"""Checks and measures the device tokenizer.

python scripts/bench_bridge.py TOKENIZERS_DIR [--texts 1000000] [--lanes 128] [--names qwen3 gpt-oss deepseek-v3]

TOKENIZERS_DIR: a folder with one folder per tokenizer, which contains its tokenizer.json. For each tokenizer, `--texts`
random and adversarial texts arrive in random pieces. The device reads their words as the decode loop does, and their tokens
are compared with those of the `tokenizers` library. Each line reports the number of texts and tokens compared so far, the
number of texts that differ, and the texts per second of wall-clock and of processor time. `--seed` selects other texts.

Then `splits` and `closed` are measured on windows of 64 and 448 bytes: the kernels of the program compiled for this machine,
the seconds to compile it, and the milliseconds of a call. Both times are processor time.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tessy_jax.plan.hlo import Module, launches
from tessy_jax.text.bridge import device_bridge
from tests.text.chunks import SENTENCES
from tests.text.feed import NARROW, WIDE, differing

BATCH, PIECES, CALLS = 16_384, 6, 5


def check(name, content, bridge, texts, seed):
    wrong, tokens, done = [], 0, 0
    began, cpu = time.perf_counter(), time.process_time()
    while done < texts:
        count = min(BATCH, texts - done)
        found, compared, _ = differing(content, bridge, count, seed + done, most=PIECES, share=BATCH)
        wrong, tokens, done = wrong + found, tokens + compared, done + count
        speed = {"per_s": done / (time.perf_counter() - began), "per_cpu_s": done / (time.process_time() - cpu)}
        speed = {key: round(value) for key, value in speed.items()}
        print(json.dumps({"tokenizer": name, "texts": done, "tokens": tokens, "differ": len(wrong), **speed}), flush=True)
        for text in found[:10]:
            print(f"  differs: {text!r}", flush=True)


def measure(call, bridge, lanes, size):
    text = (SENTENCES[0] + " ").encode() * 12
    data = np.stack([np.frombuffer(text[i % 40 : i % 40 + size], np.uint8) for i in range(lanes)])
    arguments = bridge, data, np.full(lanes, size, np.int32)
    began = time.process_time()
    compiled = jax.jit(call).lower(*arguments).compile()
    seconds = time.process_time() - began
    module = Module.parse(compiled.as_text())
    jax.block_until_ready(compiled(*arguments))
    times = []
    for _ in range(CALLS):
        began = time.process_time()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.process_time() - began)
    return {
        "kernels": launches(module, module.entry).total,
        "compile_s": round(seconds, 1),
        "call_ms": round(1e3 * min(times), 2),
    }


def closed(bridge, data, counts):
    return bridge.closed(data, counts, counts < 0, 0 * counts, widest=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--lanes", type=int, default=128)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--names", nargs="+", default=["qwen3", "gpt-oss", "deepseek-v3"])
    args = parser.parse_args()
    calls = {"splits": lambda bridge, data, counts: bridge.splits(data, counts), "closed": closed}
    for name in args.names:
        content = json.loads((args.folder / name / "tokenizer.json").read_text("utf-8"))
        bridge = device_bridge(content)
        if bridge is None:
            raise SystemExit(f"{args.folder / name}: the tokenizer is not supported on the device")
        check(name, content, bridge, args.texts, args.seed)
        for size in (NARROW, WIDE):
            for what, call in calls.items():
                figures = measure(call, bridge, args.lanes, size)
                print(json.dumps({"tokenizer": name, "bytes": size, "call": what, **figures}), flush=True)


if __name__ == "__main__":
    main()
