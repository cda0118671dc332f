"""`tessy train`: fine-tunes a student on conversations, in a run folder that survives a kill at any instant."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import nnx

from tessy_jax.config import Model, Train
from tessy_jax.models import hf
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.export import export
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.layers import LoraParam
from tessy_jax.models.restack import restack
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import all_or_raise, is_primary, on_primary, provenance
from tessy_jax.sharding import Partitioner
from tessy_jax.store.files import local, within
from tessy_jax.store.opening import open_run
from tessy_jax.text.chat import Chat
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.train.checkpoint import Checkpoints
from tessy_jax.train.data import BatchPlan, TokenizedDataset, read
from tessy_jax.train.examples import KINDS
from tessy_jax.train.fit import OnStep, check_rows, check_weights, fit
from tessy_jax.train.flops import active_parameters, peak_flops, step_flops
from tessy_jax.train.loop import Trainer
from tessy_jax.train.lora import add_lora, export_lora, merge_lora

logger = logging.getLogger(__name__)
FOLDER, ADAPTER, CHECKPOINTS = "model", "adapter", "checkpoints"


class TrainingResult(NamedTuple):
    """The summary of a training. student: the trained model on the mesh, in the layout and dtype of decoding; None before
    the end."""

    summary: dict[str, Any]
    student: Decoder | None


def train(
    config: Train,
    student: Decoder | None = None,
    *,
    progress: bool = False,
    log: Callable[[str], None] = logger.info,
    on_step: OnStep = lambda line, steps: None,
) -> TrainingResult:
    """Runs or continues the training of a configuration; every process of a job calls it.

    At the end it writes the student as a Hugging Face folder `model` into the run folder, if that is a local path; with LoRA
    it also writes `adapter`.

    student: the initial weights, if they are on this mesh already; they are consumed. log: receives one line about each data
    set. on_step: receives the metrics of each step, and the number of steps. progress: shows a progress bar.

    Raises:
        TessyError: the configuration, the input, the model or the output is invalid; raised before the first step.
        TrainingError: a loss is no number, or spikes.
    """
    started = time.perf_counter()
    with ExitStack() as stack:
        store, config, text = open_run(stack, config)
        training, partitioner = config.training, Partitioner.of(config.mesh)
        rows = check_rows(partitioner, training)
        folder = hf.resolve(config.student.model, revision=config.student.revision)
        data, evaluation = all_or_raise(lambda: examples(config, folder))
        weights = [getattr(config.weights, name) for name in KINDS[1:]]
        check_weights(data, weights)
        for name, dataset in (("data", data), ("evaluation", evaluation)):
            if dataset is not None and is_primary():
                log(f"{name}: {dataset.described()}")
        store.save_config(text)
        graph, params, frozen = parts(config, folder, partitioner, student)
        batches = partial(BatchPlan, max_seq_len=training.max_seq_len, seed=config.seed)
        plan = batches(data, batch_size=training.batch_size)
        ends = plan.ends(training.steps or plan.steps(training.epochs), training.keep_epochs)
        trainer = Trainer(
            training=training,
            optimizer_config=config.optimizer,
            graph=graph,
            frozen=frozen,
            partitioner=partitioner,
            plan=plan,
            weights=[0.0, *weights],
            evaluation=None if evaluation is None else batches(evaluation, batch_size=rows),
            checkpoints=stack.enter_context(checkpoints_of(config, always=list(ends.values()))),
            write=store.save_metrics,
            ideal_seconds=ideal_step_seconds(read_config(folder), config, partitioner),
            always_save=set(ends.values()),
        )
        trained = fit(trainer, params, output=config.output, config=config.model_dump(), progress=progress, on_step=on_step)
        result = finish(config, folder, nnx.merge(graph, trained.state.params, frozen)) if trained.finished else None
        summary = {
            **trained.counts(),
            "examples": len(data),
            "targets": data.targets(),
            "skipped": data.skipped,
            "cut": data.cut,
            "loss": trainer.last("loss"),
            "evaluation_loss": trainer.last("evaluation_loss"),
            "epoch_ends": {str(epoch): step for epoch, step in ends.items()},
            "packed_share": packed_share(plan),
            "seconds": round(time.perf_counter() - started, 3),
            **provenance(),
        }
        store.save_summary(summary)
        return TrainingResult(summary, result)


def parts(config: Train, folder: Path, partitioner: Partitioner, student: Decoder | None) -> tuple[Any, Any, Any]:
    """The student's graph, its trained parameters and its frozen ones; loaded from the folder, or taken from `student`."""
    dtype = config.training.dtype if config.lora else config.training.weights_dtype
    if student is None:
        model = hf.load(folder, dtype=dtype, partitioner=partitioner, stacked=True)
    else:
        model = restack(student, stacked=True, dtype=dtype, partitioner=partitioner)
    if config.lora:
        add_lora(model, config.lora, config.seed)
    return nnx.split(model, LoraParam if config.lora else nnx.Param, ...)


