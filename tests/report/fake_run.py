"""Writes the run folder of a pipeline without any model; the text comes from the miniature's grammar."""

import json
from itertools import islice
from pathlib import Path

import numpy as np
import yaml

from tessy_jax.config.evaluation import Items, Task
from tessy_jax.evaluate.summary import VerifiedResponse, summarize
from tessy_jax.evaluate.tasks import Problem, Verdict
from tessy_jax.mini.rows import row as response
from tessy_jax.mini.tasks import items
from tessy_jax.records import Failure, Row, Span
from tessy_jax.store import RunStore
from tessy_jax.store.job_folder import BEFORE_STAGE, Stage, dump_stages

TASKS = [
    Task(name="sums", mini=Items(families=["Ae", "Ah"]), verifier="mini", domain="in"),
    Task(name="letters", mini=Items(families=["B"]), verifier="mini", domain="out"),
]
SKILL = {"Ae": (0.9, 0.93), "Ah": (0.15, 0.55), "B": (0.72, 0.7)}
"""Share of right answers per family, before and after a round."""


def build(
    output,
    *,
    rounds=1,
    teacher=True,
    before=True,
    failures=True,
    scores=True,
    evaluation_file=True,
    predictors=False,
    summary=True,
    prompts=24,
    problems=40,
    steps=400,
    text=None,
    epochs=(),
):
    """Writes the run folder. text: replaces all free text. epochs: epochs of a hundred steps after which the student is
    evaluated."""
    output = Path(output)
    config = {
        "output": str(output),
        "rounds": rounds,
        "student": {"model": text or "models/small-student"},
        "teacher": {"model": "models/large-teacher"} if teacher else None,
        "synthesis": {"recipe": "tessy" if teacher else "student_only"},
    }
    with RunStore(str(output)) as store:
        store.save_config(yaml.safe_dump(config))
        stages = {BEFORE_STAGE: 61.24} if before else {}
        if predictors:
            _predictors(output / "predictors")
        if before:
            evaluation(output / "before", 0, problems, text)
        for number in range(1, rounds + 1):
            place = output / f"round-{number}"
            synthesis(place / "synthesis", number, prompts, teacher=teacher, failures=failures, scores=scores, text=text)
            training(place / "training", number, steps, teacher=teacher, evaluation_file=evaluation_file, epochs=epochs)
            for epoch in epochs:
                evaluation(place / "epochs" / f"{epoch:03}", number, problems, text, epoch)
            evaluation(place / "evaluation", number, problems, text)
            for stage, seconds in (("synthesis", 512.7), ("training", 3721.0), ("evaluation", 59.6)):
                stages[Stage(stage, number)] = seconds
        if summary:
            store.save_summary(
                {
                    "rounds": rounds,
                    "finished": True,
                    "stages": dump_stages(stages),
                    "peak_memory": {"host_bytes": 3 << 30, "device_bytes": None},
                    "devices": ["cpu:0", "1 in all"],
                    "versions": {"tessy_jax": "0.1.0", "jax": "0.10.0"},
                }
            )
    return str(output)


def replaced(row, text):
    """Returns the row with all free text replaced by `text`."""
    if text is None:
        return row
    content, spans = "", []
    for span in row.spans:
        part = row.content[span.start : span.end] if span.source == "template" else text
        spans.append(Span(span.source, span.phase, len(content), len(content) + len(part)))
        content += part
    messages = ({"role": "user", "content": text}, {"role": "assistant", "content": content})
    return Row(text + row.id, text + row.prompt_id, row.rollout, messages, tuple(spans), row.meta)


def synthesis(place, number, prompts, *, teacher, failures, scores, text):
    rows, rng = [], np.random.default_rng(number)
    for index, item in enumerate(islice(items("A", "train", number), prompts)):
        made = response(item, "student", seed=number, mixed=0.2, writers="kinds" if teacher else "speaker")
        tokens = {
            name: sum(len(made.content[s.start : s.end].split()) for s in made.spans if s.source == name)
            for name in ("student", "teacher")
        }
        meta = {f"tokens_{name}": n for name, n in tokens.items()} | {"tokens_discarded": 7, "index": index, "switches": 4}
        rows.append(replaced(Row(made.id, made.prompt_id, 0, made.messages, made.spans, meta), text))
    failed = [Failure(f"f{i}/0", f"f{i}", 0, reason, 3) for i, reason in enumerate(["length", "length", "repetition"])]
    failed = failed if failures else []
    names = ("student", "teacher") if teacher else ("student",)
    kept = {name: sum(row.meta[f"tokens_{name}"] for row in rows) for name in names}
    discarded, lost = {name: 7 * prompts for name in names}, {name: 211 for name in names}
    generated = {name: kept[name] + discarded[name] + lost[name] for name in names}
    with RunStore(str(place)) as store:
        store.save_config("recipe: tessy\n")
        store.commit(rows[::-1], failed)  # commit order differs from input order
        if scores:
            lines = [json.dumps(scored(row, names, rng)) + "\n" for row in rows[:8]]
            store.save_page("scores.jsonl", "".join(lines))
        store.save_summary(
            {
                "run": {"responses": prompts, "failures": {}, **{f"tokens_{name}": kept.get(name, 0) for name in names}},
                "responses": prompts,
                "failures": {"length": 2, "repetition": 1} if failures else {},
                "verdicts": {"right": 3, "wrong_answer": 1} if failures else {},
                "retries": {"length": 5, "early_end": 1} if failures else {},
                "switches": 4 * prompts,
                "kept_tokens": kept,
                "generated_tokens": generated,
                "discarded_tokens": discarded,
                "failed_tokens": lost,
                "discarded_share": round(sum(discarded.values()) / sum(generated.values()), 6),
                "occupancy": {name: 0.8123 for name in names},
                "lanes": 16,
                "kept_tokens_per_second": 1234.567,
                "seconds_running": 481.2,
                "compile_seconds": 21.75,
                "host_syncs_per_kept_token": 0.001234,
            }
        )


