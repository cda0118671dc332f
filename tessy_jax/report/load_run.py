"""Reads the folder of a run of the whole job for its page: row by row, keeping counts and a few examples."""

from __future__ import annotations

import hashlib
import heapq
import io
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import count
from statistics import median
from typing import Any

import yaml

from tessy_jax import __version__
from tessy_jax.config.pipeline import BEFORE, DATA, EPOCHS, EVALUATION, MADE, TRAINING, round_name
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
from tessy_jax.store.opening import finished, reader_of

RESPONSES = 8
"""Responses of each round that are shown, the first in the order of the input: those that have scores."""
SHOWN: dict[Kind, int] = {"gained": 2, "lost": 2, "right": 1, "wrong": 1}
"""Problems that are shown with their answers, per domain."""

Verdict = Mapping[str, Any]
"""A line of verdicts.jsonl."""


def run_page(output: str) -> str:
    """The page of a run folder, as it stands; what is not there yet is left out. Other processes may write to it meanwhile.

    Raises:
        ConfigError: it is no run folder.
        DataError: it cannot be read.
    """
    reader = RunReader(output)
    config = yaml.safe_load(reader.config() or "") or {}
    places = _evaluations(output)
    evaluations = [Evaluation(name, found.summary() or {}) for name, found in places]
    changes, compared = _compared(places, evaluations)
    view = RunView(
        config=config,
        summary=reader.summary() or {},
        evaluations=evaluations,
        rounds=list(_rounds(output)),
        changes=changes,
        compared=compared,
        predictors=_predictors(within(output, MADE)),
    )
    title = f"Run: {output.rstrip('/').rpartition('/')[2]}"
    return run_report(view, title=title, version=__version__)


def run_table(output: str) -> str:
    """The page's table of results, for a terminal.

    Raises:
        DataError: the run folder cannot be read.
    """
    return as_text([Evaluation(name, found.summary() or {}) for name, found in _evaluations(output)])


