"""`tessy boundary train`: annotated segments in, a boundary predictor out, by the trainer that trains the student."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from flax import nnx

from tessy_jax import __version__
from tessy_jax.boundary.annotate import FOLDER, annotate
from tessy_jax.boundary.examples import NAMES, Tokens, examples, reader, tokens_of
from tessy_jax.boundary.recorded_spans import RecordedSpans
from tessy_jax.boundary.segment_scorer import SegmentScorer, SegmentScores
from tessy_jax.boundary.spans import read_annotations
from tessy_jax.boundary.traces import LATER, opened, rows, speakers_of
from tessy_jax.config import Predictors
from tessy_jax.config.predictors import Predictor
from tessy_jax.config.recipes import Writer
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.models import hf
from tessy_jax.models.export import export
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.labels import CLASSES, check_labels
from tessy_jax.models.restack import restack
from tessy_jax.processes import is_primary, on_primary, provenance
from tessy_jax.sharding import Partitioner
from tessy_jax.store import RunReader
from tessy_jax.store.files import local, within
from tessy_jax.store.opening import open_run
from tessy_jax.train.checkpoint import Checkpoints
from tessy_jax.train.data import BatchPlan
from tessy_jax.train.fit import OnStep, check_rows, check_weights, fit
from tessy_jax.train.job import CHECKPOINTS
from tessy_jax.train.job import FOLDER as MODEL
from tessy_jax.train.loop import Trainer

logger = logging.getLogger(__name__)


class Annotated(NamedTuple):
    """The annotated segments of a speaker, as tokens. skipped: place and reason of each line that is not an annotation."""

    train: list[Tokens]
    validation: list[Tokens]
    skipped: list[tuple[str, str]]


def annotate_traces(
    config: Predictors, only: Writer | None = None, *, log: Callable[[str], None] = logger.info
) -> dict[str, dict[str, int]]:
    """`tessy boundary annotate`: annotates segments of the traces of each speaker; returns their counts.

    Raises:
        TessyError: there are no traces, the annotator cannot be used, or too few segments survive.
    """
    store, config = opened(config, LATER)
    with store:
        counts: dict[str, dict[str, int]] = {}
        for speaker in speakers_of(config, only):
            traces = list(rows(config, speaker))
            own = {"annotator": lambda _, traces=traces: RecordedSpans(traces)} if config.annotator.kind == "spans" else {}
            counts[speaker] = annotate(config, speaker, traces, store.files, log, **own)
            log(f"{speaker}: " + ", ".join(f"{n} {name}" for name, n in counts[speaker].items()))
        store.save_summary({"annotations": counts, "versions": {"tessy_jax": __version__}})
        return counts


def annotated(config: Predictors, speaker: Writer, folder: Path, *, skip_invalid: bool) -> Annotated:
    """The annotations in the run folder, as tokens of the predictor in `folder`.

    Raises:
        ConfigError: there are none yet.
        DataError: a line is not an annotation (unless skip_invalid), or none is left for training or validation.
    """
    name = f"{FOLDER}/{speaker}.jsonl"
    data = RunReader(config.output).file(name)
    if data is None:
        raise ConfigError(
            f"{config.output}/{name}: there are no annotations of the {speaker} yet; run `tessy boundary annotate` first"
        )
    annotations = read_annotations(data, f"{config.output}/{name}", skip_invalid=skip_invalid)
    tokenizer = reader(folder)
    parts: dict[str, list[Tokens]] = {"train": [], "validation": []}
    for annotation in annotations.kept:
        parts[annotation.segment.split].append(tokens_of(annotation, tokenizer))
    for split, tokens in parts.items():
        if not any(len(t.ids) > 1 for t in tokens):
            raise DataError(
                f"{config.output}/{name}: none of its {len(annotations.kept)} annotations is for {split}; sample more "
                f"prompts, or change segments.validation, which is {config.segments.validation:g}"
            )
    return Annotated(parts["train"], parts["validation"], annotations.skipped)


def train_predictor(
    config: Predictors,
    speaker: Writer,
    *,
    skip_invalid: bool = False,
    progress: bool = False,
    log: Callable[[str], None] = logger.info,
    on_step: OnStep = lambda line, steps: None,
) -> dict[str, Any]:
    """Trains a speaker's predictor on the annotations of the run folder, or resumes its training; returns the summary. The
    run folder of the training is `training/<speaker>` inside; its `model` is the predictor of the best evaluation.

    skip_invalid: log and skip invalid annotation lines. log: receives a description of the data. on_step: receives the
    metrics of each step, and the number of steps. progress: shows a progress bar.

    Raises:
        TessyError: the configuration, the annotations, the backbone or the output is invalid; raised before the first step.
        TrainingError: a loss is not finite, or spikes.
    """
    started = time.perf_counter()
    folder = backbone_of(config.predictor)
    segments = annotated(config, speaker, folder, skip_invalid=skip_invalid)
    for where, why in segments.skipped:
        log(f"{where}: {why}; left out")
    output = training_folder(config, speaker)
    place = local(output)
    if place is None:
        raise ConfigError(f"{output}: predictors are trained into folders only; name a path as output, and copy it")
    training, predictor, partitioner = config.training, config.predictor, Partitioner.of(config.mesh)
    rows = check_rows(partitioner, training)
    data = examples(segments.train, predictor.window)
    weights = [getattr(config.weights, name) for name in NAMES[1:]]
    check_weights(data, weights)
    if is_primary():
        counts = f"{len(segments.train)} segments for training, {len(segments.validation)} for validation"
        log(f"{speaker}: {counts}; {data.described()}")
    with ExitStack() as stack:
        store, config, text = open_run(stack, config.model_copy(update={"output": output}))
        store.save_config(text)
        graph, params, frozen = _parts(config, folder, partitioner)
        scorer = SegmentScorer(
            graph,
            segments.validation,
            window=predictor.window,
            size=training.max_seq_len,
            rows=rows,
            dtype=training.dtype,
            partitioner=partitioner,
        )
        checkpoints = Checkpoints(within(output, CHECKPOINTS), last=training.keep_last, best=max(1, training.keep_best))
        trainer = Trainer(
            training=training,
            optimizer_config=config.optimizer,
            graph=graph,
            frozen=frozen,
            partitioner=partitioner,
            plan=BatchPlan(data, training.max_seq_len, training.batch_size, config.seed),
            weights=[0.0, *weights],
            evaluation=scorer.plan,
            checkpoints=stack.enter_context(checkpoints),
            write=store.save_metrics,
            extra_metrics=lambda params: _metrics(scorer(params, frozen), predictor.threshold),
            best="style_error",
            patience=config.patience,
        )
        trained = fit(trainer, params, output=output, config=config.model_dump(), progress=progress, on_step=on_step)
        best = trainer.best_step(checkpoints.steps())
        if trained.finished and on_primary(lambda: not (place / MODEL).exists()):
            assert best is not None
            model = nnx.merge(graph, checkpoints.restore_params(best, trained.state.params), frozen)
            export(restack(model, dtype=predictor.dtype), place / MODEL, copy_from=folder)
        summary = {
            "speaker": speaker,
            **trained.counts(),
            "best_step": best,
            **{name: trainer.at(best, name) for name in ("style_f1", "capability_f1", "accuracy", "evaluation_loss")},
            "segments": {
                "train": len(segments.train),
                "validation": len(segments.validation),
                "skipped": len(segments.skipped),
            },
            "targets": data.targets(),
            "seconds": round(time.perf_counter() - started, 3),
            **provenance(),
        }
        store.save_summary(summary)
        return summary


def _parts(config: Predictors, folder: Path, partitioner: Partitioner) -> tuple[Any, Any, Any]:
    """The graph, trained parameters and frozen ones of a new predictor on its backbone."""
    model = hf.load(
        folder,
        dtype=config.training.weights_dtype,
        partitioner=partitioner,
        stacked=True,
        classes=CLASSES,
        layers=config.predictor.layers,
        seed=config.seed,
    )
    return nnx.split(model, nnx.Param, ...)


def _metrics(scores: SegmentScores, threshold: float) -> dict[str, float]:
    """The metrics of an evaluation; `style_error` is lowest at the best step."""
    classes = scores.classes(threshold)
    style = classes["style"]["f1"]
    return {
        "style_f1": style,
        "capability_f1": classes["capability"]["f1"],
        "accuracy": classes["accuracy"],
        "style_error": 1 - style,
    }


def backbone_of(predictor: Predictor) -> Path:
    """The folder of the model that a predictor is made from.

    Raises:
        ConfigError: there is none, it has fewer layers than `predictor.layers`, or it is a classifier with other labels.
    """
    folder = hf.resolve(predictor.backbone, revision=predictor.revision)
    config, kept = read_config(folder), predictor.layers
    if kept is not None and kept > config.layers:
        raise ConfigError(
            f"predictor.layers is {kept}, but {folder} has {config.layers}; set it to at most {config.layers}, or to null"
        )
    if config.labels is not None:
        check_labels(config, CLASSES, folder)
    return folder


def training_folder(config: Predictors, speaker: Writer) -> str:
    """The run folder of a speaker's training."""
    return within(config.output, f"training/{speaker}")


def score_validation(config: Predictors, speaker: Writer, *, skip_invalid: bool = False) -> SegmentScores:
    """The trained predictor's scores of the validation segments, in the windows of its training.

    Raises:
        TessyError: it is not trained yet, or cannot be loaded.
    """
    output = training_folder(config, speaker)
    folder = (local(output) or Path(output)) / MODEL
    if not folder.is_dir():
        raise ConfigError(f"{folder}: has no trained predictor; run `tessy boundary train CONFIG --speaker {speaker}`")
    segments = annotated(config, speaker, folder, skip_invalid=skip_invalid)
    config = Predictors.model_validate(yaml.safe_load(RunReader(output).config() or ""))  # as it was trained
    partitioner = Partitioner.of(config.mesh)
    training = config.training
    graph, params = nnx.split(
        hf.load(folder, dtype=config.predictor.dtype, partitioner=partitioner, stacked=True, classes=CLASSES)
    )
    scorer = SegmentScorer(
        graph,
        segments.validation,
        window=config.predictor.window,
        size=training.max_seq_len,
        rows=check_rows(partitioner, training),
        dtype=config.predictor.dtype,
        partitioner=partitioner,
    )
    return scorer(params)
