"""The `tessy` command: parses, calls, turns errors into exit codes (0 done, 2 bad input or configuration, 1 else)."""

from __future__ import annotations

import argparse
import json
import os
import select
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tessy_jax import __version__
from tessy_jax.errors import TessyError

DTYPES = ("float32", "bfloat16")


def parser() -> argparse.ArgumentParser:
    """The command line, whole."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        "tessy",
        description="Teacher and student write SFT data together, on one device mesh.",
        epilog="example: tessy inspect --model Qwen/Qwen3-8B\n`tessy COMMAND --help` shows every option with an example",
        formatter_class=formatter,
    )
    top.add_argument("--version", action="version", version=f"tessy_jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, example: str, run: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  {example}", formatter_class=formatter
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        sub.set_defaults(run=run)
        return sub

    def configured(sub: argparse.ArgumentParser, example: str) -> None:
        sub.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, e.g. one of configs/")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=f"change one key, e.g. {example}")
        sub.add_argument("--json", action="store_true", help="print the summary as one JSON object")

    sub = command(
        "inspect",
        "Family, parameters, and bytes of weights and cache per token and per device, without loading weights.",
        "tessy inspect --model openai/gpt-oss-120b --mesh tensor=8 --lanes 104 --context 40960",
        inspect,
    )
    sub.add_argument("--model", required=True, help="Hugging Face folder, config.json, or hub name")
    sub.add_argument("--mesh", default="", help="axes and sizes, e.g. tensor=8,data=2 (axes: data, fsdp, tensor, expert)")
    sub.add_argument("--lanes", type=_positive, help="responses written at once (default: one per lane shard)")
    sub.add_argument("--context", type=_positive, help="tokens per lane (default: the model's maximum)")
    sub.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of weights and cache (default: bfloat16)")
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command(
        "generate",
        "One model continues prompts, in batches.",
        'tessy generate --model ./SmolLM2-135M-Instruct --chat --prompt "What is a monad?" --max-new-tokens 64',
        generate,
    )
    sub.add_argument("--model", required=True, help="Hugging Face folder or hub name")
    prompts = sub.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", help="one prompt")
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="JSONL whose rows have a `prompt`")
    sub.add_argument("--chat", action="store_true", help="put prompts into the chat template (else: continue raw text)")
    sub.add_argument("--max-new-tokens", type=_positive, default=256, metavar="N", help="per prompt (default: 256)")
    sub.add_argument("--temperature", type=_temperature, default=0.0, metavar="T", help="0 is greedy (default)")
    sub.add_argument("--seed", type=_natural, default=0, metavar="S", help="of sampling (default: 0)")
    sub.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="of weights and cache (default: bfloat16)")
    sub.add_argument("--mesh", default="", help="axes and sizes, e.g. tensor=2,data=4 (default: one device)")
    sub.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="prompts at once (default: 8)")
    sub.add_argument("--output", type=Path, metavar="FILE.jsonl", help="write rows there instead of printing text")

    sub = command(
        "run",
        "The whole job: predictors, data, training, evaluation before and after, and a report; started again, it goes on "
        "where it was.",
        "tessy run configs/mini.yaml --set rounds=2 --set output=runs/two_rounds",
        run_all,
    )
    configured(sub, "training.epochs=2")
    sub.add_argument("--distributed", action="store_true", help="one of several processes (jax.distributed)")

    sub = command(
        "compare",
        "The whole job in variants, for several students and seeds, and one table; started again, it goes on where it was.",
        "tessy compare configs/mini_table.yaml --set seeds=[0]",
        compare,
    )
    configured(sub, "training.epochs=2")

    sub = command(
        "synthesize",
        "Teacher and student write responses together, into a run folder; started again, it goes on where it was.",
        "tessy synthesize configs/small_pair.yaml --set data.path=prompts.jsonl --set synthesis.lanes=4",
        synthesize,
    )
    configured(sub, "synthesis.lanes=16")
    sub.add_argument("--dry-run", action="store_true", help="print memory, first prompts and programs; loads no weights")
    sub.add_argument("--distributed", action="store_true", help="one of several processes (jax.distributed)")

    sub = command(
        "train",
        "Fine-tunes the student on responses, into a run folder; started again, it goes on where it was.",
        "tessy train configs/small_train.yaml --set data.path=runs/small_pair --set training.epochs=2",
        train,
    )
    configured(sub, "training.rows=4")
    sub.add_argument("--distributed", action="store_true", help="one of several processes (jax.distributed)")

    sub = command(
        "boundary",
        "Makes boundary predictors: samples traces, annotates segments of them, trains on these, measures.",
        "tessy boundary sample configs/small_predictors.yaml\n  tessy boundary annotate configs/small_predictors.yaml\n"
        "  tessy boundary train configs/small_predictors.yaml --speaker student\n"
        "  tessy boundary eval configs/small_predictors.yaml",
        boundary,
    )
    sub.add_argument(
        "what",
        choices=("sample", "annotate", "train", "eval"),
        help="sample: traces of each speaker alone; annotate: what of them is style; train: a predictor; eval: measures and "
        "report.html",
    )
    configured(sub, "annotator.kind=rules")
    sub.add_argument("--speaker", choices=("student", "teacher"), help="this one only (default: all that are configured)")
    sub.add_argument("--skip-invalid", action="store_true", help="train, eval: leave out lines that are no annotation")

    sub = command(
        "evaluate",
        "Lets a model answer tasks, n times each, and judges the answers; started again, it goes on where it was.",
        "tessy evaluate evaluation.yaml --set student.model=runs/small_train/model --set output=runs/after",
        evaluate,
    )
    configured(sub, "synthesis.lanes=16")
    sub.add_argument("--distributed", action="store_true", help="one of several processes (jax.distributed)")

    sub = command(
        "export",
        "Writes a trained model, its adapter, or data as other programs read them: a folder, whole or not at all.",
        "tessy export model runs/small_train out/student --step 200\n  tessy export data runs/small_pair out/data\n"
        "  tessy export tokens configs/small_train.yaml out/tokens --set data.path=runs/small_pair",
        export,
    )
    sub.add_argument(
        "what",
        choices=("model", "adapter", "data", "tokens"),
        help="model: Hugging Face folder; adapter: for PEFT; data: Parquet with a card; tokens: tokenized, as trained on",
    )
    sub.add_argument("source", metavar="SOURCE", help="run folder; for tokens the YAML file of a training")
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="new folder to write")
    sub.add_argument("--step", type=_positive, metavar="N", help="model, adapter: of this checkpoint (default: the newest)")
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="tokens: change one key of SOURCE")

    sub = command(
        "rows",
        "Prints the finished responses of a run folder as JSONL, in the order of the input.",
        "tessy rows runs/small_pair > responses.jsonl",
        rows,
    )
    sub.add_argument("run_folder", metavar="RUN", help="the `output` of a synthesis run")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--failures", action="store_true", help="the failed ones instead")
    form.add_argument(
        "--legacy-dialogs", action="store_true", help="as {id_ddm, dialogs}, the form of the released data set"
    )
    return top


def inspect(args: argparse.Namespace) -> None:
    from tessy_jax.decode.generate import CHUNK
    from tessy_jax.models import hf
    from tessy_jax.models.hf_config import read_config
    from tessy_jax.models.plan import describe, plan
    from tessy_jax.sharding import Layout, parse_mesh, plan_mesh

    config = read_config(hf.resolve(args.model, weights=False))
    mesh = parse_mesh(args.mesh)
    lanes = args.lanes or Layout(plan_mesh(mesh)).ways("lanes")
    result = plan(config, dtype=args.dtype, mesh=mesh, lanes=lanes, context=args.context, slack=CHUNK)
    print(json.dumps({"model": args.model, **result}) if args.json else describe(args.model, result))


def generate(args: argparse.Namespace) -> None:
    from tessy_jax.sharding import Layout, parse_mesh
    from tessy_jax.synthesis.generate import check_output, generate_rows, read_prompts, write_rows

    if args.output is not None:
        check_output(args.output)
    rows = generate_rows(
        args.model,
        read_prompts(args.prompts) if args.prompts else [args.prompt],
        chat=args.chat,
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        seed=args.seed,
        dtype=args.dtype,
        layout=Layout.of(parse_mesh(args.mesh)),
        batch_size=args.batch_size,
    )
    if args.output is not None:
        write_rows(rows, args.output)
        print(f"{len(rows)} rows written to {args.output}")
        return
    for row in rows:
        print(row["text"])


def run_all(args: argparse.Namespace) -> None:
    from tessy_jax.config import Pipeline, read
    from tessy_jax.evaluate.job import BENCHES
    from tessy_jax.mini import evaluation
    from tessy_jax.pipeline import run
    from tessy_jax.processes import first, join
    from tessy_jax.report.runs import run_table

    config = read(Pipeline, args.config, args.set)
    if args.distributed:
        join()
    benches = {**BENCHES, **evaluation.BENCHES}
    summary = run(config, benches=benches, progress=not args.json, tell=lambda text: print(text, file=sys.stderr))
    if not first():
        return
    if args.json:
        print(json.dumps(summary))
    elif summary["finished"]:
        print(f"{run_table(config.output)}\n{config.output}/report.html has the rest")
    else:
        print(f"stopped in {config.output}; the same command goes on from there")


def compare(args: argparse.Namespace) -> None:
    from tessy_jax.compare import compare as run
    from tessy_jax.compare import table
    from tessy_jax.config import Comparison, read
    from tessy_jax.evaluate.job import BENCHES
    from tessy_jax.mini import evaluation

    config = read(Comparison, args.config, args.set)
    benches = {**BENCHES, **evaluation.BENCHES}
    summary = run(config, benches=benches, progress=not args.json, tell=lambda text: print(text, file=sys.stderr))
    if args.json:
        print(json.dumps(summary))
    else:
        print(table(summary) if summary["finished"] else f"stopped in {config.output}; the same command goes on from there")


def train(args: argparse.Namespace) -> None:
    from tessy_jax.config import Train, read
    from tessy_jax.processes import first, join
    from tessy_jax.train.job import train as run

    config = read(Train, args.config, args.set)
    if args.distributed:
        join()
    summary = run(config, progress=not args.json, tell=lambda text: print(text, file=sys.stderr)).summary
    if not first():
        return
    if args.json:
        print(json.dumps(summary))
        return
    ended = f"{summary['steps']} of {summary['steps_wanted']} steps, loss {summary['loss']:.4f}, in {config.output}"
    print(ended if summary["finished"] else f"{ended}; the same command goes on from there")


def synthesize(args: argparse.Namespace) -> None:
    from tessy_jax.config import load

    config = load(args.config, args.set)
    if args.dry_run:
        from tessy_jax.synthesis.dry_run import describe

        print(describe(config))
        return
    from tessy_jax.processes import first, join
    from tessy_jax.synthesis.job import synthesize as run

    if args.distributed:
        join()
    summary = run(config, progress=not args.json, tell=lambda text: print(text, file=sys.stderr)).summary
    if not first():
        return
    if args.json:
        print(json.dumps(summary))
        return
    whole = summary["run"]
    failed = sum(whole["failures"].values())
    print(f"{whole['responses']} responses, {failed} failures in {config.output}; tessy rows {config.output} prints them")


def boundary(args: argparse.Namespace) -> None:
    from tessy_jax.boundary.traces import sample, speakers_of
    from tessy_jax.boundary.train import annotate_traces, train_predictor
    from tessy_jax.config import Predictors, read
    from tessy_jax.report.predictors import evaluate_predictors

    def tell(text: str) -> None:
        print(text, file=sys.stderr)

    config = read(Predictors, args.config, args.set)
    found: dict[Any, Any]
    if args.what == "sample":
        found = sample(config, args.speaker, progress=not args.json, tell=tell)
    elif args.what == "annotate":
        found = annotate_traces(config, args.speaker, tell=tell)
    elif args.what == "eval":
        found = evaluate_predictors(config, args.speaker, skip_invalid=args.skip_invalid, tell=tell)
    else:
        how: dict[str, Any] = {"skip_invalid": args.skip_invalid, "progress": not args.json, "tell": tell}
        found = {speaker: train_predictor(config, speaker, **how) for speaker in speakers_of(config, args.speaker)}
    if args.json:
        print(json.dumps(found))
        return
    print(f"{args.what}: {', '.join(found) or 'nothing to do'}, in {config.output}")


def evaluate(args: argparse.Namespace) -> None:
    from tessy_jax.config import Evaluate, read
    from tessy_jax.evaluate.job import BENCHES
    from tessy_jax.evaluate.job import evaluate as run
    from tessy_jax.mini import evaluation
    from tessy_jax.processes import first, join

    config = read(Evaluate, args.config, args.set)
    benches = {**BENCHES, **evaluation.BENCHES}
    if args.distributed:
        join()
    summary = run(config, benches=benches, progress=not args.json, tell=lambda text: print(text, file=sys.stderr)).summary
    if not first():
        return
    if args.json:
        print(json.dumps(summary))
        return
    for name, task in summary["tasks"].items():
        for row, found in ((name, task), *((f"  {family}", found) for family, found in task["families"].items())):
            low, high = found["interval"]
            print(f"{row:<24} pass@1 {found['pass@1']:.1%} ({low:.1%} to {high:.1%}), {found['problems']} problems")


def export(args: argparse.Namespace) -> None:
    if args.what == "data":
        from tessy_jax.synthesis.publish import publish

        print(f"{publish(args.source, args.folder)} responses written to {args.folder}")
    elif args.what == "tokens":
        from tessy_jax.config import Train, read
        from tessy_jax.train.export import export_tokens

        count = export_tokens(read(Train, args.source, args.set), args.folder)
        print(f"{count} tokenized conversations written to {args.folder}")
    else:
        from tessy_jax.train.export import export_adapter, export_model

        step = (export_model if args.what == "model" else export_adapter)(args.source, args.folder, args.step)
        print(f"the {args.what} of step {step} written to {args.folder}")


def rows(args: argparse.Namespace) -> None:
    from tessy_jax.records import legacy
    from tessy_jax.synthesis.export import failures_in_order, rows_in_order

    if args.failures:
        for failure in failures_in_order(args.run_folder):
            print(json.dumps(failure.to_json(), ensure_ascii=False))
        return
    for row in rows_in_order(args.run_folder):
        print(json.dumps(legacy(row) if args.legacy_dialogs else row.to_json(), ensure_ascii=False))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to 2^32 - 1")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def _reader_left() -> bool:
    """Whether nobody reads what is printed any more, as after `| head`; then nothing is printed any more."""
    try:
        os.write(sys.stdout.fileno(), b"")
        readable = select.poll()
        readable.register(sys.stdout.fileno(), 0)
        gone = any(event & (select.POLLERR | select.POLLHUP) for _, event in readable.poll(0))
    except (OSError, ValueError):
        gone = True
    if gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return gone


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 0

        if args.debug:
            raise
        known = isinstance(error, TessyError)
        first = (str(error).strip().splitlines() or [""])[0]
        text = str(error) if known else f"{type(error).__name__}: {first} (--debug shows where)"
        print(f"tessy {args.command}: {text}", file=sys.stderr)
        return 2 if known else 1
    except KeyboardInterrupt:
        again = "; the same command goes on from there" if "config" in args else ""
        print(f"tessy {args.command}: interrupted{again}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
