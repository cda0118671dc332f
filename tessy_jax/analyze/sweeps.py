"""Sweeps: measures of data and students over variants that differ in a single number of the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from tessy_jax.analyze.sources import Job
from tessy_jax.config import Comparison

FEWEST = 3
"""Minimum number of values of a sweep."""
DIGITS = 6


def swept(config: Comparison) -> dict[str, dict[float, str]]:
    """Returns, by key, the variant of each value, in ascending order of the values.

    A variant is part of a sweep if it changes a single number; several keys with the same number count as one. The variant
    without changes is part of every sweep, with the value of the job.
    """
    by_key: dict[str, dict[float, str]] = {}
    plain = next((name for name, changes in config.variants.items() if not changes), None)
    for name, changes in config.variants.items():
        values = list(changes.values())
        if values and all(type(value) in (int, float) and value == values[0] for value in values):
            by_key.setdefault(" & ".join(changes), {})[float(values[0])] = name
    if plain is not None:
        base = next(cell.config for cell in config.cells() if cell.variant == plain)
        for key, own in by_key.items():
            value: Any = base.resolved()
            for part in key.split(" & ")[0].split("."):
                value = value.get(part) if isinstance(value, Mapping) else getattr(value, part, None)
            if type(value) in (int, float):
                own.setdefault(float(value), plain)
    return {key: dict(sorted(own.items())) for key, own in by_key.items() if len(own) >= FEWEST}


def sweeps(config: Comparison, jobs: Sequence[Job], numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Returns, by key and measure, [value, mean, standard deviation over jobs (None for one job), jobs] for each value.

    The measures are the final pass@1 in and out of domain, the quality of the data, and the discarded share of the generated
    tokens. Keys with measures for a single value only are left out. numbers: those of the analysis.
    """
    result = {}
    for key, own in swept(config).items():
        measures: dict[str, list[list[float | None]]] = {}
        for value, variant in own.items():
            for name, values in _ends(jobs, variant).items():
                off = round(stdev(values), DIGITS) if len(values) > 1 else None
                measures.setdefault(name, []).append([value, round(fmean(values), DIGITS), off, len(values)])
            quality = ((numbers["quality"] or {}).get("variants") or {}).get(variant)
            if quality is not None:
                measures.setdefault("quality", []).append([value, quality["pass@1"], None, 1])
            uses = ((numbers["shares"] or {}).get("generated") or {}).get(variant) or {}
            if sum(uses.values()):
                share = round(uses.get("discarded", 0) / sum(uses.values()), DIGITS)
                measures.setdefault("discarded", []).append([value, share, None, 1])
        if any(len(course) > 1 for course in measures.values()):
            result[key] = {"variants": list(own.values()), "measures": measures}
    return result


def _ends(jobs: Sequence[Job], variant: str) -> dict[str, list[float]]:
    """Returns pass@1 after the last round, by domain, of the finished jobs of a variant."""
    by_domain: dict[str, list[float]] = {}
    for job in jobs:
        reader = job.rounds[-1].evaluation if job.rounds else None
        if job.variant == variant and reader is not None:
            for domain, measures in (reader.summary() or {})["domains"].items():
                by_domain.setdefault(domain, []).append(measures["pass@1"])
    return by_domain
