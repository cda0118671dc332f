"""`tessy synthesize`: prompts in, responses out, in a run folder that survives being killed at any instant."""

from __future__ import annotations

import base64
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from tessy_jax.config import Data, Synthesize, reconcile
from tessy_jax.errors import ConfigError
from tessy_jax.models.transformer import Decoder
from tessy_jax.processes import all_or_raise, check_same, is_primary, on_primary
from tessy_jax.records import Failure, Row, response_id
from tessy_jax.sharding import Partitioner
from tessy_jax.store import RunReader, RunStore
from tessy_jax.store.opening import finished, open_run
from tessy_jax.synthesis.contamination import CONTAMINATED, Question, contaminated
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.synthesis.passes import choose, chooser, first_pass, with_references
from tessy_jax.synthesis.progress import Progress
from tessy_jax.synthesis.prompts import Job, Prompt, Prompts, jobs, read
from tessy_jax.synthesis.scheduler import Scheduler, Task
from tessy_jax.synthesis.scores import SCORES, first_rows, score_lines
from tessy_jax.synthesis.snapshot import InFlight, pack, unpack
from tessy_jax.synthesis.summary import summarize, whole
from tessy_jax.synthesis.verification import VerificationStep, VerifierFactory, open_verification
from tessy_jax.text.host_bridge import HostBridge

logger = logging.getLogger(__name__)


class SynthesisResult(NamedTuple):
    """A synthesis that is done. summary: is also saved. student: its weights on the mesh, all else being freed; None where
    it did not take part."""

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
    """Runs or continues the job of a configuration; one process of several does its part: all of them keep the same lanes
    full in the same order, and the first alone has to do with the run folder.

    student: its weights, where they are on this mesh already; they are used up. unfinished: responses that reach their
    limit, or end their turn inside the thinking, are kept as they are, with that for a finish_reason: they are good for
    their thinking, and no data to train on. judges: opens what judges responses, where synthesis.verification wants that.
    questions: prompts of the job's own evaluation, for data.decontaminate. tell: gets the start-up check, the first prompt
    as each model sees it.

    Raises:
        TessyError: what is wrong with configuration, input, models or output, before any device work.
    """
    started = time.perf_counter()
    data = config.data
    with ExitStack() as stack:
        verifier = all_or_raise(lambda: stack.enter_context(open_verification(config.synthesis.verification, verifiers)))
        found = all_or_raise(lambda: prompts_of(data, verifier))
        check_same([[prompt.id, prompt.messages] for prompt in found.prompts], data.path)
        wanted = jobs(found.prompts, data.rollouts)
        over = on_primary(lambda: contaminated(data, found.prompts, questions))
        stores, config, text = open_run(stack, config)
        partitioner = Partitioner.of(config.mesh)
        models, teacher = all_or_raise(lambda: (ModelSet(config, partitioner), chooser(config, partitioner)))
        partitioner.check({"lanes": (config.synthesis.lanes, "synthesis.lanes")})
        on_primary(lambda: stores[0].save_config(text))
        earlier, student = _first_pass(
            config, student, {"verifiers": verifiers, "questions": questions, "progress": progress, "log": log}
        )
        failures = [*_skipped(found), *_contaminated(wanted, over)]
        if config.synthesis.recipe == "teacher_reference":
            assert earlier is not None
            wanted, lost = with_references(config, earlier.output, [job for job in wanted if job.prompt.id not in over])
            failures += lost
        if is_primary():
            log(describe_prompts(models, [job.prompt for job in wanted] or found.prompts))
            for writer, bridge in zip(models.writers, models.bridges, strict=False):
                if len(models.writers) > 1 and isinstance(bridge, HostBridge):
                    logger.warning("%s: its tokenizer runs on the host only, which slows the loop down", writer.folder)
        tasks = tasks_left(wanted, on_primary(lambda: kept(stores[0], failures)))
        if teacher is not None:
            assert earlier is not None
            for rows, failed in choose(config, earlier, teacher, [task.job for task in tasks]):
                on_primary(lambda rows=rows, failed=failed: stores[0].commit(rows, failed))  # type: ignore[misc]
            return SynthesisResult(
                on_primary(lambda: _conclude_choice(stores[0], earlier, time.perf_counter() - started)), student
            )
        engine = all_or_raise(lambda: models.engine(student))
        scheduler = Scheduler(models, engine, tasks, unfinished=unfinished, verifier=verifier)
        saved = time.perf_counter()

        def keep(rows: Sequence[Row], failures: Sequence[Failure]) -> bool:
            """Saves what ended; whether it is time for a snapshot."""
            if rows or failures:
                stores[0].commit(rows, failures)
            return time.perf_counter() - saved >= config.synthesis.snapshot_seconds

        def save(begun: Sequence[InFlight]) -> None:
            stores[0].save_snapshot(pack(begun))

        done = len(wanted) - len(tasks)
        with Progress(len(wanted), done, models, scheduler, shown=progress and is_primary()) as bar:
            for rows, failures in scheduler.dispatches():
                due = on_primary(partial(keep, rows, failures))
                bar.advance(len(rows) + len(failures))  # what the bar counts has been saved
                if due:
                    begun = scheduler.in_flight()
                    on_primary(partial(save, begun))
                    saved = time.perf_counter()

        if config.synthesis.scored_responses and len(models.writers) > 1:  # neither evaluations nor traces
            lines = score_lines(
                models, engine.writers, on_primary(lambda: first_rows(stores[0].rows(), config.synthesis.scored_responses))
            )
            on_primary(lambda: stores[0].save_page(SCORES, lines))

        def concluded() -> dict[str, Any]:
            stores[0].clear_snapshots()
            stores[0].compact()
            summary = summarize(models, scheduler, stores[0], seconds=time.perf_counter() - started)
            if earlier is not None:
                summary["first_pass"] = RunReader(earlier.output).summary()
            stores[0].save_summary(summary)
            return summary

        summary = on_primary(concluded)
        own = models.names.index("student") if "student" in models.names else None
        return SynthesisResult(summary, None if own is None else engine.release(own))


