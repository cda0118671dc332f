"""`tessy boundary sample`: samples traces of each speaker alone, the material for predictors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from tessy_jax.config import Predictors, Synthesize, dump, reconcile
from tessy_jax.config.predictors import Responses
from tessy_jax.config.recipes import Writer
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.records import Row
from tessy_jax.store import RunStore
from tessy_jax.store.files import local, within
from tessy_jax.synthesis.contamination import Question
from tessy_jax.synthesis.job import synthesize
from tessy_jax.train.data import row_of, rows_at

logger = logging.getLogger(__name__)
SPEAKERS: tuple[Writer, ...] = ("student", "teacher")
LATER = ("predictor", "optimizer", "training", "weights", "patience")
"""Sections that only the training of a predictor depends on; it has a run folder of its own."""


def speakers_of(config: Predictors, only: Writer | None) -> list[Writer]:
    """The speakers of a command: `only` that one, or all that the configuration has.

    Raises:
        ConfigError: the configuration does not have it.
    """
    speakers: list[Writer] = [name for name in SPEAKERS if getattr(config, name) or getattr(config.traces, name)]
    if only is None:
        return speakers
    if only not in speakers:
        raise ConfigError(f"--speaker {only}: the configuration has neither {only} nor traces.{only}; set one of them")
    return [only]


def opened(config: Predictors, but: Collection[str]) -> tuple[RunStore, Predictors]:
    """The run folder, which the caller closes, and the configuration, checked against that of the folder's earlier commands.
    but: sections that may differ; those of annotation may also differ while nothing is annotated.

    Raises:
        ConfigError: the earlier commands had other settings, or another process writes to the folder.
        DataError: it cannot be written.
    """
    store = RunStore(config.output)
    try:
        free = () if store.files.sizes("annotations") else ("segments", "annotator")
        config = reconcile(config, store.config(), but=(*but, *free))
        store.save_config(dump(config))
    except BaseException:
        store.close()
        raise
    return store, config


def place(config: Predictors, speaker: Writer) -> str:
    """The place of a speaker's traces: that in the configuration, or the run folder that `sample` fills."""
    given: Responses | None = getattr(config.traces, speaker)
    return within(config.output, f"traces/{speaker}") if given is None else given.path


def sample(
    config: Predictors,
    only: Writer | None = None,
    *,
    questions: Sequence[Question] = (),
    progress: bool = True,
    log: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Samples traces of the speakers that have none, each alone, or continues; returns a summary per speaker. A trace may be
    unfinished. questions: as for `synthesize`.

    Raises:
        TessyError: configuration, prompts, models or output are wrong.
    """
    store, config = opened(config, LATER)
    store.close()
    summaries: dict[str, Any] = {}
    for speaker in speakers_of(config, only):
        if getattr(config.traces, speaker):
            log(f"{speaker}: traces are given ({place(config, speaker)})")
            continue
        run = Synthesize.model_validate(
            {
                "output": place(config, speaker),
                "seed": config.seed,
                "mesh": config.mesh,
                "date": config.date,
                "data": config.data,
                speaker: getattr(config, speaker),
                "synthesis": config.synthesis.model_copy(update={"recipe": f"{speaker}_only"}),
            }
        )
        summaries[speaker] = synthesize(run, unfinished=True, questions=questions, progress=progress, log=log).summary
    return summaries


def rows(config: Predictors, speaker: Writer) -> Iterator[Row]:
    """A speaker's traces, in an order that does not depend on when they were finished.

    Raises:
        ConfigError: there are none yet.
        DataError: they cannot be read.
    """
    path = place(config, speaker)
    folder, source = local(path), getattr(config.traces, speaker) or Responses(path=path)
    if not getattr(config.traces, speaker) and folder is not None and not folder.exists():
        raise ConfigError(f"{path}: there are no traces of the {speaker} yet; run `tessy boundary sample` first")
    for where, index, raw in rows_at(path, source.split, None, subset=source.subset):
        try:
            yield raw if isinstance(raw, Row) else row_of(raw, index)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
