"""Keeps the lanes full: seats responses, takes out what has ended, tries again what failed, and remembers what is begun."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tessy_jax import __version__
from tessy_jax.decode.engine import Engine
from tessy_jax.decode.entry import Entry
from tessy_jax.decode.state import CONTROL, DONE, EARLY_END, LENGTH, REPETITION, RUNNING, UNSPELLED
from tessy_jax.errors import DataError
from tessy_jax.records import PHASE_BIT, Failure, Key, Row, Value, code, response_id, spans_from_bytes
from tessy_jax.synthesis.cast import Cast, number_of
from tessy_jax.synthesis.prompts import Job, with_system
from tessy_jax.synthesis.snapshot import Begun
from tessy_jax.synthesis.verification import Verifier

REASONS = {
    LENGTH: "length",
    REPETITION: "repetition",
    EARLY_END: "early_end",
    CONTROL: "control_token",
    UNSPELLED: "unspellable",
}
CUT = ("length", "early_end")  # reasons for which a response may end before its end, and be text all the same
INVALID = "invalid_utf8"
TOO_LONG = "prompt_too_long"
DETAILS = {
    "length": "the response reached synthesis.max_response_tokens",
    "repetition": "the last tokens repeat (synthesis.repetition)",
    "early_end": "the turn ended inside the thinking",
    "control_token": "a control token was written where text belongs",
    "unspellable": "the other model's vocabulary has no tokens for a character of the text",
    INVALID: "the response's bytes are not UTF-8",
}
UNVERIFIED = "the verifier says that the answer is not right (synthesis.verification)"


@dataclass
class Task:
    """A response on its way. begun: seconds on the clock when it was seated, less what it had taken before."""

    job: Job
    attempt: int = 0
    entry: Entry | None = None
    seconds: float = 0.0
    begun: float = 0.0

    @property
    def key(self) -> Key:
        return self.job.prompt.id, self.job.rollout


class Ended(NamedTuple):
    """What a lane held at its end. reason: why it came to nothing, or the verifier's word. row: where it is a response.
    again: if not, another attempt may be one."""

    task: Task
    entry: Entry
    reason: str | None
    row: Row | None
    again: bool = True


@dataclass
class Tally:
    """What has been written since the start, per side where there are two: generated is kept, plus discarded, plus failed,
    what attempts that came to nothing had kept."""

    kept: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    generated: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    discarded: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    failed: np.ndarray = field(default_factory=lambda: np.zeros(2, np.int64))
    switches: int = 0
    responses: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)


class Scheduler:
    """Writes tasks in the lanes of an engine. unfinished: what does not come to its end is a response, too. verifier: judges
    what comes to its end."""

    def __init__(
        self, cast: Cast, engine: Engine, tasks: list[Task], *, unfinished: bool = False, verifier: Verifier | None = None
    ) -> None:
        self.cast, self.engine, self.unfinished, self.verifier = cast, engine, unfinished, verifier
        self.waiting = deque(tasks)
        self.seated: dict[int, Task] = {}
        self.tally = Tally()
        self.running_seconds = 0.0

    def visits(self) -> Iterator[tuple[list[Row], list[Failure]]]:
        """What ended, visit by visit, until nothing is left."""
        while True:
            failures = self._fill()
            if failures:
                yield [], failures
            if not self.seated:
                return
            start, compiled = time.perf_counter(), self.compile_seconds
            status = self.engine.run(harvest=max(1, len(self.seated) // 16))
            self.running_seconds += time.perf_counter() - start - (self.compile_seconds - compiled)
            yield self._harvest([lane for lane in self.seated if status[lane] >= DONE])

    def begun(self) -> list[Begun]:
        """Everything that would be lost if the process ended now."""
        lanes = list(self.seated)
        entries = self.engine.take(lanes)
        now = time.perf_counter()
        seated = [
            Begun(self.seated[lane].key, entry.attempt, entry, now - self.seated[lane].begun)
            for lane, entry in zip(lanes, entries, strict=True)
            if entry.status == RUNNING
        ]
        again = [Begun(t.key, t.attempt, t.entry, t.seconds) for t in self.waiting if t.attempt or t.entry]
        return seated + again

    @property
    def compile_seconds(self) -> float:
        return sum(c.seconds for c in self.engine.compilations)

    def _fill(self) -> list[Failure]:
        """Seats waiting tasks in free lanes; those whose prompt is too long fail at once."""
        failures: list[Failure] = []
        free = [lane for lane in range(self.engine.size) if lane not in self.seated]
        free = free[: max(0, self.cast.config.synthesis.lanes - len(self.seated))]
        while free and self.waiting:
            task = self.waiting.popleft()
            entry = task.entry
            if entry is None:
                number = number_of(*task.key)
                prompts = self.cast.prompts(task.job.prompt.asked)
                longest = max(len(ids) for ids in prompts)
                limit = self.cast.config.synthesis.max_prompt_tokens
                if longest > limit:
                    failures.append(
                        self._failed(task, TOO_LONG, 0, f"{longest} tokens, synthesis.max_prompt_tokens is {limit}")
                    )
                    continue
                entry = self.cast.entry(prompts, number, task.attempt)
            lane = free.pop(0)
            start, compiled = time.perf_counter(), self.compile_seconds
            task.begun = start - task.seconds
            self.engine.seat(lane, entry)
            self.running_seconds += time.perf_counter() - start - (self.compile_seconds - compiled)
            self.seated[lane] = task
        return failures

    def _harvest(self, lanes: list[int]) -> tuple[list[Row], list[Failure]]:
        rows, failures = [], []
        ended = [self._ended(lane, entry) for lane, entry in zip(lanes, self.engine.take(lanes), strict=True)]
        for task, entry, reason, row, again in self._verified(ended):
            kept = np.array(entry.generated) - np.array(entry.discarded)
            if row is not None:
                rows.append(row)
                self.tally.kept += kept
                self.tally.switches += entry.switches
                self.tally.responses += 1
                continue
            assert reason is not None
            self.tally.failed += kept
            task.attempt += 1
            task.entry = None
            if again and task.attempt < self.cast.config.synthesis.max_attempts:
                self.tally.retries[reason] += 1
                self.waiting.appendleft(task)
            else:
                failures.append(self._failed(task, reason, task.attempt, DETAILS.get(reason, UNVERIFIED)))
        return rows, failures

    def _ended(self, lane: int, entry: Entry) -> Ended:
        """Frees a lane."""
        task = self.seated.pop(lane)
        self.engine.clear(lane)
        task.seconds = time.perf_counter() - task.begun
        self.tally.generated += np.array(entry.generated)
        self.tally.discarded += np.array(entry.discarded)
        reason = REASONS.get(entry.status)
        row = None
        if reason is None or (self.unfinished and reason in CUT and entry.text.strip()):
            try:
                row = self.row(task, entry)
            except DataError:
                reason = INVALID
        return Ended(task, entry, reason, row)

    def _verified(self, ended: Sequence[Ended]) -> Iterator[Ended]:
        """The same after the verifier, if there is one, has judged the responses among them, all at once."""
        asked = [(one.task.job.prompt, one.row) for one in ended if one.row is not None]
        if self.verifier is None or not asked:
            yield from ended
            return
        verdicts = iter(self.verifier.judged(asked))
        for one in ended:
            if one.row is None:
                yield one
                continue
            found = next(verdicts)
            self.tally.verdicts[found.verdict] += 1
            yield one._replace(reason=found.verdict, row=found.row, again=found.again)

    def _failed(self, task: Task, reason: str, attempts: int, detail: str) -> Failure:
        self.tally.failures[reason] += 1
        return Failure(response_id(task.key), task.key[0], task.key[1], reason, attempts, detail)

    def row(self, task: Task, entry: Entry) -> Row:
        """The finished response as it is saved.

        Raises:
            DataError: its bytes are not UTF-8.
        """
        cast = self.cast
        opening, closing = cast.open_text.encode(), cast.close_text.encode()
        names = [*cast.names, *(["template"] if len(cast.names) == 2 else ["", "template"])]
        codes = np.array([code(names[s], "think") if names[s] else 0 for s in range(3)], np.uint8)  # type: ignore[arg-type]
        text = entry.text
        if entry.status in REASONS:  # the last character may lack a byte
            text = text.decode("utf-8", "ignore").encode()
        answers = np.arange(len(text)) >= (entry.thought + len(closing) if entry.thought >= 0 else len(text))
        told = codes[np.frombuffer(entry.sources, np.uint8)[: len(text)]] | (PHASE_BIT * answers).astype(np.uint8)
        told = np.concatenate([np.full(len(opening), code("template", "think"), np.uint8), told])
        content, spans = spans_from_bytes(opening + text, told)
        asked = with_system(cast.config.synthesis.isolation, task.job.prompt.messages)
        messages = (*asked, {"role": "assistant", "content": content})
        return Row(response_id(task.key), task.key[0], task.key[1], messages, spans, self._meta(task, entry))

    def _meta(self, task: Task, entry: Entry) -> dict[str, Value]:
        cast, config = self.cast, self.cast.config
        kept = {name: entry.generated[m] - entry.discarded[m] for m, name in enumerate(cast.names)}
        steps = dict(zip(cast.names, cast.steps, strict=True))
        meta: dict[str, Value] = {}
        for name in ("student", "teacher"):
            section = getattr(config, name) if name in cast.names else None
            meta |= {name: section and section.model, f"{name}_revision": section and section.revision}
            meta |= {f"{name}_step": steps.get(name), f"tokens_{name}": kept.get(name, 0)}
        return meta | {
            "index": task.job.prompt.index,
            "recipe": config.synthesis.recipe,
            "preset": config.synthesis.preset,
            "word_rule": config.synthesis.word_rule,
            "seed": config.seed,
            "attempt": entry.attempt,
            "finish_reason": REASONS.get(entry.status, "stop"),
            "tokens_discarded": sum(entry.discarded),
            "switches": entry.switches,
            "seconds": round(task.seconds, 3),
            "version": __version__,
        }
