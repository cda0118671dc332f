"""`tessy synthesize`: prompts in, responses out, in a run folder that survives a kill at any instant."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from tessy_jax.config import RECIPES, Data, Synthesize, reconcile
from tessy_jax.decode.engine import Engine
from tessy_jax.errors import ConfigError
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import all_or_raise, check_same, is_primary, on_primary
from tessy_jax.records import Failure, Row, response_id
from tessy_jax.sharding import Partitioner
from tessy_jax.store import RunReader, RunStore
from tessy_jax.store.opening import PrimaryStore, finished, open_run
from tessy_jax.synthesis.contamination import CONTAMINATED, Question, contaminated
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.synthesis.passes import choose, chooser, first_pass, with_references
from tessy_jax.synthesis.progress import Progress
from tessy_jax.synthesis.prompts import Job, Prompt, Prompts, jobs, read
from tessy_jax.synthesis.scheduler import Scheduler, Task
from tessy_jax.synthesis.scores import SCORES, first_rows, score_lines
from tessy_jax.synthesis.snapshot import InFlight, pack, unpack
from tessy_jax.synthesis.summary import run_counts, summarize
from tessy_jax.synthesis.verification import VerificationStep, VerifierFactory, open_verification
from tessy_jax.text.host_bridge import HostBridge

logger = logging.getLogger(__name__)


class SynthesisResult(NamedTuple):
    """The result of a finished synthesis.

    summary: the summary, which is also saved.
    student: the student's weights on the mesh, everything else being freed; None if the student did not write.
    """

    summary: dict[str, Any]
    student: Decoder | None


def synthesize(
    config: Synthesize,
    student: Decoder | None = None,
    *,
    unfinished: bool = False,
    verifiers: VerifierFactory | None = None,
    questions: Sequence[Question] = (),
    progress: bool = True,
    log: Callable[[str], None] = logger.info,
) -> SynthesisResult:
    """Runs or continues a synthesis. With several processes, all of them call it: they keep the same lanes full in the same
    order, and only process 0 reads and writes the run folder.

    student: the student's weights, if they are on this mesh already; they are used up.
    unfinished: keep responses that reach their limit, or end their turn inside the thinking, with that as their
        finish_reason; such responses are useful for their thinking, and not as training data.
    verifiers: opens the verifier that `synthesis.verification` names.
    questions: prompts of the job's own evaluation, for `data.decontaminate`.
    log: receives the start-up check: the first prompt as each model sees it.

    Raises:
        TessyError: configuration, input, models or output are invalid; raised before any device work.
    """
    started = time.perf_counter()
    rerun = partial(synthesize, verifiers=verifiers, questions=questions, progress=progress, log=log)
    with ExitStack() as stack:
        verifier = all_or_raise(lambda: stack.enter_context(open_verification(config.synthesis.verification, verifiers)))
        prompts, all_jobs = _read_jobs(config.data, verifier)
        contamination = on_primary(lambda: contaminated(config.data, prompts.prompts, questions))
        store, config, text = open_run(stack, config)
        models, scorer = _read_models(config)
        store.save_config(text)
        first, student = _run_first_pass(config, student, rerun)
        all_jobs, failures = _apply_references(config, first, all_jobs, contamination)
        _log_start(models, [job.prompt for job in all_jobs] or prompts.prompts, log)
        failures = [*_skipped(prompts), *failures]
        tasks = tasks_left(all_jobs, store.run(lambda files: saved_state(files, failures)))
        if scorer is not None:
            assert first is not None
            for rows, failures in choose(config, first, scorer, [task.job for task in tasks]):
                store.run(lambda files, rows=rows, failures=failures: files.commit(rows, failures))  # type: ignore[misc]
            return SynthesisResult(store.run(partial(_conclude_choice, first, started)), student)
        models.limit_lanes(len(tasks))
        engine = all_or_raise(lambda: models.engine(student))
        scheduler = Scheduler(models, engine, tasks, unfinished=unfinished, verifier=verifier)
        _write(scheduler, store, total=len(all_jobs), progress=progress)
        _save_scores(models, engine, store)
        summary = store.run(partial(_conclude, scheduler, first, started))
        side = models.names.index("student") if "student" in models.names else None
        return SynthesisResult(summary, None if side is None else engine.release(side))


def _read_jobs(data: Data, verifier: VerificationStep | None) -> tuple[Prompts, list[Job]]:
    """The prompts, which must be the same on all processes, and one job per response."""
    prompts = all_or_raise(lambda: prompts_of(data, verifier))
    check_same([[prompt.id, prompt.messages] for prompt in prompts.prompts], data.path)
    return prompts, jobs(prompts.prompts, data.rollouts)


def _read_models(config: Synthesize) -> tuple[ModelSet, ModelSet | None]:
    """The writers and, if the recipe has one, the scorer, without their weights."""
    partitioner = Partitioner.of(config.mesh)
    models, scorer = all_or_raise(lambda: (ModelSet(config, partitioner), chooser(config, partitioner)))
    return models, scorer


def _run_first_pass(
    config: Synthesize, student: Decoder | None, run: Callable[[Synthesize, Decoder | None], SynthesisResult]
) -> tuple[Synthesize | None, Decoder | None]:
    """Runs the first pass of a recipe of two, unless it is finished. Returns its configuration and the student's weights."""
    first = first_pass(config)
    if first is None or on_primary(lambda: finished(first.output) is not None):
        return first, student
    return first, run(first, student).student or student


