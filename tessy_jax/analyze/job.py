"""`tessy analyze`: figures and numbers of a comparison's data and students, or of the data of some synthesis runs.

The output folder holds analysis.json, the numbers; `figures`, each as SVG and PNG; and report.html. The same input gives the
same bytes.
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
"""Where the analysis of a comparison is, in its run folder."""
NUMBERS, FIGURES, PAGE = "analysis.json", "figures", "report.html"
MARK = "analysis_of"
"""The key of our config.yaml that no other run has."""
NO_JOBS = "These are run folders of syntheses, which no student has learnt from; analyze a comparison to see it."

T = TypeVar("T", Source, Job)


def configured(sources: Sequence[str], output: str | None, overrides: Sequence[str]) -> Comparison | Analyze:
    """What to analyse: the YAML file of a comparison, or run folders as name=folder, which need an output.

    Raises:
        ConfigError: neither, both, or a name stands twice; or see `config.read`.
    """
    if len(sources) == 1 and ("=" not in sources[0] or Path(sources[0]).is_file()):
        return read_config(Comparison, sources[0], overrides)
    pairs = [source.partition("=") for source in sources]
    odd = next((source for source, (name, _, folder) in zip(sources, pairs, strict=True) if not name or not folder), None)
    if odd is not None:
        raise ConfigError(f"{odd}: is no name=folder; give one comparison's YAML file, or run folders, each as name=folder")
    runs = {name: folder for name, _, folder in pairs}
    if len(runs) < len(pairs):
        raise ConfigError(f"{', '.join(name for name, _, _ in pairs)}: a name stands twice; give each run folder its own")
    if output is None:
        raise ConfigError("run folders come without a place for their analysis; name a folder with --output")
    return from_values(Analyze, {"output": output, "runs": runs}, overrides, "tessy analyze")


def analyze(
    config: Comparison | Analyze,
    output: str | None = None,
    *,
    task_kinds: Mapping[str, TaskKind] = TASK_KINDS,
    log: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Analyses what is finished; returns where the analysis is, its figures, and what is missing, which `tell` gets, too.

    output: of a comparison (None: `analysis` in its run folder). benches: by verifier, for the quality of the data.

    Raises:
        TessyError: what is wrong with configuration, input, models or output.
    """
    gaps, told = Gaps(), dict[str, Any]()
    if isinstance(config, Comparison):
        sources, jobs = of_comparison(config)
        output = output or within(config.output, FOLDER)
        title, told = config.output, {MARK: config.output}
    else:
        sources, jobs = of_runs(config), []
        output = output or config.output
        title, told = output, {MARK: dict(config.runs)}
    with RunStore(_ours(output)) as store:
        store.save_config(yaml.safe_dump({**told, "analysis": config.analysis.model_dump()}, sort_keys=False))
        numbers = _numbers(config, sources, jobs, gaps, task_kinds)
        missing = list(dict.fromkeys(text for _, text in gaps.found))
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
    """The folder, where it is new or holds an analysis.

    Raises:
        ConfigError: it holds another kind of run.
    """
    reader: RunReader | None = reader_of(output)
    if reader is not None and MARK not in (yaml.safe_load(reader.config() or "") or {}):
        raise ConfigError(f"{output}: holds another kind of run; name another folder with --output")
    return output


