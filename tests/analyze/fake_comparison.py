"""The folder of a comparison as its command leaves it, without any model: the miniature's grammar writes it."""

import json
from itertools import islice
from pathlib import Path

import yaml

from tessy_jax.config import Comparison, dump, read, reconcile
from tessy_jax.mini.rows import row as response
from tessy_jax.mini.tasks import items
from tessy_jax.records import Failure, Row
from tessy_jax.store import RunStore
from tests.report.fake_run import evaluation, replaced
from tests.small_job import job

WRITERS = {"tessy": ("student", "kinds"), "teacher_only": ("teacher", "speaker"), "student_only": ("student", "speaker")}
"""Whose words the responses of a variant are, and whom their spans name."""


def build(folder, *, variants=tuple(WRITERS), seeds=(3, 4), epochs=0, analysis=None, prompts=12, text=None, **changes):
    """Writes it and its configuration; returns the file. epochs: evaluations between. text: what all free text holds."""
    folder = Path(folder)
    raw = yaml.safe_load(job(folder, "compared").read_text())
    raw |= {"variants": {name: {} for name in variants}, "seeds": list(seeds)}
    raw["analysis"] = {"likelihood": None, "quality": {"verifier": "mini"}, **(analysis or {})}
    raw["training"] = {"max_seq_len": raw["training"]["max_seq_len"], "epochs": 3.0}
    file = folder / "comparison.yaml"
    file.write_text(yaml.safe_dump(raw | changes, sort_keys=False))
    config = read(Comparison, file)
    output = Path(config.output)
    with RunStore(str(output)) as store:
        store.save_config(dump(reconcile(config, None)))
    for number, cell in enumerate(config.cells()):
        if not (output / cell.before).exists():
            evaluation(output / cell.before, 0, 10, text)
        place = output / cell.place / "round-1"
        data(place / "synthesis", cell.variant, cell.seed, prompts, text)
        training(place / "training", number)
        evaluation(place / "evaluation", 1, 10, text)
        for epoch in range(1, epochs + 1):
            evaluation(place / "epochs" / f"{epoch:03}", epoch, 10, text)
    return file


def data(place, variant, seed, prompts, text=None):
    speaker, writers = WRITERS.get(variant, ("student", "kinds"))
    rows = []
    for index, item in enumerate(islice(items("A", "train", seed), prompts)):
        made = replaced(response(item, speaker, seed=seed, writers=writers), text)
        tokens = {
            f"tokens_{name}": sum(len(made.content[s.start : s.end].split()) for s in made.spans if s.source == name)
            for name in ("student", "teacher")
        }
        ids = (f"{text or ''}{item.id}/0", item.id)
        rows.append(Row(*ids, 0, made.messages, made.spans, {**tokens, "tokens_discarded": 2, "index": index}))
    write(place, rows, [Failure("f/0", "f", 0, "length", 3)])


def write(place, rows, failures=(), **summary):
    """A finished synthesis of these rows."""
    config = {"output": str(place), "data": {"path": "prompts.jsonl"}, "student": {"model": "student"}}
    config |= {"synthesis": {"recipe": "student_only"}}
    with RunStore(str(place)) as store:
        store.save_config(yaml.safe_dump(config))
        store.commit(rows[::-1], failures)
        counts = {"generated_tokens": {"student": 100}, "discarded_tokens": {"student": 20}, "failed_tokens": {"student": 5}}
        store.save_summary({**counts, **summary})


def training(place, number, steps=9):
    lines = [{"step": i, "loss": 2.0 / i + number, "loss_cap": 3.0 / i, "loss_sty": None} for i in range(1, steps + 1)]
    with RunStore(str(place)) as store:
        store.save_config("training: {}\n")
        store.save_metrics("".join(json.dumps(line) + "\n" for line in lines))
        store.save_summary({"steps": steps, "finished": True})
