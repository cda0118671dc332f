"""The `tessy` command: parses arguments, calls the job, and maps errors to exit codes.

Exit codes: 0 done, 2 bad input or configuration, 1 any other error, or a plan whose programs do not all compile and fit.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import select
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

from tessy_jax.arguments import parser
from tessy_jax.errors import DataError, TessyError
from tessy_jax.gpu_memory import claim_gpu_memory


def inspect(args: argparse.Namespace) -> None:
    from tessy_jax.decode.engine import CACHE_SLACK
    from tessy_jax.models import hf
    from tessy_jax.models.hf_config import read_config
    from tessy_jax.models.plan import describe, plan
    from tessy_jax.sharding import Partitioner, parse_mesh, plan_mesh

    config = read_config(hf.resolve(args.model, weights=False))
    mesh = parse_mesh(args.mesh)
    lanes = args.lanes or Partitioner(plan_mesh(mesh)).num_shards("lanes")
    result = plan(config, dtype=args.dtype, mesh=mesh, lanes=lanes, context=args.context, slack=CACHE_SLACK)
    print(json.dumps({"model": args.model, **result}) if args.json else describe(args.model, result))


def plan(args: argparse.Namespace) -> int:
    from tessy_jax.plan.job import check_request, complete, plan_job, read_any, save_plan
    from tessy_jax.plan.report import show
    from tessy_jax.store import RunStore

    config = read_any(args.config, args.set)
    targets = args.target or [f"cpu:{math.prod(config.mesh.values())}"]
    programs = args.programs.split(",") if args.programs is not None else ()
    check_request(config, targets, programs)  # before a run folder is created
    with RunStore(config.output) if args.save else nullcontext() as store:
        result = plan_job(
            config,
            targets,
            programs,
            shapes=args.config.parent / "models",
            layers=args.layers,
            timeout=args.timeout,
            log=print_message,
        )
        try:
            if args.json:
                print(json.dumps(result))
            else:
                show(str(args.config), result)
        finally:
            if store is not None:
                save_plan(store, result)
    return 0 if complete(result) else 1


def generate(args: argparse.Namespace) -> None:
    from tessy_jax.sharding import Partitioner, parse_mesh
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
        partitioner=Partitioner.of(parse_mesh(args.mesh)),
        batch_size=args.batch_size,
    )
    if args.output is not None:
        write_rows(rows, args.output)
        print(f"{len(rows)} rows written to {args.output}")
        return
    for row in rows:
        print(row["text"])


def print_message(text: str) -> None:
    print(text, file=sys.stderr)


def finish(args: argparse.Namespace, kind: Any, job: Any, shown: Any) -> Any:
    """Runs the job of a configuration, in one process or as one of several, prints its summary and returns it.

    kind: class of the configuration. shown: formats configuration and summary for people; --json prints the summary instead.
    """
    from tessy_jax.backend import use_kernels
    from tessy_jax.compile_cache import keep_programs
    from tessy_jax.config import read
    from tessy_jax.processes import initialize, is_primary

    config = read(kind, args.config, args.set)
    if args.distributed:
        initialize()
    use_kernels(config.kernels == "auto")
    keep_programs(config.compile_cache, print_message if is_primary() else lambda text: None)
    summary = job(config, progress=not args.json, log=print_message)
    if is_primary():
        print(json.dumps(summary) if args.json else shown(config, summary))
    return summary


def task_kinds(args: argparse.Namespace) -> dict[str, Any]:
    """All task kinds by verifier, including the miniature's."""
    from tessy_jax.evaluate.job import TASK_KINDS
    from tessy_jax.evaluate.programs.verifier import task_kind
    from tessy_jax.mini import evaluation

    return {**TASK_KINDS, **evaluation.TASK_KINDS, "programs": task_kind(unsafe=args.unsafe)}


def response_verifiers(args: argparse.Namespace) -> Any:
    """The verifiers of responses during synthesis, including the miniature's."""
    from tessy_jax.evaluate import verification

    return verification.response_verifiers(task_kinds(args))


def run_all(args: argparse.Namespace) -> None:
    from tessy_jax.config import Pipeline
    from tessy_jax.pipeline import run
    from tessy_jax.report.load_run import run_table

    def shown(config: Any, summary: Any) -> str:
        if not summary["finished"]:
            return f"stopped in {config.output}; the same command resumes it"
        return f"{run_table(config.output)}\nreport: {config.output}/report.html"

    finish(args, Pipeline, partial(run, task_kinds=task_kinds(args)), shown)


def compare(args: argparse.Namespace) -> None:
    from tessy_jax.compare import compare as run
    from tessy_jax.compare import tables
    from tessy_jax.config import Comparison

    def shown(config: Any, summary: Any) -> str:
        return tables(summary) if summary["finished"] else f"stopped in {config.output}; the same command resumes it"

    finish(args, Comparison, partial(run, task_kinds=task_kinds(args)), shown)


def analyze(args: argparse.Namespace) -> None:
    from tessy_jax.analyze.job import analyze as run
    from tessy_jax.analyze.job import configured

    summary = run(
        configured(args.sources, args.output, args.set), args.output, task_kinds=task_kinds(args), log=print_message
    )
    output = summary["output"]
    shown = f"{len(summary['figures'])} figures in {output}/figures; report: {output}/report.html"
    print(json.dumps(summary) if args.json else shown)


