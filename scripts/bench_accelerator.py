"""Benchmark on one accelerator with models of real size and random weights: decoding against the bandwidth bound, training
against the peak of bfloat16 products.

python scripts/bench_accelerator.py decode TOKENIZERS_DIR [--teacher qwen3-8b] [--lanes 32] [--prompt 512] [--limit 256]
python scripts/bench_accelerator.py train [--layers 8] [--max-seq-len 4096] [--batch-size 2] [--remat full dots none]

Shapes are those of configs/models, the student Qwen3-8B's; TOKENIZERS_DIR holds qwen3 and gpt-oss. decode: random predictors
of Qwen3-0.6B's shape whose labels flip at about --flip-rate; nothing ends before --limit. The bound is that of reading all
weights and every lane's cache once for a token of every lane, at the device's bandwidth. train: AdamW on float32 master
weights with some of the layers, rows full of random tokens in documents of half a row; MFU counts those layers' products,
attention and the head. Seconds are without compiling.
"""

import argparse
import json
import math
import shutil
import tempfile
import time
from pathlib import Path
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "models"
TOKENIZERS = {"qwen3-8b": "qwen3", "gpt-oss-20b": "gpt-oss", "qwen3-0.6b-base": "qwen3"}
BANDWIDTH = {"H100": 3.35e12, "H200": 4.8e12}
HARMONY = """\
<|start|>system<|message|>Reasoning: high<|end|>\
{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}\
{% if add_generation_prompt %}<|start|>assistant{% endif %}"""
"""GPT-OSS's chat format in short: its tokenizer files hold no template."""
TEXT = "The river has n rocks and we may take away m of them; find the largest possible shortest jump. "


def print_result(**fields):
    print(json.dumps({"device": jax.devices()[0].device_kind, **fields}), flush=True)