def checkpoints_of(config: Train, *, always: Sequence[int] = (), write: bool = True) -> Checkpoints:
    """The run's checkpoints. always: steps that are never deleted."""
    training = config.training
    folder = within(config.output, CHECKPOINTS)
    best = 0 if config.evaluation is None else training.keep_best
    return Checkpoints(folder, last=training.keep_last, best=best, always=always, write=write)


def restored(config: Train, step: int | None, partitioner: Partitioner) -> tuple[Decoder, int]:
    """The student of a checkpoint, adapters included, and the checkpoint's step. step: None is the newest.

    Raises:
        CheckpointError: the checkpoint does not exist, or cannot be read.
    """
    folder = hf.resolve(config.student.model, revision=config.student.revision)
    graph, params, frozen = parts(config, folder, partitioner, None)
    with checkpoints_of(config, write=False) as checkpoints:
        step = checkpoints.checked(step)
        return nnx.merge(graph, checkpoints.restore_params(step, params), frozen), step


def ideal_step_seconds(shape: ModelConfig, config: Train, partitioner: Partitioner) -> Callable[[np.ndarray], float | None]:
    """The seconds that a step over documents of given lengths takes at the devices' peak; None where that is unknown."""
    peak = peak_flops(config.training.dtype, partitioner.size)
    if peak is None:
        return lambda lengths: None
    active = active_parameters(shape)
    return lambda lengths: step_flops(shape, active, lengths, frozen=config.lora is not None) / peak


def packed_share(plan: BatchPlan) -> float:
    """The share of the first epoch's row tokens that is not padding."""
    rows = sum(bool(len(row)) for batch in plan.epoch(0) for row in batch)
    return round(len(plan.data.tokens) / (rows * plan.max_seq_len), 4)


def finish(config: Train, folder: Path, model: Decoder) -> Decoder:
    """Writes the trained student and its adapter into the run folder, unless they exist; returns the student in the layout
    of decoding. Consumes `model`."""
    place = local(config.output)
    if place is not None and config.lora and on_primary(lambda: not (place / ADAPTER).exists()):
        export_lora(model, config.lora, place / ADAPTER, base=config.student.model)
    model = plain(config, model)
    if place is not None and on_primary(lambda: not (place / FOLDER).exists()):
        export(model, place / FOLDER, copy_from=folder)
    return model


def plain(config: Train, model: Decoder) -> Decoder:
    """The student with adapters merged, in the layout and dtype of decoding. Consumes `model`."""
    return restack(merge_lora(model) if config.lora else model, dtype=config.student.dtype)


def chat_of(section: Model, folder: Path, date: str | None) -> tuple[Chat, int]:
    """The chat template of a model, and the size of its vocabulary."""
    vocab = read_config(folder).vocab
    assert date is not None
    chat = Chat(
        Tokenizer(folder, vocab),
        open=section.thinking.open,
        close=section.thinking.close,
        variables=section.template,
        system=section.system,
        date=datetime.date.fromisoformat(date),
    )
    return chat, vocab


def examples(config: Train, folder: Path) -> tuple[TokenizedDataset, TokenizedDataset | None]:
    """The data sets of training and of evaluation (None: no evaluation)."""
    chat, vocab = chat_of(config.student, folder, config.date)
    load = partial(read, chat=chat, size=config.training.max_seq_len, vocab=vocab)
    return load(config.data), None if config.evaluation is None else load(config.evaluation)
