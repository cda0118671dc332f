"""Keeps the lanes full: inserts responses, extracts finished ones, retries failed ones, and snapshots unfinished ones."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from tessy_jax import __version__
from tessy_jax.decode.engine import Engine
from tessy_jax.decode.response_state import ResponseState
from tessy_jax.decode.state import CONTROL, DONE, EARLY_END, LENGTH, REPETITION, RUNNING, UNENCODABLE
from tessy_jax.errors import DataError
from tessy_jax.records import PHASE_BIT, Failure, Key, Row, Value, code, response_id, spans_from_bytes
from tessy_jax.synthesis.model_set import ModelSet, response_seed
from tessy_jax.synthesis.prompts import Job, with_system
from tessy_jax.synthesis.snapshot import InFlight
from tessy_jax.synthesis.verification import VerificationStep

REASONS = {
    LENGTH: "length",
    REPETITION: "repetition",
    EARLY_END: "early_end",
    CONTROL: "control_token",
    UNENCODABLE: "unspellable",
}
TRUNCATED = ("length", "early_end")  # reasons for which an unfinished response may be kept
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
    """A response to be written.

    state: its state in a snapshot; None before its first insertion. seconds: time in lanes so far. started: the clock, in
    seconds, at its insertion, less `seconds` at that time.
    """

    job: Job
    attempt: int = 0
    state: ResponseState | None = None
    seconds: float = 0.0
    started: float = 0.0

    @property
    def key(self) -> Key:
        return self.job.prompt.id, self.job.rollout


class Ended(NamedTuple):
    """A response that has left its lane.

    reason: the reason of the failure, or the verdict. row: the finished response; None if the attempt failed.
    retry: a failed attempt may be followed by another.
    """

    task: Task
    state: ResponseState
    reason: str | None
    row: Row | None
    retry: bool = True


@dataclass
class Tally:
    """Counts since the start; arrays hold tokens per side. generated = kept + discarded + failed, where failed tokens are
    the kept tokens of failed attempts."""

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
    """Writes tasks in the lanes of an engine.

    unfinished: also keep responses that are cut off, see `TRUNCATED`. verifier: verifies finished responses.
    """

    def __init__(
        self,
        models: ModelSet,
        engine: Engine,
        tasks: list[Task],
        *,
        unfinished: bool = False,
        verifier: VerificationStep | None = None,
    ) -> None:
        self.models, self.engine, self.unfinished, self.verifier = models, engine, unfinished, verifier
        self.waiting = deque(tasks)
        self.active: dict[int, Task] = {}
        self.tally = Tally()
        self.running_seconds = 0.0

    def dispatches(self) -> Iterator[tuple[list[Row], list[Failure]]]:
        """Yields the rows and failures of each dispatch until all tasks are over."""
        while True:
            failures = self._fill()
            if failures:
                yield [], failures
            if not self.active:
                return
            start, compiled = time.perf_counter(), self.start_seconds
            status = self.engine.run(harvest=max(1, len(self.active) // 16))
            self.running_seconds += time.perf_counter() - start - (self.start_seconds - compiled)
            yield self._collect([lane for lane in self.active if status[lane] >= DONE])

    def in_flight(self) -> list[InFlight]:
        """The unfinished responses, for a snapshot."""
        lanes = list(self.active)
        states = self.engine.extract(lanes)
        now = time.perf_counter()
        running = [
            InFlight(self.active[lane].key, state.scalars.attempt, state, now - self.active[lane].started)
            for lane, state in zip(lanes, states, strict=True)
            if state.scalars.status == RUNNING
        ]
        retried = [InFlight(t.key, t.attempt, t.state, t.seconds) for t in self.waiting if t.attempt or t.state]
        return running + retried

    @property
    def compile_seconds(self) -> float:
        """Seconds of compilation. Programs that came from the compilation cache count 0."""
        return sum(c.compile_seconds for c in self.engine.compilations)

    @property
    def start_seconds(self) -> float:
        """Seconds of tracing and compilation."""
        return self.compile_seconds + sum(c.trace_seconds for c in self.engine.compilations)

    def _fill(self) -> list[Failure]:
        """Inserts waiting tasks into free lanes; tasks with too long a prompt fail."""
        failures: list[Failure] = []
        free = [lane for lane in range(self.engine.size) if lane not in self.active]
        free = free[: max(0, self.models.lanes - len(self.active))]
        while free and self.waiting:
            task = self.waiting.popleft()
            state = task.state
            if state is None:
                number = response_seed(*task.key)
                prompts = self.models.prompts(task.job.prompt.asked)
                longest = max(len(ids) for ids in prompts)
                limit = self.models.config.synthesis.max_prompt_tokens
                if longest > limit:
                    failures.append(
                        self._failed(task, TOO_LONG, 0, f"{longest} tokens, synthesis.max_prompt_tokens is {limit}")
                    )
                    continue
                state = self.models.new_response(prompts, number, task.attempt)
            lane = free.pop(0)
            start, compiled = time.perf_counter(), self.start_seconds
            task.started = start - task.seconds
            self.engine.insert(lane, state)
            self.running_seconds += time.perf_counter() - start - (self.start_seconds - compiled)
            self.active[lane] = task
        return failures

    def _collect(self, lanes: list[int]) -> tuple[list[Row], list[Failure]]:
        rows, failures = [], []
        ended = [self._ended(lane, state) for lane, state in zip(lanes, self.engine.extract(lanes), strict=True)]
        for task, state, reason, row, retry in self._verified(ended):
            kept = np.array(state.scalars.generated) - np.array(state.scalars.discarded)
            if row is not None:
                rows.append(row)
                self.tally.kept += kept
                self.tally.switches += state.scalars.switches
                self.tally.responses += 1
                continue
            assert reason is not None
            self.tally.failed += kept
            task.attempt += 1
            task.state = None
            if retry and task.attempt < self.models.config.synthesis.max_attempts:
                self.tally.retries[reason] += 1
                self.waiting.appendleft(task)
            else:
                failures.append(self._failed(task, reason, task.attempt, DETAILS.get(reason, UNVERIFIED)))
        return rows, failures

    def _ended(self, lane: int, state: ResponseState) -> Ended:
        """Frees the lane of a response that has ended."""
        task = self.active.pop(lane)
        self.engine.free(lane)
        task.seconds = time.perf_counter() - task.started
        self.tally.generated += np.array(state.scalars.generated)
        self.tally.discarded += np.array(state.scalars.discarded)
        reason = REASONS.get(state.scalars.status)
        row = None
        if reason is None or (self.unfinished and reason in TRUNCATED and state.text.strip()):
            try:
                row = self.row(task, state)
            except DataError:
                reason = INVALID
        return Ended(task, state, reason, row)

    def _verified(self, ended: Sequence[Ended]) -> Iterator[Ended]:
        """Yields the ended responses with the verifier's verdicts, if there is a verifier; all are verified in one call."""
        pairs = [(response.task.job.prompt, response.row) for response in ended if response.row is not None]
        if self.verifier is None or not pairs:
            yield from ended
            return
        verified = iter(self.verifier.verify(pairs))
        for response in ended:
            if response.row is None:
                yield response
                continue
            verdict, row, retry = next(verified)
            self.tally.verdicts[verdict] += 1
            yield response._replace(reason=verdict, row=row, retry=retry)

    def _failed(self, task: Task, reason: str, attempts: int, detail: str) -> Failure:
        self.tally.failures[reason] += 1
        return Failure(response_id(task.key), task.key[0], task.key[1], reason, attempts, detail)

    def row(self, task: Task, state: ResponseState) -> Row:
        """The row of a response.

        Raises:
            DataError: the response's bytes are not UTF-8.
        """
        models = self.models
        opening, closing = models.open_text.encode(), models.close_text.encode()
        names = [*models.names, *(["template"] if len(models.names) == 2 else ["", "template"])]
        codes = np.array([code(names[s], "think") if names[s] else 0 for s in range(3)], np.uint8)  # type: ignore[arg-type]
        text = state.text
        if state.scalars.status in REASONS:  # the last character may be incomplete
            text = text.decode("utf-8", "ignore").encode()
        thinking_bytes = state.scalars.thinking_bytes
        answers = np.arange(len(text)) >= (thinking_bytes + len(closing) if thinking_bytes >= 0 else len(text))
        byte_codes = codes[np.frombuffer(state.sources, np.uint8)[: len(text)]] | (PHASE_BIT * answers).astype(np.uint8)
        byte_codes = np.concatenate([np.full(len(opening), code("template", "think"), np.uint8), byte_codes])
        content, spans = spans_from_bytes(opening + text, byte_codes)
        prompt = with_system(models.config.synthesis.isolation, task.job.prompt.messages)
        messages = (*prompt, {"role": "assistant", "content": content})
        return Row(response_id(task.key), task.key[0], task.key[1], messages, spans, self._meta(task, state))

    def _meta(self, task: Task, state: ResponseState) -> dict[str, Value]:
        models, config = self.models, self.models.config
        kept = {name: state.scalars.generated[m] - state.scalars.discarded[m] for m, name in enumerate(models.names)}
        steps = dict(zip(models.names, models.steps, strict=True))
        meta: dict[str, Value] = {}
        for name in ("student", "teacher"):
            section = getattr(config, name) if name in models.names else None
            meta |= {name: section and section.model, f"{name}_revision": section and section.revision}
            meta |= {f"{name}_step": steps.get(name), f"tokens_{name}": kept.get(name, 0)}
        return meta | {
            "index": task.job.prompt.index,
            "recipe": config.synthesis.recipe,
            "preset": config.synthesis.preset,
            "word_rule": config.synthesis.word_rule,
            "seed": config.seed,
            "attempt": state.scalars.attempt,
            "finish_reason": REASONS.get(state.scalars.status, "stop"),
            "tokens_discarded": sum(state.scalars.discarded),
            "switches": state.scalars.switches,
            "seconds": round(task.seconds, 3),
            "version": __version__,
        }