def scored(row, names, rng):
    line = {"id": row.id}
    for name in names:
        line[name] = []
        for span in row.spans:
            if span.source != "template":
                mean = -0.4 if span.source == name else -2.2
                places = range(span.start, span.end, 4)
                line[name] += [[i, min(i + 4, span.end), round(float(mean * rng.exponential()), 4)] for i in places]
    return line


def training(place, number, steps, *, teacher, evaluation_file, epochs=()):
    rng, lines = np.random.default_rng(number), []
    for step in range(1, steps + 1):
        style, capability = (float(0.3 + a * np.exp(-step / b) + rng.normal(0, 0.05)) for a, b in ((0.9, 60), (1.7, 90)))
        line = {"step": step, "loss": (style + capability) / 2 if teacher else style, "loss_sty": style}
        line |= {"loss_cap": capability if teacher else None, "tokens": 900, "lr": 1e-4, "grad_norm": 1.0}
        line |= {"tokens_per_second": 5000.0 + step % 7, "mfu": None}
        if evaluation_file and step % 100 == 0:
            line["evaluation_loss"] = style + 0.1
        lines.append(line)
    with RunStore(str(place)) as store:
        store.save_config("training: {}\n")
        store.save_metrics("".join(json.dumps(line) + "\n" for line in lines))
        store.save_summary(
            {
                "steps": steps,
                "finished": True,
                "epoch_ends": {str(epoch): 100 * epoch for epoch in epochs},
                "examples": 24,
                "targets": {"student": 4000, "teacher": 9000 if teacher else 0, "template": 300, "unknown": 0},
                "skipped": [],
                "cut": ["x/0"],
                "loss": lines[-1]["loss"],
                "evaluation_loss": lines[-1].get("evaluation_loss"),
            }
        )


def evaluation(place, number, problems, text=None, epoch=0):
    verified, rows, failed = [], [], []
    for task in TASKS:
        for family in task.mini.families:
            rng = np.random.default_rng(100 * number + epoch + ord(family[-1]))
            for i, item in enumerate(islice(items(family, "test", 0), problems)):
                reference = text or item.answer
                prompt = [{"role": "user", "content": text or item.prompt}]
                problem = Problem(f"{task.name}/{text or ''}{item.id}", task.name, (text or "") + family, prompt, reference)
                right = bool(rng.random() < SKILL[family][min(number, 1)])
                reason = "right" if right else "wrong_answer"
                if not right and i % 9 == 0:
                    failed.append(Failure(f"{problem.id}/0", problem.id, 0, "length", 1))
                    verified.append(VerifiedResponse(problem, 0, Verdict(False, None, "length"), True, None))
                    continue
                made = replaced(response(item, "student", seed=number, mixed=0.3 * min(number, 1)), text)
                meta = {"tokens_student": 30}
                rows.append(Row(f"{problem.id}/0", problem.id, 0, made.messages, made.spans, meta))
                verified.append(VerifiedResponse(problem, 0, Verdict(right, reference, reason), False, 30))
    with RunStore(str(place)) as store, RunStore(str(place / "rollouts")) as rollouts:
        store.save_config("tasks: []\n")
        rollouts.save_config("recipe: student_only\n")
        rollouts.commit(rows, failed)
        known = {one.problem.id: one.problem for one in verified}
        store.save_page("prompts.jsonl", "".join(json.dumps(problem.to_json()) + "\n" for problem in known.values()))
        store.save_page("verdicts.jsonl", "".join(json.dumps(one.to_json()) + "\n" for one in verified))
        store.save_summary({"student": "a", **summarize(TASKS, verified, 0.95), "version": "0.1.0", "seconds": 3.0})


def _predictors(place):
    with RunStore(str(place)) as store:
        store.save_config("predictor: {}\n")
        evaluations = {name: {"style": {"f1": f1}} for name, f1 in (("student", 0.912345), ("teacher", 0.87654))}
        store.save_page("evaluation.json", json.dumps(evaluations))