def _numbers(
    config: Comparison | Analyze,
    sources: Sequence[Source],
    jobs: Sequence[Job],
    gaps: Gaps,
    task_kinds: Mapping[str, TaskKind],
) -> dict[str, Any]:
    """All that figures and page are made of."""
    settings = config.analysis
    unfinished = [source.place for source in sources if source.data is None]
    gaps.among("data", "Data that are not finished are left out", unfinished, len(sources))
    sets = _read(config, sources, task_kinds)
    if not sets:
        raise ConfigError(
            f"{config.output}: there is nothing to analyse, as no data are finished; run `tessy compare` or `tessy "
            "synthesize` to their end first"
        )
    if settings.quality is None:
        gaps.say("quality", "Responses were not judged; set analysis.quality.verifier to mini, exact or boxed.")
    texts = {
        name: [thinking(row) for one in own for row in one.first[: share(settings.responses, len(own))]]
        for name, own in sets.items()
    }
    space = space_of(texts)
    if space is None:
        gaps.say("texts", "No thinking holds any words.")
    begun = {name: own for name, own in _by_variant(jobs).items() if name in sets}
    numbers: dict[str, Any] = {
        "version": __version__,
        "variants": list(sets),
        "data": {
            name: {
                "data_sets": len(own),
                "responses": sum(one.responses for one in own),
                "failures": sum(one.failures for one in own),
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
        "losses": _losses(jobs, begun, gaps),
        "accuracy": _accuracy(jobs, begun, gaps),
    }
    numbers["sweeps"] = sweeps(config, jobs, numbers) if isinstance(config, Comparison) else {}
    return {**numbers, "missing": gaps.found}


def _read(
    config: Comparison | Analyze, sources: Sequence[Source], task_kinds: Mapping[str, TaskKind]
) -> dict[str, list[DataSet]]:
    """The finished data sets that hold responses, by variant."""
    settings, sets = config.analysis, {}
    with ExitStack() as stack:
        judge_of: Callable[[Source], AnswerCheck] | None = None
        if settings.quality is not None:
            judge_of = stack.enter_context(open_verifiers(settings.quality, task_kinds))
        for name, own in _by_variant(sources).items():
            finished = [source for source in own if source.data is not None]
            first = share(settings.responses, max(len(finished), 1))
            if settings.likelihood is not None:
                first = max(first, settings.likelihood.responses)
            found = [read(source, first, judge_of(source) if judge_of else None) for source in finished]
            if any(one.responses for one in found):
                sets[name] = [one for one in found if one.responses]
    return sets


def _likelihood(config: Comparison | Analyze, sets: Mapping[str, Sequence[DataSet]], gaps: Gaps) -> dict[str, Any] | None:
    settings = config.analysis.likelihood
    if settings is None:
        gaps.say("likelihood", "No student read the data; set analysis.likelihood to let it.")
        return None
    places = [one.source for own in sets.values() for one in own]
    lacking = [source.place for source in places if source.student is None]
    gaps.among("likelihood", "Data sets that name no student to read them", lacking, len(places))
    return likelihoods(sets, settings, config.mesh) or None


def _losses(jobs: Sequence[Job], begun: Mapping[str, Sequence[Job]], gaps: Gaps) -> dict[str, Any] | None:
    if not jobs:
        gaps.say("losses", NO_JOBS)
        return None
    lacking = [job.place for job in jobs if not all(one.training for one in job.rounds)]
    gaps.among("losses", "Jobs whose training is not finished", lacking, len(jobs))
    found = losses(begun)
    return found if found["curves"] else None


def _accuracy(jobs: Sequence[Job], begun: Mapping[str, Sequence[Job]], gaps: Gaps) -> dict[str, Any] | None:
    if not jobs:
        gaps.say("accuracy", NO_JOBS)
        return None
    lacking = [
        job.place
        for job in jobs
        if job.before is None or any(one.evaluation is None or one.unfinished for one in job.rounds)
    ]
    gaps.among("accuracy", "Jobs whose evaluations are not all finished", lacking, len(jobs))
    found = accuracy(begun)
    if found["domains"] and not found["epochs"]:
        gaps.say("accuracy", "There are no evaluations after single epochs, only those before and after training.")
    if found["epochs"]:
        lacking = [job.place for job in jobs if not any(one.after for one in job.rounds)]
        gaps.among("accuracy", "Jobs without evaluations after single epochs", lacking, len(jobs))
    return found if found["domains"] else None


def _by_variant(found: Sequence[T]) -> dict[str, list[T]]:
    """In the order in which variants come."""
    return {name: [one for one in found if one.variant == name] for name in dict.fromkeys(one.variant for one in found)}
