"""`tessy run`: the complete job on one mesh: predictors, then data, training and evaluation in every round.

The run folder holds the run folders of its stages: `predictors` (if the job makes any), `before` (the evaluation of the
untouched student), and per round `round-<n>/synthesis`, `round-<n>/training`, `round-<n>/evaluation` and, if
`evaluation.every_epochs` is set, `round-<n>/epochs/<n>` (the evaluation of an epoch's checkpoint). A restart resumes the
interrupted stage and skips finished ones. The student's arrays pass from stage to stage in memory; a restart reads the
same values from the run folder.
"""

from __future__ import annotations

import datetime
import logging
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import jax

from tessy_jax.boundary.predictor_eval import evaluate_predictors
from tessy_jax.boundary.traces import sample
from tessy_jax.boundary.train import annotate_traces, backbone_of, train_predictor, training_folder
from tessy_jax.config import Boundary, Data, Evaluate, Model, Pipeline, Predictors, Synthesize, Train
from tessy_jax.config.pipeline import DATA, EVALUATION, MADE, TRAINING
from tessy_jax.errors import ConfigError
from tessy_jax.evaluate.job import TASK_KINDS, evaluate
from tessy_jax.evaluate.tasks import TaskKind, problems_of
from tessy_jax.evaluate.verification import response_verifiers
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import is_primary, on_primary, provenance
from tessy_jax.report.load_run import run_page
from tessy_jax.report.predictor_page import save_predictor_page
from tessy_jax.sharding import Partitioner
from tessy_jax.store import RunReader
from tessy_jax.store.files import local, within
from tessy_jax.store.job_folder import (
    BEFORE_STAGE,
    JobFolder,
    RoundFolder,
    Stage,
    dump_stages,
    finished_training,
    read_stages,
)
from tessy_jax.store.opening import PrimaryStore, finished, open_run, reader_of
from tessy_jax.synthesis import passes
from tessy_jax.synthesis.contamination import Question, questions
from tessy_jax.synthesis.job import prompts_of, synthesize
from tessy_jax.synthesis.model_set import ModelSet, writer_spec
from tessy_jax.synthesis.verification import open_verification
from tessy_jax.train.export import export_model
from tessy_jax.train.job import FOLDER, train

logger = logging.getLogger(__name__)
Log = Callable[[str], None]


def run(
    config: Pipeline,
    *,
    task_kinds: Mapping[str, TaskKind] = TASK_KINDS,
    before: str | None = None,
    page: bool = True,
    progress: bool = True,
    log: Log = logger.info,
) -> dict[str, Any]:
    """Runs or resumes the job of a configuration. Returns its summary, which is also saved next to report.html.

    task_kinds: task kinds by verifier, for the evaluations. before: folder of the untouched student's evaluation (default:
    in the run folder). page: whether to write report.html. log: receives the messages of every stage.

    Raises:
        TessyError: invalid configuration, input, models or output; most are found before the first stage.
        TrainingError: a loss is not finite, or spikes.
    """
    if local(config.output) is None:
        raise ConfigError(
            f"{config.output}: the complete job needs a local folder; set output to a local path, and copy it afterwards"
        )
    with ExitStack() as stack:
        store, config, text = open_run(stack, config)
        job = _Job(config, task_kinds, progress, log, store)
        check(config, task_kinds)
        store.save_config(text)
        job.run(before or JobFolder(config.output).before)
        summary = job.summary()
        if job.finished and page:
            store.run(lambda files: files.save_page("report.html", run_page(config.output)))
        return summary


def check(config: Pipeline, task_kinds: Mapping[str, TaskKind] = TASK_KINDS) -> None:
    """Checks a job before any work.

    Raises:
        TessyError: the first fault.
    """
    if config.missing and jax.process_count() > 1:
        raise ConfigError(
            f"boundary names no predictor for the {' and the '.join(config.missing)}, and several processes cannot make one;"
            " make it with `tessy boundary` in one process, and name it in boundary"
        )
    problems_of(config.evaluation.tasks, task_kinds)
    with open_verification(config.synthesis.verification, response_verifiers(task_kinds)) as verifier:
        prompts_of(config.data, verifier)
    if config.data.decontaminate is not None:
        questions(config.data.decontaminate)
    if config.missing:
        assert config.predictors is not None
        backbone_of(config.predictors.predictor)
    else:
        data = synthesis_config(config, 1, config.student.model, config.boundary)
        partitioner = Partitioner.of(config.mesh)
        ModelSet(data, partitioner)
        passes.chooser(data, partitioner)
        if (earlier := passes.first_pass(data)) is not None:
            ModelSet(earlier, partitioner)
    if config.writer is not None:
        _check_writer(config, config.writer)


