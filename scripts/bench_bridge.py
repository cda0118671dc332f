"""Checks and measures the device's tokenizer.

python scripts/bench_bridge.py TOKENIZERS_DIR [--texts 1000000] [--lanes 128] [--names qwen3 gpt-oss deepseek-v3]

TOKENIZERS_DIR: a folder of folders with a tokenizer.json. Of each tokenizer, `--texts` random and adversarial texts arrive
in random pieces, and the tokens of every closed prefix are compared with those of the `tokenizers` library. Then one call of
`split`, `encode` and `closed` is measured for windows of 64 and 448 bytes: kernels in the program that is compiled for this
machine's device, compile seconds and milliseconds per call, both in processor time.
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
from tests.text.feed import differing

BATCH, CALLS = 25_600, 5


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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=1_000_000)
    parser.add_argument("--lanes", type=int, default=128)
    parser.add_argument("--names", nargs="+", default=["qwen3", "gpt-oss", "deepseek-v3"])
    args = parser.parse_args()
    calls = {
        "split": lambda bridge, data, counts: bridge.split(data, counts),
        "encode": lambda bridge, data, counts: bridge.encode(data, counts),
        "closed": lambda bridge, data, counts: bridge.closed(data, counts),
    }
    for name in args.names:
        content = json.loads((args.folder / name / "tokenizer.json").read_text("utf-8"))
        bridge = device_bridge(content)
        if bridge is None:
            raise SystemExit(f"{args.folder / name}: the tokenizer is not supported on the device")
        wrong, tokens, texts = [], 0, 0
        while texts < args.texts:
            count = min(BATCH, args.texts - texts)
            found, compared, _ = differing(content, bridge, count, seed=texts)
            wrong, tokens, texts = wrong + found, tokens + compared, texts + count
            print(json.dumps({"tokenizer": name, "texts": texts, "tokens": tokens, "differ": len(wrong)}), flush=True)
        for text in wrong[:10]:
            print(f"  differs: {text!r}")
        for size in (64, 448):
            for what, call in calls.items():
                print(
                    json.dumps({"tokenizer": name, "bytes": size, "call": what, **measure(call, bridge, args.lanes, size)})
                )


if __name__ == "__main__":
    main()
