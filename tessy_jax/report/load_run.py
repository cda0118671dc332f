"""Reads the run folder of a pipeline for its page. It streams the rows and keeps counts and a few examples."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from statistics import median
from typing import Any

import yaml

from tessy_jax import __version__
from tessy_jax.config.pipeline import BEFORE
from tessy_jax.records import Key, Row
from tessy_jax.report.results import as_text
from tessy_jax.report.run_page import LOSSES, run_report
from tessy_jax.report.view import (
    Answer,
    Compared,
    Evaluation,
    Kind,
    Response,
    Round,
    RunView,
    Score,
    Tally,
    Training,
    kind_of,
    reduced,
)
from tessy_jax.store import RunReader
from tessy_jax.store.files import within
from tessy_jax.store.job_folder import PLAN, JobFolder, RoundFolder, json_lines
from tessy_jax.store.opening import finished, reader_of

RESPONSES = 8
"""Responses shown per round: the first in input order, which are the ones that have scores."""
SHOWN: dict[Kind, int] = {"gained": 2, "lost": 2, "right": 1, "wrong": 1}
"""Problems shown with their answers, per domain."""

Verdict = Mapping[str, Any]
"""A line of verdicts.jsonl."""


def run_page(output: str) -> str:
    """Returns the HTML page of a run folder. Unfinished stages are left out; other processes may write to the folder.

    Raises:
        ConfigError: `output` is not a run folder.
        DataError: the run folder cannot be read.
    """
    reader = RunReader(output)
    config = yaml.safe_load(reader.config() or "") or {}
    places = _evaluations(output)
    evaluations = [Evaluation(name, evaluation.summary() or {}) for name, evaluation in places]
    changes, compared = _compared(places, evaluations)
    view = RunView(
        config=config,
        summary=reader.summary() or {},
        evaluations=evaluations,
        rounds=list(_rounds(output)),
        changes=changes,
        compared=compared,
        predictors=_predictors(JobFolder(output).predictors),
        plan=json.loads(reader.file(PLAN) or b"{}"),
    )
    title = f"Run: {output.rstrip('/').rpartition('/')[2]}"
    return run_report(view, title=title, version=__version__)


def run_table(output: str) -> str:
    """Returns the page's table of results as text for a terminal.

    Raises:
        DataError: the run folder cannot be read.
    """
    return as_text([Evaluation(name, evaluation.summary() or {}) for name, evaluation in _evaluations(output)])


def _evaluations(output: str) -> list[tuple[str, RunReader]]:
    """Returns the finished evaluations as (name, reader), in chronological order."""
    job = JobFolder(output)
    places = {BEFORE: job.before} | {f"after round {n}": folder.evaluation for n, folder in job.started_rounds()}
    readers = [(name, finished(place)) for name, place in places.items()]
    return [(name, reader) for name, reader in readers if reader is not None]


def _predictors(place: str) -> dict[str, Any]:
    """Returns the metrics of the predictors that the run has trained; empty if it trained none."""
    reader = reader_of(place)
    data = reader.file("evaluation.json") if reader else None
    return json.loads(data) if data else {}


def _rounds(output: str) -> Iterator[Round]:
    job = JobFolder(output)
    before = finished(job.before)
    for number, folder in job.started_rounds():
        synthesis, training = reader_of(folder.synthesis), reader_of(folder.training)
        trained = None if training is None else _training(training)
        after = finished(folder.evaluation)
        accuracy = {} if trained is None else _accuracy(folder, trained.summary, before, after)
        before = after
        if synthesis is None:
            yield Round(number, training=trained, accuracy=accuracy)
            continue
        tally = Tally()
        first = heapq.nsmallest(RESPONSES, _counted(synthesis, tally), key=lambda row: row.place)
        scores = _scores(synthesis, {row.id for row in first})
        yield Round(
            number,
            synthesis.summary(),
            tally,
            dict(Counter(failure.reason for failure in synthesis.failures())),
            [Response(row, scores.get(row.id, {})) for row in first],
            trained,
            accuracy,
        )


def _accuracy(
    folder: RoundFolder, training: Mapping[str, Any], before: RunReader | None, after: RunReader | None
) -> dict[str, list[tuple[int, float]]]:
    """Returns (step, pass@1) by domain: at the start of a round, after its evaluated epochs, and at its end."""
    ends = training.get("epoch_ends", {})
    readers = {step: finished(folder.epoch(int(epoch))) for epoch, step in ends.items()}
    if not any(readers.values()):
        return {}
    accuracy: dict[str, list[tuple[int, float]]] = {}
    for step, reader in sorted((readers | {0: before, training["steps"]: after}).items()):
        if reader is not None:
            for domain, measures in (reader.summary() or {})["domains"].items():
                accuracy.setdefault(domain, []).append((step, measures["pass@1"]))
    return accuracy


def _counted(reader: RunReader, tally: Tally) -> Iterator[Row]:
    for row in reader.rows():
        tally.add(row)
        yield row


def _scores(reader: RunReader, ids: Collection[str]) -> dict[str, dict[str, list[Score]]]:
    """Returns the scores of the given rows, by row and model. Rows without scores are left out."""
    return {
        line["id"]: {name: [(start, end, value) for start, end, value in line[name]] for name in line if name != "id"}
        for line in json_lines(reader, "scores.jsonl")
        if line["id"] in ids
    }


def _training(reader: RunReader) -> Training:
    steps = 0
    evaluations: list[tuple[int, float]] = []
    rates: list[float] = []
    peaks: list[float] = []
    for line in json_lines(reader, "metrics.jsonl"):
        steps += 1
        if line.get("evaluation_loss") is not None:
            evaluations.append((line["step"], line["evaluation_loss"]))
        rates += [line["tokens_per_second"]] if line.get("tokens_per_second") is not None else []
        peaks += [line["mfu"]] if line.get("mfu") is not None else []
    steps_per_point, points = reduced(json_lines(reader, "metrics.jsonl"), LOSSES, steps)
    rate, peak = (median(values) if values else None for values in (rates, peaks))
    return Training(reader.summary() or {}, points, evaluations, steps_per_point, rate, peak)


def _compared(
    places: Sequence[tuple[str, RunReader]], evaluations: Sequence[Evaluation]
) -> tuple[dict[str, dict[Kind, int]], list[Compared]]:
    """Returns the counts of verdict changes by domain, and a sample of problems with the answers of every evaluation."""
    if len(places) < 2:
        return {}, []
    before = {line["id"]: line["right"] for line in json_lines(places[0][1], "verdicts.jsonl")}
    domains = {name: task["domain"] for name, task in evaluations[-1].summary["tasks"].items()}
    changes: defaultdict[str, Counter[Kind]] = defaultdict(Counter)
    drawn: defaultdict[tuple[str, Kind], list[tuple[int, str]]] = defaultdict(list)
    for line in json_lines(places[-1][1], "verdicts.jsonl"):
        if line["id"] in before:
            domain, kind = domains[line["task"]], kind_of(before[line["id"]], line["right"])
            changes[domain][kind] += 1
            sample = drawn[domain, kind]
            sample.append((-_draw(line["id"]), line["id"]))
            sample.sort(reverse=True)
            del sample[SHOWN[kind] :]
    chosen = {name: place for place, sample in drawn.items() for _, name in sample}
    ordered = sorted(chosen, key=lambda name: (chosen[name][0], list(SHOWN).index(chosen[name][1]), _draw(name)))
    answers = [_answers(name, reader, chosen) for name, reader in places]
    asked = {verdict["prompt_id"] for _, verdict in answers[-1].values()}
    prompts = {line["id"]: line for line in json_lines(places[-1][1], "prompts.jsonl") if line["id"] in asked}
    items = []
    for name in ordered:
        domain, kind = chosen[name]
        verdict = answers[-1][name][1]
        prompt = prompts.get(verdict["prompt_id"], {}).get("messages", [])
        own = [by_id[name][0] for by_id in answers if name in by_id]
        items.append(
            Compared(name, verdict["task"], verdict["family"], domain, kind, prompt, str(verdict["reference"]), own)
        )
    return {domain: dict(counts) for domain, counts in changes.items()}, items


def _draw(name: str) -> int:
    """Returns a pseudo-random but reproducible number that ranks responses for the sample."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8])


def _answers(name: str, reader: RunReader, ids: Collection[str]) -> dict[str, tuple[Answer, Verdict]]:
    """Returns the answers and verdicts of one evaluation for the given responses, by response."""
    verdicts = {line["id"]: line for line in json_lines(reader, "verdicts.jsonl") if line["id"] in ids}
    keys: dict[Key, str] = {(line["prompt_id"], line["rollout"]): response_id for response_id, line in verdicts.items()}
    rows: dict[str, Row] = {}
    rollouts = reader_of(within(reader.output, "rollouts"))
    for row in rollouts.rows() if rollouts is not None else ():
        if row.key in keys:
            rows[keys[row.key]] = row
            if len(rows) == len(keys):
                break
    return {
        response_id: (Answer(name, line["right"], line["reason"], line["answer"], rows.get(response_id)), line)
        for response_id, line in verdicts.items()
    }