def _check_writer(config: Pipeline, writer: Model) -> None:
    """Checks that the trained student marks thinking as the writer does.

    Raises:
        ConfigError: their markers differ.
    """
    assert config.date is not None
    date = datetime.date.fromisoformat(config.date)
    theirs, own = (writer_spec("student", section, date).chat for section in (writer, config.student))
    if (theirs.open_text, theirs.close_text) != (own.open_text, own.close_text):
        raise ConfigError(
            f"writer opens and closes thinking with {theirs.open_text!r} and {theirs.close_text!r}, student with "
            f"{own.open_text!r} and {own.close_text!r}; set student.thinking, or use a writer with the same markers"
        )


def own_questions(config: Pipeline, data: Data, task_kinds: Mapping[str, TaskKind]) -> list[Question]:
    """The prompts of the job's evaluation, if `data` must not contain them.

    Raises:
        TessyError: a task cannot be read.
    """
    if data.decontaminate is None or not data.decontaminate.evaluation:
        return []
    by_task = problems_of(config.evaluation.tasks, task_kinds)
    return [Question(problem.id, problem.messages) for problems in by_task.values() for problem in problems]


class _Job:
    """A running job. stages: seconds of the finished stages."""

    def __init__(
        self,
        config: Pipeline,
        task_kinds: Mapping[str, TaskKind],
        progress: bool,
        log: Log,
        store: PrimaryStore,
    ) -> None:
        self.config, self.task_kinds, self.store = config, task_kinds, store
        self.options: dict[str, Any] = {"progress": progress, "log": log}
        self.log = log if is_primary() else lambda text: None
        earlier: Mapping[str, Any] = store.run(lambda files: files.summary() or {})
        self.stages = read_stages(earlier, config.output)
        self.peak: int = earlier.get("peak_memory", {}).get("host_bytes", 0)
        self.finished = False
        self.student: Decoder | None = None

    def run(self, before: str) -> None:
        """Runs every unfinished stage. before: folder of the untouched student's evaluation."""
        config = self.config
        boundary = config.boundary.model_copy(update=self._predictors()) if config.missing else config.boundary
        self._evaluation(BEFORE_STAGE, before, config.student.model)
        model = config.student.model
        for number in range(1, config.rounds + 1):
            folder = JobFolder(config.output).round(number)
            training = training_config(config, number, model)
            if not _is_trained(training.output):
                data = synthesis_config(config, number, model, boundary)
                with self._stage(Stage(DATA, number)):
                    if not _is_finished(data.output):
                        options = {
                            "verifiers": response_verifiers(self.task_kinds),
                            "questions": own_questions(config, config.data, self.task_kinds),
                            **self.options,
                        }
                        written = synthesize(data, None if config.writer else self.student, **options)
                        self.student = self.student if config.writer else written.student or self.student
                with self._stage(Stage(TRAINING, number)):
                    trained = train(training, self.student, **self.options)
                    self.student = trained.student
                if not trained.summary["finished"]:
                    self.log(f"round {number}: training was asked to stop; the same command resumes it")
                    return
            model = within(training.output, FOLDER)
            self._evaluation(Stage(EVALUATION, number), folder.evaluation, model)
            self._evaluate_epochs(number, folder, training.output)
        self.student = None
        self.finished = True

    def summary(self) -> dict[str, Any]:
        """The content of summary.json, which it saves."""
        unit = 1 if sys.platform == "darwin" else 1024
        self.peak = max(self.peak, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
        memory = jax.local_devices()[0].memory_stats() or {}
        summary = {
            "rounds": self.config.rounds,
            "finished": self.finished,
            "stages": dump_stages(self.stages),
            "peak_memory": {"host_bytes": self.peak, "device_bytes": memory.get("peak_bytes_in_use")},
            **provenance(),
        }
        self.store.save_summary(summary)
        return summary

    @contextmanager
    def _stage(self, stage: Stage) -> Iterator[None]:
        """Times a stage; of several starts, the longest counts."""
        started = time.perf_counter()
        self.log(f"=== {stage.name}")
        yield
        seconds = time.perf_counter() - started
        self.stages[stage] = max(seconds, self.stages.get(stage, 0.0))
        self.summary()

    def _predictors(self) -> dict[str, str]:
        """Makes the missing predictors and returns their folders by speaker."""
        config, making = self.config, self.config.predictors
        assert making is not None
        made = making.model_dump() | _shared(config, JobFolder(config.output).predictors, config.seed)
        speakers = {"student": config.writer or config.student, "teacher": config.teacher}
        made |= {"data": making.data or config.data} | {speaker: speakers[speaker] for speaker in config.missing}
        predictors = Predictors.model_validate(made)
        with self._stage(Stage(MADE)):
            if not _holds(predictors.output, "evaluation.json"):
                assert predictors.data is not None
                sample(predictors, questions=own_questions(config, predictors.data, self.task_kinds), **self.options)
                annotate_traces(predictors, log=self.options["log"])
                for speaker in config.missing:
                    train_predictor(predictors, speaker, **self.options)
                evaluations = evaluate_predictors(predictors, log=self.options["log"])
                save_predictor_page(predictors.output, evaluations)
        return {speaker: within(training_folder(predictors, speaker), FOLDER) for speaker in config.missing}

    def _evaluate_epochs(self, number: int, folder: RoundFolder, trained: str) -> None:
        """Evaluates the checkpoints of a training's epochs."""
        if not self.config.evaluation.every_epochs:
            return
        summary = on_primary(lambda: RunReader(trained).summary() or {})
        for epoch, step in summary.get("epoch_ends", {}).items():
            if step < summary["steps"]:
                stage = Stage(EVALUATION, number, int(epoch))
                self._evaluate_checkpoint(stage, folder.epoch(int(epoch)), trained, step)

    def _evaluate_checkpoint(self, stage: Stage, place: str, trained: str, step: int) -> None:
        """Evaluates one checkpoint, exported into the training's folder for the time of the evaluation."""
        copy = Path(within(trained, f"epoch-{stage.epoch:03}"))
        if not _is_finished(place):
            self.student = None
            if on_primary(lambda: not copy.exists()):
                export_model(trained, copy, step)
            self._evaluation(stage, place, str(copy))
            self.student = None
        on_primary(lambda: shutil.rmtree(copy, ignore_errors=True))

    def _evaluation(self, stage: Stage, place: str, model: str) -> None:
        """Evaluates the student."""
        evaluation = evaluation_config(self.config, stage, place, model)
        with self._stage(stage):
            if not _is_finished(evaluation.output):
                self.student = evaluate(evaluation, self.student, task_kinds=self.task_kinds, **self.options).student


def _shared(config: Pipeline, output: str, seed: int) -> dict[str, Any]:
    """The settings that all stages share."""
    return {"output": output, "seed": seed % (1 << 32), "mesh": config.mesh, "date": config.date}


def _with_weights(student: Model, model: str) -> Model:
    """The student's section, with the weights of a folder."""
    return student if model == student.model else student.model_copy(update={"model": model, "revision": None})


def synthesis_config(config: Pipeline, number: int, model: str, boundary: Boundary) -> Synthesize:
    """The synthesis of a round. model: the student's weights."""
    return Synthesize.model_validate(
        {
            **_shared(config, JobFolder(config.output).round(number).synthesis, config.seed + number - 1),
            "data": config.data,
            "student": config.writer or _with_weights(config.student, model),
            "teacher": config.teacher,
            "boundary": boundary,
            "synthesis": config.synthesis,
        }
    )


def training_config(config: Pipeline, number: int, model: str) -> Train:
    """The training of a round. model: the student's weights before it."""
    folder = JobFolder(config.output).round(number)
    every = {"keep_epochs": config.evaluation.every_epochs} if config.evaluation.every_epochs else {}
    return Train.model_validate(
        {
            **_shared(config, folder.training, config.seed + number - 1),
            "student": _with_weights(config.student, model),
            "data": {"path": folder.synthesis, "on_overlength": config.on_overlength},
            **{name: getattr(config, name) for name in ("weights", "optimizer", "lora")},
            "training": config.training.model_copy(update=every),
        }
    )


def evaluation_config(config: Pipeline, stage: Stage, place: str, model: str) -> Evaluate:
    """An evaluation of the student. All have the same settings, except for the system message of isolated data."""
    asked = config.evaluation
    changes: dict[str, Any] = {"sampling": asked.sampling or config.student.sampling}
    if asked.system is not None and stage != BEFORE_STAGE:
        changes["system"] = asked.system
    return Evaluate.model_validate(
        {
            **_shared(config, place, config.seed),
            "student": _with_weights(config.student, model).model_copy(update=changes),
            "tasks": asked.tasks,
            "synthesis": asked.synthesis,
            "confidence": asked.confidence,
        }
    )


def _is_finished(output: str) -> bool:
    """Whether a synthesis or an evaluation is finished."""
    return on_primary(lambda: finished(output) is not None)


def _holds(output: str, name: str) -> bool:
    """Whether a run folder exists and holds a file."""
    return on_primary(lambda: (reader := reader_of(output)) is not None and reader.file(name) is not None)


def _is_trained(output: str) -> bool:
    """Whether a training is finished."""
    return on_primary(lambda: finished_training(output) is not None)
