"""What became of the students: losses over the steps (Fig. 15), and accuracy over the epochs (Fig. 11)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from tessy_jax.analyze.sources import Job, objects
from tessy_jax.report.run_page import LOSSES
from tessy_jax.report.view import reduced

DIGITS = 6

Values = defaultdict[float, list[float]]
"""By place on the axis: the values of jobs."""


def losses(jobs: Mapping[str, Sequence[Job]]) -> dict[str, Any]:
    """Per loss and variant, its course: [step, mean over jobs, their standard deviation, jobs]. The steps of a job's rounds
    are numbered on; of many, several are one point, the mean. A loss that nobody has is left out."""
    lines = {
        name: [
            [line for one in job.rounds if one.training for line in objects(one.training, "metrics.jsonl")] for job in own
        ]
        for name, own in jobs.items()
    }
    longest = max((len(found) for own in lines.values() for found in own), default=0)
    curves: dict[str, dict[str, Values]] = {loss: {} for loss in LOSSES}
    together = 1
    for name, own in lines.items():
        for found in own:
            numbered = [{**line, "step": step} for step, line in enumerate(found, 1)]
            together, points = reduced(numbered, LOSSES, longest)
            for point in points:
                for loss in LOSSES:
                    value = point[loss]
                    if value is not None:
                        curves[loss].setdefault(name, defaultdict(list))[point["step"] or 0].append(value)
    found_curves = {loss: {name: _course(own) for name, own in of.items()} for loss, of in curves.items() if of}
    return {"together": together, "curves": found_curves}


def accuracy(jobs: Mapping[str, Sequence[Job]]) -> dict[str, Any]:
    """Per domain and variant, pass@1 over the epochs: [epoch, mean over jobs, their standard deviation, jobs].

    Epoch 0 is the untouched student; the epochs of a job's rounds are numbered on. ends: where the evaluation at the end of
    a training stands of which nobody knows how many epochs it had: behind its last whole one. epochs: whether there are
    evaluations between.
    """
    found: dict[str, dict[str, Values]] = {}
    ends: set[float] = set()
    between = False
    for name, own in jobs.items():
        for job in own:
            for epoch, domains in _evaluations(job, ends).items():
                for domain, value in domains.items():
                    found.setdefault(domain, {}).setdefault(name, defaultdict(list))[epoch].append(value)
            between |= any(one.after for one in job.rounds)
    return {
        "epochs": between,
        "ends": sorted(ends),
        "domains": {domain: {name: _course(own) for name, own in of.items()} for domain, of in sorted(found.items())},
    }


def _evaluations(job: Job, ends: set[float]) -> dict[float, dict[str, float]]:
    """pass@1 by epoch and domain. ends: gets the places of evaluations after a training of unknown length."""
    readers = {} if job.before is None else {0.0: job.before}
    begun = 0.0
    for one in job.rounds:
        last = max(one.after, default=0)
        end = float(last + 1) if one.epochs is None else one.epochs
        readers |= {begun + number: reader for number, reader in one.after.items()}
        if one.evaluation is not None and begun + end not in readers:
            readers[begun + end] = one.evaluation
            ends |= {begun + end} if one.epochs is None else set()
        begun += end
    return {
        epoch: {domain: measures["pass@1"] for domain, measures in (reader.summary() or {})["domains"].items()}
        for epoch, reader in readers.items()
    }


def _course(values: Values) -> list[list[float | None]]:
    return [
        [place, _rounded(fmean(own)), _rounded(stdev(own)) if len(own) > 1 else None, len(own)]
        for place, own in sorted(values.items())
    ]


def _rounded(value: float) -> float | None:
    return round(value, DIGITS) if math.isfinite(value) else None
