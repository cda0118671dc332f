"""The commands and options of the command line."""

from __future__ import annotations

import argparse
from pathlib import Path

from tessy_jax import __version__

DTYPES = ("float32", "bfloat16")


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        "tessy",
        description="Writes SFT data with a teacher and a student on one device mesh, and fine-tunes the student on it.",
        epilog="example: tessy inspect --model Qwen/Qwen3-8B\n`tessy COMMAND --help` shows options and an example",
        formatter_class=formatter,
    )
    top.add_argument("--version", action="version", version=f"tessy_jax {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  {example}", formatter_class=formatter
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    def configured(sub: argparse.ArgumentParser, example: str, *, distributed: bool = False) -> None:
        sub.add_argument("config", type=Path, metavar="CONFIG", help="YAML file, e.g. one of configs/")
        sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=f"change one key, e.g. {example}")
        sub.add_argument("--json", action="store_true", help="print the summary as one JSON object")
        sub.set_defaults(distributed=False)
        if distributed:
            sub.add_argument("--distributed", action="store_true", help="run as one of several processes (jax.distributed)")

    def evaluating(sub: argparse.ArgumentParser) -> None:
        text = "run model-written programs in plain processes if no stronger sandbox is available"
        sub.add_argument("--unsafe", action="store_true", help=text)

    sub = command(
        "inspect",
        "Shows family, parameters, weight bytes and cache bytes of a model on a mesh. Loads no weights, needs no devices.",
        "tessy inspect --model openai/gpt-oss-120b --mesh tensor=8 --lanes 104 --context 40960",
    )
    sub.add_argument("--model", required=True, help="Hugging Face folder, config.json, or hub name")
    sub.add_argument("--mesh", default="", help="axes and sizes, e.g. tensor=8,data=2 (axes: data, fsdp, tensor, expert)")
    sub.add_argument("--lanes", type=_positive, help="responses written in parallel (default: one per lane shard)")
    sub.add_argument("--context", type=_positive, help="tokens per lane (default: the model's maximum)")
    sub.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="dtype of weights and cache (default: bfloat16)")
    sub.add_argument("--json", action="store_true", help="print one JSON object")

    sub = command(
        "generate",
        "Continues prompts with one model, in batches.",
        'tessy generate --model ./SmolLM2-135M-Instruct --chat --prompt "What is a monad?" --max-new-tokens 64',
    )
    sub.add_argument("--model", required=True, help="Hugging Face folder or hub name")
    prompts = sub.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompt", help="one prompt")
    prompts.add_argument("--prompts", metavar="FILE", help="file of rows with a `prompt`: JSONL, JSON, CSV, TSV or Parquet")
    sub.add_argument("--chat", action="store_true", help="apply the chat template (default: continue the raw text)")
    sub.add_argument(
        "--max-new-tokens", type=_positive, default=256, metavar="N", help="new tokens per prompt, at most (default: 256)"
    )
    sub.add_argument(
        "--temperature", type=_temperature, default=0.0, metavar="T", help="sampling temperature (default: 0, greedy)"
    )
    sub.add_argument("--seed", type=_natural, default=0, metavar="S", help="sampling seed (default: 0)")
    sub.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="dtype of weights and cache (default: bfloat16)")
    sub.add_argument("--mesh", default="", help="axes and sizes, e.g. tensor=2,data=4 (default: one device)")
    sub.add_argument("--batch-size", type=_positive, default=8, metavar="N", help="prompts per batch (default: 8)")
    sub.add_argument("--output", type=Path, metavar="FILE.jsonl", help="write rows to this file instead of printing text")

    sub = command(
        "plan",
        "Compiles the programs of a job for TPUs and GPUs that are not attached; shows seconds, memory, collectives and "
        "kernel launches. Needs no weights, no accelerator and no network.",
        "tessy plan configs/gpt-oss-120b_qwen3-8b.yaml --target h100:8 --target v5p:2x2x2",
    )
    configured(sub, "synthesis.lanes=16")
    sub.add_argument(
        "--target",
        action="append",
        metavar="T",
        help="cpu:8, h100:8, v5e:4x4, 2xv6e:2x4, …; repeatable (default: cpu with the devices of the mesh)",
    )
    sub.add_argument(
        "--programs", metavar="NAMES", help="of loop, fill, train, evaluate, e.g. loop,train (default: all of the job)"
    )
    sub.add_argument("--layers", type=_positive, metavar="N", help="plan each model with its first N layers (default: all)")
    sub.add_argument("--save", action="store_true", help="save plan.json in the run folder, for the report of `tessy run`")
    sub.add_argument(
        "--timeout", type=_positive, default=3600, metavar="SECONDS", help="time limit for each target (default: 3600)"
    )

    sub = command(
        "run",
        "Runs the complete job: predictors, data, training, evaluation before and after, and a report. Resumes an "
        "interrupted run.",
        "tessy run configs/mini.yaml --set rounds=2 --set output=runs/two_rounds",
    )
    configured(sub, "training.epochs=2", distributed=True)
    evaluating(sub)

    sub = command(
        "compare",
        "Runs variants of the complete job for several students and seeds; prints one table. Resumes an interrupted run.",
        "tessy compare configs/mini_table.yaml --set seeds=[0]",
    )
    configured(sub, "training.epochs=2", distributed=True)
    evaluating(sub)

    sub = command(
        "analyze",
        "Draws figures of a comparison or of run folders: similarity, words, lengths, quality, losses, accuracy.",
        "tessy analyze configs/mini_table.yaml\n"
        "  tessy analyze ours=runs/tessy theirs=runs/teacher_only --output runs/analysis",
    )
    sub.add_argument("sources", nargs="+", metavar="SOURCE", help="a comparison's YAML file, or run folders as name=folder")
    sub.add_argument(
        "--output", metavar="FOLDER", help="folder of the figures (default: `analysis` in the comparison's folder)"
    )
    sub.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change one key, e.g. analysis.words=20"
    )
    sub.add_argument("--json", action="store_true", help="print the summary as one JSON object")
    evaluating(sub)

    sub = command(
        "synthesize",
        "Writes responses with teacher and student into a run folder. Resumes an interrupted run.",
        "tessy synthesize configs/small_pair.yaml --set data.path=prompts.jsonl --set synthesis.lanes=4",
    )
    configured(sub, "synthesis.lanes=16", distributed=True)
    evaluating(sub)
    sub.add_argument(
        "--dry-run", action="store_true", help="print memory, first prompts and compiled programs; load no weights"
    )

    sub = command(
        "train",
        "Fine-tunes the student on responses and writes a run folder. Resumes an interrupted run.",
        "tessy train configs/small_train.yaml --set data.path=runs/small_pair --set training.epochs=2",
    )
    configured(sub, "training.batch_size=4", distributed=True)

    sub = command(
        "boundary",
        "Makes boundary predictors, one per speaker, in four steps: sample, annotate, train, eval.",
        "tessy boundary sample configs/small_predictors.yaml\n  tessy boundary annotate configs/small_predictors.yaml\n"
        "  tessy boundary train configs/small_predictors.yaml --speaker student\n"
        "  tessy boundary eval configs/small_predictors.yaml",
    )
    sub.add_argument(
        "what",
        choices=("sample", "annotate", "train", "eval"),
        help="sample: write traces of each speaker alone; annotate: mark style spans of their segments; train: train a "
        "predictor per speaker; eval: measure the predictors and write report.html",
    )
    configured(sub, "annotator.kind=rules")
    sub.add_argument("--speaker", choices=("student", "teacher"), help="only this speaker (default: every configured one)")
    sub.add_argument("--skip-invalid", action="store_true", help="train, eval: skip invalid annotation lines")

    sub = command(
        "evaluate",
        "Samples answers to tasks and verifies them. Resumes an interrupted run.",
        "tessy evaluate evaluation.yaml --set student.model=runs/small_train/model --set output=runs/after",
    )
    configured(sub, "synthesis.lanes=16", distributed=True)
    evaluating(sub)

    sub = command(
        "export",
        "Exports a trained model, its adapter, responses or tokens for other programs. Writes the folder completely or not "
        "at all.",
        "tessy export model runs/small_train out/student --step 200\n  tessy export data runs/small_pair out/data\n"
        "  tessy export tokens configs/small_train.yaml out/tokens --set data.path=runs/small_pair",
    )
    sub.add_argument(
        "what",
        choices=("model", "adapter", "data", "tokens"),
        help="model: Hugging Face folder; adapter: PEFT folder; data: Parquet with a card; tokens: tokenized training data",
    )
    sub.add_argument("source", metavar="SOURCE", help="run folder; for tokens, the YAML file of a training run")
    sub.add_argument("folder", type=Path, metavar="FOLDER", help="new folder to write")
    sub.add_argument(
        "--step", type=_positive, metavar="N", help="model, adapter: step of the checkpoint (default: the newest)"
    )
    sub.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="tokens: change one key of SOURCE")

    sub = command(
        "rows",
        "Prints the finished responses of a run folder as JSONL, in the order of the input.",
        "tessy rows runs/small_pair > responses.jsonl",
    )
    sub.add_argument("run_folder", metavar="RUN", help="run folder of a synthesis")
    form = sub.add_mutually_exclusive_group()
    form.add_argument("--failures", action="store_true", help="print the failed responses instead")
    form.add_argument(
        "--legacy-dialogs", action="store_true", help="print {id_ddm, dialogs} rows, the format of the released data set"
    )
    return top


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