def _apply_references(
    config: Synthesize, first: Synthesize | None, all_jobs: list[Job], contamination: Mapping[str, str]
) -> tuple[list[Job], list[Failure]]:
    """The jobs as the writers see them, and the failures that are known before any work: contaminated prompts and, if the
    recipe shows references, jobs without one."""
    failures = _contaminated(all_jobs, contamination)
    if RECIPES[config.synthesis.recipe].reference is None:
        return all_jobs, failures
    assert first is not None
    clean = [job for job in all_jobs if job.prompt.id not in contamination]
    with_text, missing = with_references(config, first.output, clean)
    return with_text, failures + missing


def _log_start(models: ModelSet, prompts: Sequence[Prompt], log: Callable[[str], None]) -> None:
    """Logs the first prompt as each model sees it, and a warning for each slow bridge."""
    if not is_primary():
        return
    log(describe_prompts(models, prompts))
    for writer, bridge in zip(models.writers, models.bridges, strict=False):
        if len(models.writers) > 1 and isinstance(bridge, HostBridge):
            logger.warning("%s: the tokenizer runs on the host only, which slows the loop down", writer.folder)


def _write(scheduler: Scheduler, store: PrimaryStore, *, total: int, progress: bool) -> None:
    """Writes all responses of the scheduler; saves rows and failures as they end, and snapshots in between."""
    snapshot_seconds = scheduler.models.config.synthesis.snapshot_seconds
    saved = time.perf_counter()

    def save(rows: Sequence[Row], failures: Sequence[Failure], files: RunStore) -> bool:
        """Saves rows and failures; returns whether a snapshot is due."""
        if rows or failures:
            files.commit(rows, failures)
        return time.perf_counter() - saved >= snapshot_seconds

    def save_snapshot(in_flight: Sequence[InFlight], files: RunStore) -> None:
        files.save_snapshot(pack(in_flight))

    done = total - len(scheduler.waiting)
    with Progress(total, done, scheduler.models, scheduler, shown=progress and is_primary()) as bar:
        for rows, failures in scheduler.dispatches():
            due = store.run(partial(save, rows, failures))
            bar.advance(len(rows) + len(failures))  # the bar counts what has been saved
            if due:
                in_flight = scheduler.in_flight()
                store.run(partial(save_snapshot, in_flight))
                saved = time.perf_counter()


def _save_scores(models: ModelSet, engine: Engine, store: PrimaryStore) -> None:
    """Saves the token log-probabilities of the first responses; evaluations and traces, with one writer, have none."""
    count = models.config.synthesis.scored_responses
    if count and len(models.writers) > 1:
        lines = score_lines(models, engine.writers, store.run(lambda files: first_rows(files.rows(), count)))
        store.save_page(SCORES, lines)


def _conclude(scheduler: Scheduler, first: Synthesize | None, started: float, store: RunStore) -> dict[str, Any]:
    """Compacts the run folder of written responses and saves its summary, on process 0."""
    store.clear_snapshots()
    store.compact()
    summary = summarize(scheduler.models, scheduler, store, seconds=time.perf_counter() - started)
    if first is not None:
        summary["first_pass"] = RunReader(first.output).summary()
    store.save_summary(summary)
    return summary