def train(args: argparse.Namespace) -> None:
    from tessy_jax.config import Train
    from tessy_jax.train.job import train as run

    def shown(config: Any, summary: Any) -> str:
        ended = f"{summary['steps']} of {summary['steps_wanted']} steps, loss {summary['loss']:.4f}, in {config.output}"
        return ended if summary["finished"] else f"{ended}; the same command resumes it"

    finish(args, Train, lambda config, **options: run(config, **options).summary, shown)


def synthesize(args: argparse.Namespace) -> None:
    from tessy_jax.config import Synthesize, load

    if args.dry_run:
        from tessy_jax.synthesis.dry_run import describe

        print(describe(load(args.config, args.set), response_verifiers(args)))
        return
    from tessy_jax.synthesis.job import synthesize as run

    def shown(config: Any, summary: Any) -> str:
        totals, place = summary["run"], config.output
        reasons = ", ".join(f"{count} {reason}" for reason, count in totals["failures"].items())
        failed = f"{sum(totals['failures'].values())} failures{reasons and f' ({reasons})'}"
        return f"{totals['responses']} responses, {failed} in {place}; tessy rows {place} [--failures] prints them"

    summary = finish(
        args, Synthesize, lambda config, **options: run(config, verifiers=response_verifiers(args), **options).summary, shown
    )
    if not summary["run"]["responses"]:
        raise DataError(
            "every response failed; `tessy rows --failures` gives the reasons: shorten or repair the prompts, raise "
            "synthesis.max_response_tokens or synthesis.max_attempts, and set output to a new folder"
        )


def boundary(args: argparse.Namespace) -> None:
    from tessy_jax.boundary.predictor_eval import evaluate_predictors
    from tessy_jax.boundary.traces import sample, speakers_of
    from tessy_jax.boundary.train import annotate_traces, train_predictor
    from tessy_jax.config import Predictors
    from tessy_jax.report.predictor_page import save_predictor_page

    def job(config: Any, progress: bool, log: Any) -> dict[Any, Any]:
        if args.what == "sample":
            return sample(config, args.speaker, progress=progress, log=log)
        if args.what == "annotate":
            return dict(annotate_traces(config, args.speaker, log=log))
        if args.what == "eval":
            evaluations = evaluate_predictors(config, args.speaker, skip_invalid=args.skip_invalid, log=log)
            save_predictor_page(config.output, evaluations)
            return {speaker: dict(evaluation.metrics) for speaker, evaluation in evaluations.items()}
        options: dict[str, Any] = {"skip_invalid": args.skip_invalid, "progress": progress, "log": log}
        return {speaker: train_predictor(config, speaker, **options) for speaker in speakers_of(config, args.speaker)}

    def shown(config: Any, by_speaker: Any) -> str:
        return f"{args.what}: {', '.join(by_speaker) or 'nothing to do'}, in {config.output}"

    finish(args, Predictors, job, shown)


def evaluate(args: argparse.Namespace) -> None:
    from tessy_jax.config import Evaluate
    from tessy_jax.evaluate.job import evaluate as run

    def shown(config: Any, summary: Any) -> str:
        lines = []
        for name, task in summary["tasks"].items():
            families = ((f"  {family}", measures) for family, measures in task["families"].items())
            for row, measures in ((name, task), *families):
                low, high = measures["interval"]
                by_grader = measures.get("graders", {}).items()
                graders = "".join(f", {grader} {result['pass@1']:.1%}" for grader, result in by_grader)
                share = f"{measures['pass@1']:.1%} ({low:.1%} to {high:.1%})"
                lines.append(f"{row:<24} pass@1 {share}, {measures['problems']} problems{graders}")
        return "\n".join(lines)

    finish(args, Evaluate, lambda config, **options: run(config, task_kinds=task_kinds(args), **options).summary, shown)


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


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "inspect": inspect,
    "plan": plan,
    "generate": generate,
    "run": run_all,
    "compare": compare,
    "analyze": analyze,
    "synthesize": synthesize,
    "train": train,
    "boundary": boundary,
    "evaluate": evaluate,
    "export": export,
    "rows": rows,
}


def _reader_left() -> bool:
    """Whether the reader of standard output is gone, as after `| head`. If so, further output is discarded."""
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
    claim_gpu_memory()
    try:
        code = COMMANDS[args.command](args)
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return 0

        if args.debug:
            raise
        known = isinstance(error, TessyError)
        first = (str(error).strip().splitlines() or [""])[0]
        text = str(error) if known else f"{type(error).__name__}: {first} (--debug shows the traceback)"
        print(f"tessy {args.command}: {text}", file=sys.stderr)
        return 2 if known else 1
    except KeyboardInterrupt:
        resume = "; the same command resumes it" if "config" in args and args.command != "plan" else ""
        print(f"tessy {args.command}: interrupted{resume}", file=sys.stderr)
        return 1
    return code or 0


if __name__ == "__main__":
    sys.exit(main())
