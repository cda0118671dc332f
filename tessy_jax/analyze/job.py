"""`tessy analyze`: analyses the data and students of a comparison, or the data of synthesis runs.

The output folder contains analysis.json with the numbers, `figures` as SVG and PNG, and report.html. Equal input gives equal
bytes.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import yaml

from tessy_jax import __version__
from tessy_jax.analyze.curves import accuracy, losses
from tessy_jax.analyze.data import AnswerCheck, DataSet, lengths, read, shares
from tessy_jax.analyze.likelihood import likelihoods, share
from tessy_jax.analyze.page import charts, page
from tessy_jax.analyze.quality import open_verifiers, summarize
from tessy_jax.analyze.sources import Gaps, Job, Source, of_comparison, of_runs
from tessy_jax.analyze.sweeps import sweeps
from tessy_jax.analyze.texts import frequent, map_of, similarity, space_of, thinking
from tessy_jax.config import Analyze, Comparison, from_values
from tessy_jax.config import read as read_config
from tessy_jax.errors import ConfigError
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.evaluate.tasks import TaskKind
from tessy_jax.store import RunReader, RunStore
from tessy_jax.store.files import within
from tessy_jax.store.opening import reader_of

logger = logging.getLogger(__name__)

FOLDER = "analysis"
"""Folder of the analysis in the run folder of a comparison."""
NUMBERS, FIGURES, PAGE = "analysis.json", "figures", "report.html"
MARK = "analysis_of"
"""The key that identifies the config.yaml of an analysis."""
NO_JOBS = "The inputs are synthesis runs without training or evaluation; analyze a comparison to include them."

T = TypeVar("T", Source, Job)


def configured(sources: Sequence[str], output: str | None, overrides: Sequence[str]) -> Comparison | Analyze:
    """Returns the configuration for the YAML file of a comparison, or for run folders as name=folder, which need `output`.

    Raises:
        ConfigError: the sources are neither or both, or a name is given twice; or see `config.read`.
    """
    if len(sources) == 1 and ("=" not in sources[0] or Path(sources[0]).is_file()):
        return read_config(Comparison, sources[0], overrides)
    pairs = [source.partition("=") for source in sources]
    odd = next((source for source, (name, _, folder) in zip(sources, pairs, strict=True) if not name or not folder), None)
    if odd is not None:
        raise ConfigError(f"{odd}: is not name=folder; give the YAML file of one comparison, or run folders as name=folder")
    runs = {name: folder for name, _, folder in pairs}
    if len(runs) < len(pairs):
        raise ConfigError(f"{', '.join(name for name, _, _ in pairs)}: a name is given twice; give each folder its own name")
    if output is None:
        raise ConfigError("run folders need an output folder for their analysis; give one with --output")
    return from_values(Analyze, {"output": output, "runs": runs}, overrides, "tessy analyze")


def analyze(
    config: Comparison | Analyze,
    output: str | None = None,
    *,
    task_kinds: Mapping[str, TaskKind] = TASK_KINDS,
    log: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Analyses the finished stages. Returns the output folder, the figures and the gaps, which are also passed to `log`.

    output: None for `analysis` in the run folder of a comparison. task_kinds: by verifier, for the quality of the data.

    Raises:
        TessyError: the configuration, the input, a model or the output cannot be used.
    """
    gaps, origin = Gaps(), dict[str, Any]()
    if isinstance(config, Comparison):
        sources, jobs = of_comparison(config)
        output = output or within(config.output, FOLDER)
        title, origin = config.output, {MARK: config.output}
    else:
        sources, jobs = of_runs(config), []
        output = output or config.output
        title, origin = output, {MARK: dict(config.runs)}
    with RunStore(_ours(output)) as store:
        store.save_config(yaml.safe_dump({**origin, "analysis": config.analysis.model_dump()}, sort_keys=False))
        numbers = _numbers(config, sources, jobs, gaps, task_kinds)
        missing = list(dict.fromkeys(text for _, text in gaps.entries))
        for text in missing:
            log(text)
        drawn = {name: data for chart in charts(numbers) for name, data in chart.files().items()}
        for name in store.files.sizes(FIGURES):
            if name not in drawn and not name.startswith("."):
                store.files.delete(f"{FIGURES}/{name}")
        for name, data in drawn.items():
            store.files.put(f"{FIGURES}/{name}", data)
        title = f"Analysis: {title.rstrip('/').rpartition('/')[2]}"
        store.save_page(PAGE, page(numbers, title=title, version=__version__))
        store.save_page(NUMBERS, json.dumps(numbers, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    return {"output": output, "figures": sorted(drawn), "missing": missing}


def _ours(output: str) -> str:
    """Returns the folder if it is new or holds an analysis.

    Raises:
        ConfigError: the folder holds another kind of run.
    """
    reader: RunReader | None = reader_of(output)
    if reader is not None and MARK not in (yaml.safe_load(reader.config() or "") or {}):
        raise ConfigError(f"{output}: holds another kind of run; give another folder with --output")
    return output


def _numbers(
    config: Comparison | Analyze,
    sources: Sequence[Source],
    jobs: Sequence[Job],
    gaps: Gaps,
    task_kinds: Mapping[str, TaskKind],
) -> dict[str, Any]:
    """Returns the numbers behind the figures and the page."""
    settings = config.analysis
    unfinished = [source.place for source in sources if source.data is None]
    gaps.add_count("data", "Unfinished data sets, left out", unfinished, len(sources))
    sets = _read(config, sources, task_kinds)
    if not sets:
        raise ConfigError(
            f"{config.output}: no data set is finished, so there is nothing to analyse; finish `tessy compare` or `tessy "
            "synthesize` first"
        )
    if settings.quality is None:
        gaps.add("quality", "Responses were not verified; set analysis.quality.verifier to mini, exact or boxed.")
    texts = {
        name: [thinking(row) for data_set in own for row in data_set.first[: share(settings.responses, len(own))]]
        for name, own in sets.items()
    }
    space = space_of(texts)
    if space is None:
        gaps.add("texts", "The thinking contains no words.")
    jobs_by_variant = {name: own for name, own in _by_variant(jobs).items() if name in sets}
    numbers: dict[str, Any] = {
        "version": __version__,
        "variants": list(sets),
        "data": {
            name: {
                "data_sets": len(own),
                "responses": sum(data_set.responses for data_set in own),
                "failures": sum(data_set.failures for data_set in own),
                "sampled": len(texts[name]),
            }
            for name, own in sets.items()
        },
        "texts": None if space is None else {"map": map_of(space), "similarity": similarity(space)},
        "words": frequent(texts, settings.words),
        "lengths": lengths(sets),
        "shares": shares(sets),
        "quality": None if settings.quality is None else summarize(sets, settings.quality.confidence),
        "likelihood": _likelihood(config, sets, gaps),
        "losses": _losses(jobs, jobs_by_variant, gaps),
        "accuracy": _accuracy(jobs, jobs_by_variant, gaps),
    }
    numbers["sweeps"] = sweeps(config, jobs, numbers) if isinstance(config, Comparison) else {}
    return {**numbers, "missing": gaps.entries}


def _read(
    config: Comparison | Analyze, sources: Sequence[Source], task_kinds: Mapping[str, TaskKind]
) -> dict[str, list[DataSet]]:
    """Returns the finished data sets with responses, by variant."""
    settings, sets = config.analysis, {}
    with ExitStack() as stack:
        check_of: Callable[[Source], AnswerCheck] | None = None
        if settings.quality is not None:
            check_of = stack.enter_context(open_verifiers(settings.quality, task_kinds))
        for name, own in _by_variant(sources).items():
            finished = [source for source in own if source.data is not None]
            first = share(settings.responses, max(len(finished), 1))
            if settings.likelihood is not None:
                first = max(first, settings.likelihood.responses)
            data_sets = [read(source, first, check_of(source) if check_of else None) for source in finished]
            if any(data_set.responses for data_set in data_sets):
                sets[name] = [data_set for data_set in data_sets if data_set.responses]
    return sets


def _likelihood(config: Comparison | Analyze, sets: Mapping[str, Sequence[DataSet]], gaps: Gaps) -> dict[str, Any] | None:
    settings = config.analysis.likelihood
    if settings is None:
        gaps.add("likelihood", "The likelihood of the data was not computed; set analysis.likelihood to compute it.")
        return None
    places = [data_set.source for own in sets.values() for data_set in own]
    lacking = [source.place for source in places if source.student is None]
    gaps.add_count("likelihood", "Data sets without a student to score them", lacking, len(places))
    return likelihoods(sets, settings, config.mesh) or None


def _losses(jobs: Sequence[Job], jobs_by_variant: Mapping[str, Sequence[Job]], gaps: Gaps) -> dict[str, Any] | None:
    if not jobs:
        gaps.add("losses", NO_JOBS)
        return None
    lacking = [job.place for job in jobs if not all(round_.training for round_ in job.rounds)]
    gaps.add_count("losses", "Jobs with unfinished training", lacking, len(jobs))
    result = losses(jobs_by_variant)
    return result if result["curves"] else None


def _accuracy(jobs: Sequence[Job], jobs_by_variant: Mapping[str, Sequence[Job]], gaps: Gaps) -> dict[str, Any] | None:
    if not jobs:
        gaps.add("accuracy", NO_JOBS)
        return None
    lacking = [
        job.place
        for job in jobs
        if job.before is None or any(round_.evaluation is None or round_.unfinished for round_ in job.rounds)
    ]
    gaps.add_count("accuracy", "Jobs with unfinished evaluations", lacking, len(jobs))
    result = accuracy(jobs_by_variant)
    if result["domains"] and not result["epochs"]:
        gaps.add("accuracy", "There are no evaluations after epochs, only before and after training.")
    if result["epochs"]:
        lacking = [job.place for job in jobs if not any(round_.after for round_ in job.rounds)]
        gaps.add_count("accuracy", "Jobs without evaluations after epochs", lacking, len(jobs))
    return result if result["domains"] else None


def _by_variant(items: Sequence[T]) -> dict[str, list[T]]:
    """Groups items by variant, in order of first appearance."""
    return {name: [item for item in items if item.variant == name] for name in dict.fromkeys(item.variant for item in items)}