def _conclude_choice(first: Synthesize, started: float, store: RunStore) -> dict[str, Any]:
    """Compacts the run folder of chosen responses and saves its summary, on process 0: counts are of the chosen responses,
    measures are those of writing the candidates."""
    seconds = round(time.perf_counter() - started, 3)
    store.compact()
    measures = RunReader(first.output).summary() or {}
    summary = {**measures, "run": run_counts(store), "first_pass": measures, "chosen": True, "seconds": seconds}
    store.save_summary(summary)
    return summary


def responses(
    config: Synthesize,
    student: Decoder | None = None,
    *,
    verifiers: VerifierFactory | None = None,
    questions: Sequence[Question] = (),
) -> Iterator[Row | Failure]:
    """Writes the responses of a configuration in one process and yields each as it ends; saves nothing, and ignores
    `output`.

    student, verifiers, questions: as in `synthesize`.

    Raises:
        TessyError: configuration, input or models are invalid; raised before any device work.
    """
    config = reconcile(config, None)
    data = config.data
    if first_pass(config) is not None:
        raise ConfigError(
            f"recipe {config.synthesis.recipe!r} has two passes, the first of which is saved; use synthesize, which has a "
            "run folder"
        )
    with ExitStack() as stack:
        verifier = stack.enter_context(open_verification(config.synthesis.verification, verifiers))
        prompts = prompts_of(data, verifier)
        contamination, all_jobs = contaminated(data, prompts.prompts, questions), jobs(prompts.prompts, data.rollouts)
        yield from _skipped(prompts)
        yield from _contaminated(all_jobs, contamination)
        models = ModelSet(config, Partitioner.of(config.mesh))
        tasks = [Task(job) for job in all_jobs if job.prompt.id not in contamination]
        models.limit_lanes(len(tasks))
        for rows, failures in Scheduler(models, models.engine(student), tasks, verifier=verifier).dispatches():
            yield from rows
            yield from failures


def prompts_of(data: Data, verifier: VerificationStep | None) -> Prompts:
    """The prompts, with their right answers if responses are verified.

    Raises:
        DataError, ConfigError: see `prompts.read`; or a row has no right answer.
    """
    read_rows = partial(read, data.path, data.split, data.limit, data.skip_invalid, subset=data.subset, prompt=data.prompt)
    if verifier is None:
        return read_rows()
    return read_rows(columns=verifier.verifier.columns, ground_truth=verifier.verifier.ground_truth)


def saved_state(store: RunStore, failures: Sequence[Failure]) -> dict[str, Any]:
    """Saves failures, and returns what `tasks_left` needs of the run folder, as JSON.

    Returns:
        over: the keys of responses that are finished or have failed. snapshot: the newest snapshot in base64, or None.
    """
    store.commit([], failures)
    blob = store.load_snapshot()
    return {
        "over": sorted(store.finished() | store.failed()),
        "snapshot": None if blob is None else base64.b64encode(blob).decode("ascii"),
    }


def tasks_left(all_jobs: list[Job], saved: dict[str, Any]) -> list[Task]:
    """The tasks of jobs that are not over; those in the snapshot come first and continue from their saved state.

    saved: see `saved_state`.
    """
    over = {(prompt, rollout) for prompt, rollout in saved["over"]}
    tasks = {task.key: task for task in map(Task, all_jobs) if task.key not in over}
    blob = saved["snapshot"]
    continued = []
    for response in unpack(base64.b64decode(blob)) if blob else []:
        task = tasks.get(response.key)
        if task is not None:
            task.attempt, task.state, task.seconds = response.attempt, response.state, response.seconds
            continued.append(response.key)
    early = set(continued)
    return [tasks[key] for key in continued] + [task for key, task in tasks.items() if key not in early]


def describe_prompts(models: ModelSet, prompts: Sequence[Prompt]) -> str:
    """The first prompt as each model sees it, up to the opened thinking."""
    messages = prompts[0].asked
    lines = []
    for writer, ids in zip(models.writers, models.prompts(messages), strict=True):
        lines += [
            f"--- first prompt of the {writer.name} ({writer.folder}), {len(ids)} tokens",
            writer.chat.rendered(messages),
        ]
    return "\n".join(lines)


def _contaminated(all_jobs: list[Job], contamination: Mapping[str, str]) -> list[Failure]:
    keys = ((job.prompt.id, job.rollout) for job in all_jobs if job.prompt.id in contamination)
    return [Failure(response_id(key), *key, CONTAMINATED, 0, contamination[key[0]]) for key in keys]


def _skipped(prompts: Prompts) -> list[Failure]:
    return [Failure(response_id((where, 0)), where, 0, "invalid_row", 0, reason) for where, reason in prompts.skipped]
