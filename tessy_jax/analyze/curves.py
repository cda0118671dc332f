"""Training curves of the students: losses by step (Fig. 15) and accuracy by epoch (Fig. 11)."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from tessy_jax.analyze.sources import Job
from tessy_jax.report.run_page import LOSSES
from tessy_jax.report.view import reduced
from tessy_jax.store.job_folder import json_lines

DIGITS = 6

Values = defaultdict[float, list[float]]
"""Values of the jobs, by position on the axis."""


def losses(jobs: Mapping[str, Sequence[Job]]) -> dict[str, Any]:
    """Returns, by loss and variant, points [step, mean over jobs, standard deviation over jobs, jobs].

    Steps are numbered consecutively over the rounds of a job. With many steps, each point is the mean over several. Losses
    without values are left out.
    """
    lines = {
        name: [
            [line for round_ in job.rounds if round_.training for line in json_lines(round_.training, "metrics.jsonl")]
            for job in own
        ]
        for name, own in jobs.items()
    }
    longest = max((len(records) for own in lines.values() for records in own), default=0)
    curves: dict[str, dict[str, Values]] = {loss: {} for loss in LOSSES}
    steps_per_point = 1
    for name, own in lines.items():
        for records in own:
            numbered = [{**line, "step": step} for step, line in enumerate(records, 1)]
            steps_per_point, points = reduced(numbered, LOSSES, longest)
            for point in points:
                for loss in LOSSES:
                    value = point[loss]
                    if value is not None:
                        curves[loss].setdefault(name, defaultdict(list))[point["step"] or 0].append(value)
    points_by_loss = {loss: {name: _course(own) for name, own in of.items()} for loss, of in curves.items() if of}
    return {"steps_per_point": steps_per_point, "curves": points_by_loss}


def accuracy(jobs: Mapping[str, Sequence[Job]]) -> dict[str, Any]:
    """Returns, by domain and variant, pass@1 by epoch as [epoch, mean over jobs, standard deviation over jobs, jobs].

    Epoch 0 is the untouched student; epochs are numbered consecutively over the rounds of a job. ends: positions of final
    evaluations of trainings with an unknown number of epochs, one after the last evaluated epoch. epochs: whether there are
    evaluations after epochs.
    """
    by_domain: dict[str, dict[str, Values]] = {}
    ends: set[float] = set()
    between = False
    for name, own in jobs.items():
        for job in own:
            for epoch, domains in _evaluations(job, ends).items():
                for domain, value in domains.items():
                    by_domain.setdefault(domain, {}).setdefault(name, defaultdict(list))[epoch].append(value)
            between |= any(round_.after for round_ in job.rounds)
    return {
        "epochs": between,
        "ends": sorted(ends),
        "domains": {domain: {name: _course(own) for name, own in of.items()} for domain, of in sorted(by_domain.items())},
    }


def _evaluations(job: Job, ends: set[float]) -> dict[float, dict[str, float]]:
    """Returns pass@1 by epoch and domain. Adds to `ends` the positions of evaluations after a training of unknown length."""
    readers = {} if job.before is None else {0.0: job.before}
    start = 0.0
    for round_ in job.rounds:
        last = max(round_.after, default=0)
        end = float(last + 1) if round_.epochs is None else round_.epochs
        readers |= {start + number: reader for number, reader in round_.after.items()}
        if round_.evaluation is not None and start + end not in readers:
            readers[start + end] = round_.evaluation
            ends |= {start + end} if round_.epochs is None else set()
        start += end
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