def _lines(reader: RunReader, name: str) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file; none where there is no file."""
    for line in io.BytesIO(reader.file(name) or b""):
        if line.strip():
            yield json.loads(line)


def _parts(output: str) -> Iterator[tuple[int, dict[str, RunReader | None]]]:
    """The rounds that have begun, and their run folders."""
    for number in count(1):
        folder = within(output, round_name(number))
        found = {name: reader_of(within(folder, name)) for name in (DATA, TRAINING, EVALUATION)}
        if not any(found.values()):
            return
        yield number, found


def _evaluations(output: str) -> list[tuple[str, RunReader]]:
    """Those that are finished, by name, in their order."""
    places = {BEFORE: within(output, BEFORE)}
    places |= {f"after round {n}": within(within(output, round_name(n)), EVALUATION) for n, _ in _parts(output)}
    found = [(name, finished(place)) for name, place in places.items()]
    return [(name, reader) for name, reader in found if reader is not None]


def _predictors(place: str) -> dict[str, Any]:
    """The measures of the predictors that the run has made."""
    reader = reader_of(place)
    data = reader.file("evaluation.json") if reader else None
    return json.loads(data) if data else {}


def _rounds(output: str) -> Iterator[Round]:
    begun = finished(within(output, BEFORE))
    for number, parts in _parts(output):
        synthesis, training = parts[DATA], parts[TRAINING]
        trained = None if training is None else _training(training)
        folder = within(output, round_name(number))
        ended = finished(within(folder, EVALUATION))
        accuracy = {} if trained is None else _accuracy(folder, trained.summary, begun, ended)
        begun = ended
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
    folder: str, training: Mapping[str, Any], begun: RunReader | None, ended: RunReader | None
) -> dict[str, list[tuple[int, float]]]:
    """By domain, pass@1 of the student that a round began with, after its epochs, and at its end."""
    ends = training.get("epoch_ends", {})
    readers = {step: finished(within(folder, f"{EPOCHS}/{int(epoch):03}")) for epoch, step in ends.items()}
    if not any(readers.values()):
        return {}
    found: dict[str, list[tuple[int, float]]] = {}
    for step, reader in sorted((readers | {0: begun, training["steps"]: ended}).items()):
        if reader is not None:
            for domain, measures in (reader.summary() or {})["domains"].items():
                found.setdefault(domain, []).append((step, measures["pass@1"]))
    return found


def _counted(reader: RunReader, tally: Tally) -> Iterator[Row]:
    for row in reader.rows():
        tally.add(row)
        yield row


def _scores(reader: RunReader, wanted: Collection[str]) -> dict[str, dict[str, list[Score]]]:
    """By row and model, as far as there are any."""
    return {
        line["id"]: {name: [(start, end, value) for start, end, value in line[name]] for name in line if name != "id"}
        for line in _lines(reader, "scores.jsonl")
        if line["id"] in wanted
    }


def _training(reader: RunReader) -> Training:
    steps = 0
    evaluations: list[tuple[int, float]] = []
    rates: list[float] = []
    peaks: list[float] = []
    for line in _lines(reader, "metrics.jsonl"):
        steps += 1
        if line.get("evaluation_loss") is not None:
            evaluations.append((line["step"], line["evaluation_loss"]))
        rates += [line["tokens_per_second"]] if line.get("tokens_per_second") is not None else []
        peaks += [line["mfu"]] if line.get("mfu") is not None else []
    together, points = reduced(_lines(reader, "metrics.jsonl"), LOSSES, steps)
    rate, peak = (median(values) if values else None for values in (rates, peaks))
    return Training(reader.summary() or {}, points, evaluations, together, rate, peak)


def _compared(
    places: Sequence[tuple[str, RunReader]], evaluations: Sequence[Evaluation]
) -> tuple[dict[str, dict[Kind, int]], list[Compared]]:
    """What became of the verdicts, by domain, and some of the problems with all their answers."""
    if len(places) < 2:
        return {}, []
    before = {line["id"]: line["right"] for line in _lines(places[0][1], "verdicts.jsonl")}
    domains = {name: task["domain"] for name, task in evaluations[-1].summary["tasks"].items()}
    changes: defaultdict[str, Counter[Kind]] = defaultdict(Counter)
    drawn: defaultdict[tuple[str, Kind], list[tuple[int, str]]] = defaultdict(list)
    for line in _lines(places[-1][1], "verdicts.jsonl"):
        if line["id"] in before:
            domain, kind = domains[line["task"]], kind_of(before[line["id"]], line["right"])
            changes[domain][kind] += 1
            found = drawn[domain, kind]
            found.append((-_draw(line["id"]), line["id"]))
            found.sort(reverse=True)
            del found[SHOWN[kind] :]
    chosen = {name: place for place, found in drawn.items() for _, name in found}
    ordered = sorted(chosen, key=lambda name: (chosen[name][0], list(SHOWN).index(chosen[name][1]), _draw(name)))
    answers = [_answers(name, reader, chosen) for name, reader in places]
    asked = {verdict["prompt_id"] for _, verdict in answers[-1].values()}
    prompts = {found["id"]: found for found in _lines(places[-1][1], "prompts.jsonl") if found["id"] in asked}
    items = []
    for name in ordered:
        domain, kind = chosen[name]
        verdict = answers[-1][name][1]
        prompt = prompts.get(verdict["prompt_id"], {}).get("messages", [])
        own = [found[name][0] for found in answers if name in found]
        items.append(
            Compared(name, verdict["task"], verdict["family"], domain, kind, prompt, str(verdict["reference"]), own)
        )
    return {domain: dict(found) for domain, found in changes.items()}, items


def _draw(name: str) -> int:
    """A number that decides whether a response is shown, as good as chance and the same each time."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8])


def _answers(name: str, reader: RunReader, wanted: Collection[str]) -> dict[str, tuple[Answer, Verdict]]:
    """What one evaluation has of some responses."""
    verdicts = {line["id"]: line for line in _lines(reader, "verdicts.jsonl") if line["id"] in wanted}
    keys: dict[Key, str] = {(line["prompt_id"], line["rollout"]): own for own, line in verdicts.items()}
    rows: dict[str, Row] = {}
    rollouts = reader_of(within(reader.output, "rollouts"))
    for row in rollouts.rows() if rollouts is not None else ():
        if row.key in keys:
            rows[keys[row.key]] = row
            if len(rows) == len(keys):
                break
    return {
        own: (Answer(name, line["right"], line["reason"], line["answer"], rows.get(own)), line)
        for own, line in verdicts.items()
    }
