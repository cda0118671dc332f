"""`tessy synthesize`: prompts in, responses out, in a run folder that survives being killed at any instant."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from tessy_jax.config import Synthesize, dump, settle
from tessy_jax.models.transformer import Decoder
from tessy_jax.records import Failure
from tessy_jax.sharding import Layout
from tessy_jax.store import RunStore
from tessy_jax.synthesis.cast import Cast
from tessy_jax.synthesis.progress import Progress
from tessy_jax.synthesis.prompts import Job, Prompts, jobs, read
from tessy_jax.synthesis.scheduler import Scheduler, Task, response_id
from tessy_jax.synthesis.snapshot import pack, unpack
from tessy_jax.synthesis.summary import summarize
from tessy_jax.text.host_bridge import HostBridge

log = logging.getLogger(__name__)


class Written(NamedTuple):
    """A synthesis that is done. summary: is also saved. student: its weights on the mesh, all else being freed; None where
    it did not take part."""

    summary: dict[str, Any]
    student: Decoder | None


def synthesize(
    config: Synthesize,
    student: Decoder | None = None,
    *,
    unfinished: bool = False,
    progress: bool = True,
    tell: Callable[[str], None] = log.info,
) -> Written:
    """Runs or continues the job of a configuration.

    student: its weights, where they are on this mesh already; they are used up. unfinished: responses that reach their
    limit, or end their turn, inside the thinking are kept as they are, with that for a finish_reason: they are good for
    their thinking, and no data to train on. tell: gets the start-up check, the first prompt as each model sees it.

    Raises:
        TessyError: what is wrong with configuration, input, models or output, before any device work.
    """
    started = time.perf_counter()
    found = read(config.data.path, config.data.split, config.data.limit, config.data.skip_invalid)
    wanted = jobs(found.prompts, config.data.rollouts)
    with RunStore(config.output) as store:
        config = settle(config, store.config())
        layout = Layout.of(config.mesh)
        cast = Cast(config, layout)
        layout.check({"lanes": (config.synthesis.lanes, "synthesis.lanes")})
        tell(describe_prompts(cast, found))
        for voice, bridge in zip(cast.voices, cast.bridges, strict=False):
            if len(cast.voices) > 1 and isinstance(bridge, HostBridge):
                log.warning("%s: its tokenizer runs on the host only, which slows the loop down", voice.folder)
        store.save_config(dump(config))
        store.commit([], _skipped(found))
        tasks = tasks_left(wanted, store)
        engine = cast.engine(student)
        scheduler = Scheduler(cast, engine, tasks, unfinished=unfinished)
        saved = time.perf_counter()
        done = len(wanted) - len(tasks)
        with Progress(len(wanted), done, cast, scheduler, shown=progress) as bar:
            for rows, failures in scheduler.visits():
                if rows or failures:
                    store.commit(rows, failures)  # what the bar counts has been saved
                bar.advance(len(rows) + len(failures))
                if time.perf_counter() - saved >= config.synthesis.snapshot_seconds:
                    store.save_snapshot(pack(scheduler.begun()))
                    saved = time.perf_counter()
        store.clear_snapshots()
        store.compact()
        summary = summarize(cast, scheduler, store, seconds=time.perf_counter() - started)
        store.save_summary(summary)
        own = cast.names.index("student") if "student" in cast.names else None
        return Written(summary, None if own is None else engine.release(own))


def tasks_left(wanted: list[Job], store: RunStore) -> list[Task]:
    """What is still to be written, what had been begun first and with what there is of it."""
    over = store.finished() | store.failed()
    tasks = {task.key: task for task in map(Task, wanted) if task.key not in over}
    blob = store.load_snapshot()
    begun = []
    for one in unpack(blob) if blob else []:
        task = tasks.get(one.key)
        if task is not None:
            task.attempt, task.entry, task.seconds = one.attempt, one.entry, one.seconds
            begun.append(one.key)
    first = set(begun)
    return [tasks[key] for key in begun] + [task for key, task in tasks.items() if key not in first]


def describe_prompts(cast: Cast, found: Prompts) -> str:
    """The first prompt as each model sees it, up to the opened thinking."""
    messages = found.prompts[0].messages
    lines = []
    for voice, ids in zip(cast.voices, cast.prompts(messages), strict=True):
        lines += [f"--- first prompt of the {voice.name} ({voice.folder}), {len(ids)} tokens", voice.chat.rendered(messages)]
    return "\n".join(lines)


def _skipped(found: Prompts) -> list[Failure]:
    return [Failure(response_id((where, 0)), where, 0, "invalid_row", 0, reason) for where, reason in found.skipped]