def _first_pass(
    config: Synthesize, student: Decoder | None, how: Mapping[str, Any]
) -> tuple[Synthesize | None, Decoder | None]:
    """Does the first pass of a recipe of two, if it is not over; its configuration, and the student."""
    earlier = first_pass(config)
    if earlier is None or on_primary(lambda: finished(earlier.output) is not None):
        return earlier, student
    written = synthesize(earlier, student, **how)
    return earlier, written.student or student


def _conclude_choice(store: RunStore, candidates: Synthesize, seconds: float) -> dict[str, Any]:
    """The summary of responses that were chosen: counts are of what there is, measures are those of writing candidates."""
    store.compact()
    written = RunReader(candidates.output).summary() or {}
    summary = {**written, "run": whole(store), "first_pass": written, "chosen": True, "seconds": round(seconds, 3)}
    store.save_summary(summary)
    return summary


def responses(
    config: Synthesize,
    student: Decoder | None = None,
    *,
    verifiers: VerifierFactory | None = None,
    questions: Sequence[Question] = (),
) -> Iterator[Row | Failure]:
    """Writes the responses of a configuration, in one process, and gives each as it ends; nothing is saved, and `output` is
    not looked at. student, judges, questions: as for `synthesize`.

    Raises:
        TessyError: what is wrong with configuration, input or models, before any device work.
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
        found = prompts_of(data, verifier)
        over, wanted = contaminated(data, found.prompts, questions), jobs(found.prompts, data.rollouts)
        yield from _skipped(found)
        yield from _contaminated(wanted, over)
        models = ModelSet(config, Partitioner.of(config.mesh))
        tasks = [Task(job) for job in wanted if job.prompt.id not in over]
        for rows, failures in Scheduler(models, models.engine(student), tasks, verifier=verifier).dispatches():
            yield from rows
            yield from failures


def prompts_of(data: Data, verifier: VerificationStep | None) -> Prompts:
    """The prompts, with what is known of their answers, where responses are verified.

    Raises:
        DataError, ConfigError: see `prompts.read`; or a row has no right answer.
    """
    where = data.path, data.split, data.limit, data.skip_invalid
    if verifier is None:
        return read(*where, prompt=data.prompt)
    return read(*where, prompt=data.prompt, columns=verifier.verifier.columns, known=verifier.verifier.known)


def kept(store: RunStore, failures: Sequence[Failure]) -> dict[str, Any]:
    """Saves what has failed already; what `tasks_left` has to know of the folder, as JSON: the keys of
    responses that are over, and the snapshot in base64."""
    store.commit([], failures)
    blob = store.load_snapshot()
    return {
        "over": sorted(store.finished() | store.failed()),
        "snapshot": None if blob is None else base64.b64encode(blob).decode("ascii"),
    }


def tasks_left(wanted: list[Job], before: dict[str, Any]) -> list[Task]:
    """What is still to be written, what had been begun first and with what there is of it. before: see `kept`."""
    over = {(prompt, rollout) for prompt, rollout in before["over"]}
    tasks = {task.key: task for task in map(Task, wanted) if task.key not in over}
    blob = before["snapshot"]
    begun = []
    for one in unpack(base64.b64decode(blob)) if blob else []:
        task = tasks.get(one.key)
        if task is not None:
            task.attempt, task.state, task.seconds = one.attempt, one.state, one.seconds
            begun.append(one.key)
    early = set(begun)
    return [tasks[key] for key in begun] + [task for key, task in tasks.items() if key not in early]


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


def _contaminated(wanted: list[Job], over: Mapping[str, str]) -> list[Failure]:
    keys = ((job.prompt.id, job.rollout) for job in wanted if job.prompt.id in over)
    return [Failure(response_id(key), *key, CONTAMINATED, 0, over[key[0]]) for key in keys]


def _skipped(found: Prompts) -> list[Failure]:
    return [Failure(response_id((where, 0)), where, 0, "invalid_row", 0, reason) for where, reason in found.skipped]