def size_of(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def built(config, seed, dtype=jnp.bfloat16, **options):
    from tessy_jax.models.transformer import Decoder

    return nnx.jit(lambda: Decoder(config, nnx.Rngs(seed), dtype=dtype, **options))()


def folder_of(place, name, tokenizers, layers, **changes):
    """A model's folder without weights."""
    place.mkdir(parents=True)
    raw = json.loads((CONFIGS / name / "config.json").read_text("utf-8"))
    raw.pop("quantization_config", None)
    if layers:
        raw["num_hidden_layers"] = min(layers, raw["num_hidden_layers"])
    (place / "config.json").write_text(json.dumps(raw | changes), "utf-8")
    for file in (tokenizers / TOKENIZERS[name]).iterdir():
        shutil.copyfile(file, place / file.name)
    if name == "gpt-oss-20b":
        (place / "chat_template.jinja").write_text(HARMONY, "utf-8")
    return str(place)


def writer_of(writer, seed):
    """Random weights that never end a response: tokens that are no text have the score 0, which is not among the best."""
    model = built(writer.config, seed)
    control = jnp.asarray(writer.vocabulary.control)
    model.head.kernel[...] = jnp.where(control, 0, model.head.kernel[...])
    return model


def predictor_of(predictor, seed, rate, cuts_at):
    """Random weights, with a bias that gives the cutting label about the frequency `rate`."""
    model = built(predictor.config, seed)
    spread = 0.02 * math.sqrt(2 * predictor.config.embed)
    shift = spread * NormalDist().inv_cdf(1 - rate)
    model.score.bias[...] = jnp.asarray([0.0, shift if cuts_at == 0 else -shift], model.score.bias[...].dtype)
    return model


def decode(args):
    from tessy_jax.config import Synthesize, reconcile
    from tessy_jax.decode.engine import Engine
    from tessy_jax.models.labels import CLASSES
    from tessy_jax.models.plan import plan
    from tessy_jax.sharding import Partitioner
    from tessy_jax.synthesis.model_set import ModelSet
    from tessy_jax.synthesis.prompts import Job, Prompt
    from tessy_jax.synthesis.scheduler import Scheduler, Task

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        labels = {"num_labels": 2, "id2label": dict(enumerate(CLASSES))}
        labels |= {"architectures": ["Qwen3ForTokenClassification"]}
        predictor = folder_of(place / "predictor", "qwen3-0.6b-base", args.tokenizers, args.layers, **labels)
        models = {
            "student": folder_of(place / "student", "qwen3-8b", args.tokenizers, args.layers),
            "teacher": folder_of(place / "teacher", args.teacher, args.tokenizers, args.layers),
        }
        config = Synthesize.model_validate(
            {
                "output": str(place / "run"),
                "data": {"path": str(place / "none.jsonl")},
                **{speaker: {"model": model} for speaker, model in models.items()},
                "boundary": {"student": predictor, "teacher": predictor},
                "synthesis": {
                    "max_prompt_tokens": args.prompt + 200,
                    "max_response_tokens": args.limit,
                    "max_attempts": 1,
                    "lanes": args.lanes,
                    "repetition": {"window": 0},
                },
            }
        )
        models = ModelSet(reconcile(config, None), Partitioner.of({}))
    writers = [writer_of(writer, i) for i, writer in enumerate(models.writers)]
    predictors = [predictor_of(p, 10 + i, args.flip_rate, i) for i, p in enumerate(models.predictors)]
    engine = Engine(
        writers,
        predictors,
        models.text_tables(),
        models.loop_config,
        models.decode_params(),
        lanes=args.lanes,
        tokens=args.prompt + 200 + args.limit,
    )
    text = TEXT * (args.prompt // 20)
    tasks = [Task(Job(Prompt(f"p{i}", [{"role": "user", "content": f"{i}: {text}"}], i), 0)) for i in range(args.lanes)]
    scheduler = Scheduler(models, engine, tasks)
    start = time.perf_counter()
    scheduler._fill()
    jax.block_until_ready(engine.lanes)
    print([[c.name, round(c.trace_seconds + c.compile_seconds, 1)] for c in engine.compilations], flush=True)
    filled = time.perf_counter() - start - scheduler.start_seconds
    before = scheduler.running_seconds
    for _ in scheduler.dispatches():
        pass
    seconds = scheduler.running_seconds - before
    tally, totals = scheduler.tally, engine.totals
    committed = (tally.kept + tally.failed).sum()
    weights = size_of(engine.weights)
    per_token = sum(plan(v.config, dtype="bfloat16", slack=0)["kv"]["bytes_per_token"] for v in models.writers)
    cache_bytes = (
        per_token * (totals.prefilled + totals.shared).sum() / len(models.writers) / args.lanes + per_token * args.limit / 2
    )
    bandwidth = next((b for n, b in BANDWIDTH.items() if n in jax.devices()[0].device_kind), None)
    bound = None if bandwidth is None else args.lanes / ((weights + args.lanes * cache_bytes) / bandwidth)
    rate = committed / seconds
    print_result(
        teacher=args.teacher,
        layers=[len(v.config.windows) for v in models.writers],
        lanes=args.lanes,
        committed_tokens=int(committed),
        tokens_per_second=round(float(rate), 1),
        bound=bound and round(bound, 1),
        goodput=bound and round(float(rate / bound), 4),
        discarded_share=round(float(tally.discarded.sum() / tally.generated.sum()), 4),
        passes=[int(n) for n in totals.passes],
        occupancy=[round(float(b / (p * args.lanes)), 3) for b, p in zip(totals.sampled, totals.passes, strict=True)],
        rows=[int(n) for n in totals.rows],
        predictor_passes=[int(n) for n in totals.predictor_passes],
        milliseconds_per_pass=round(1000 * seconds / float(totals.passes.sum()), 2),
        host_syncs_per_committed=round(totals.host_syncs / float(committed), 5),
        seconds=round(seconds, 2),
        prefill={"tokens": int(totals.prefilled.sum()), "shared": int(totals.shared.sum()), "seconds": round(filled, 2)},
        weight_gb=round(weights / 1e9, 2),
        cache_mb_per_lane=round(cache_bytes / 1e6, 1),
        one_vocabulary=models.one_vocabulary,
        compile=[
            [c.name, round(c.trace_seconds + c.compile_seconds, 1), c.temporary_bytes >> 20] for c in engine.compilations
        ],
    )


def train(args):
    import optax

    from tessy_jax.models.hf_config import read_config, shortened
    from tessy_jax.train.flops import active_parameters, peak_flops, step_flops
    from tessy_jax.train.pack import Batch
    from tessy_jax.train.step import State, train_step

    config = shortened(read_config(CONFIGS / "qwen3-8b"), args.layers)
    for remat in args.remat:
        graph, params, frozen = nnx.split(built(config, 0, jnp.float32, stacked=True), nnx.Param, ...)
        optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, weight_decay=0.01))
        state = State(params, jax.jit(optimizer.init)(params), jnp.int32(0))
        shape, half = (args.batch_size, args.max_seq_len), args.max_seq_len // 2
        tokens = np.random.default_rng(0).integers(10, 100_000, shape).astype(np.int32)
        segments = np.tile(np.arange(args.max_seq_len) // half + 1, (args.batch_size, 1)).astype(np.int32)
        batch = Batch(tokens, segments, np.roll(tokens, -1, 1), np.ones(shape, np.uint8))
        batch = jax.tree.map(lambda x: jnp.asarray(x)[None], batch)
        weights = jnp.asarray([0.0, 1.0])
        start = time.perf_counter()

        def step(s, f, b, w, graph=graph, optimizer=optimizer, remat=remat):
            return train_step(graph, optimizer, jnp.bfloat16, remat, s, f, b, w)

        try:
            program = jax.jit(step, donate_argnums=0).lower(state, frozen, batch, weights).compile()
            compiled = time.perf_counter() - start
            seconds = []
            for _ in range(args.steps + 1):
                start = time.perf_counter()
                state, sums, _ = program(state, frozen, batch, weights)
                loss = float(sums.loss) / float(sums.weight)
                seconds.append(time.perf_counter() - start)
        except jax.errors.JaxRuntimeError as error:
            print_result(remat=remat, failed=str(error).splitlines()[0][:200])
            continue
        finally:
            del state, params
        flops = step_flops(config, active_parameters(config), np.full(2 * args.batch_size, half))
        peak = peak_flops("bfloat16", 1)
        print_result(
            remat=remat,
            layers=args.layers,
            max_seq_len=args.max_seq_len,
            batch_size=args.batch_size,
            tokens_per_second=round(tokens.size / min(seconds[1:]), 1),
            mfu=peak and round(flops / min(seconds[1:]) / peak, 4),
            seconds=[round(s, 3) for s in seconds],
            loss=round(loss, 4),
            compile_seconds=round(compiled, 1),
            temporaries_mib=program.memory_analysis().temp_size_in_bytes >> 20,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    sub = parts.add_parser("decode")
    sub.add_argument("tokenizers", type=Path)
    sub.add_argument("--teacher", choices=("qwen3-8b", "gpt-oss-20b"), default="qwen3-8b")
    sub.add_argument("--lanes", type=int, default=32)
    sub.add_argument("--prompt", type=int, default=512, help="tokens, about")
    sub.add_argument("--limit", type=int, default=256)
    sub.add_argument("--layers", type=int, help="of every model at most (default: all)")
    sub.add_argument("--flip-rate", type=float, default=0.12)
    sub = parts.add_parser("train")
    sub.add_argument("--layers", type=int, default=8)
    sub.add_argument("--max-seq-len", type=int, default=4096)
    sub.add_argument("--batch-size", type=int, default=2)
    sub.add_argument("--steps", type=int, default=3)
    sub.add_argument("--remat", nargs="+", choices=("none", "dots", "full"), default=["full", "dots"])
    args = parser.parse_args()
    (decode if args.part == "decode" else train)(args)


if __name__ == "__main__":
    main()
