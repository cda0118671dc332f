"""`tessy boundary annotate`: annotates the style words of segments, in files that survive a kill at any instant.

Outcomes are committed in parts, `annotations/<speaker>/part-<number>.jsonl`. When every segment has an outcome, they become
two readable files: `annotations/<speaker>.jsonl`, the annotations in the order of the segments, and
`annotations/<speaker>-dropped.jsonl`, the segments without an annotation and the reasons. The parts are then deleted. From
then on the first file may be corrected by hand: its lines are never changed or removed. The next start retries segments that
failed (no reply), and appends their outcomes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from tessy_jax.boundary.completion import truncated
from tessy_jax.boundary.endpoint import Endpoint
from tessy_jax.boundary.rules import Rules
from tessy_jax.boundary.segments import Cuts, Segment, segments
from tessy_jax.boundary.spans import (
    INSTRUCTION,
    REASONS,
    Annotation,
    Dropped,
    Outcome,
    Range,
    json_lines,
    parse_reply_spans,
    read_annotations,
)
from tessy_jax.config.predictors import Annotator, Predictors
from tessy_jax.config.recipes import Writer
from tessy_jax.decode.generate import generate
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.models import hf
from tessy_jax.models.hf_config import read_config
from tessy_jax.records import CLOSE, OPEN, Row
from tessy_jax.sharding import Partitioner
from tessy_jax.store.files import Files
from tessy_jax.text.template import Template
from tessy_jax.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

FOLDER = "annotations"
PART = re.compile(r"part-([0-9]{5,})\.jsonl")


class AnnotatorLike(Protocol):
    """Finds the style words of segments. name: the origin that annotations record. at_once: the preferred number of segments
    per call, and so the maximum number that is annotated twice after a kill."""

    name: str
    at_once: int

    def annotate(self, segments: Sequence[Segment]) -> list[Outcome]:
        """The outcome of each segment, in order."""


class LocalModel:
    """An annotator that asks a causal LM on this mesh, in its own chat template. It is loaded once."""

    def __init__(self, section: Annotator, *, partitioner: Partitioner, seed: int) -> None:
        """section: with model.

        Raises:
            TessyError: the model cannot be loaded, or has no chat template.
        """
        assert section.model is not None, "the section checks that"
        model = section.model
        folder = hf.resolve(model.model, revision=model.revision)
        config = read_config(folder)
        if config.labels is not None:
            raise ConfigError(f"{folder}: is a token classifier; annotator.model needs a …ForCausalLM model")
        self.name = f"model:{model.model}"
        self.at_once = 8 * section.batch  # so that batches hold segments of similar length
        self._section, self._seed = section, seed
        self._positions = config.max_positions
        self._system = [] if model.system is None else [{"role": "system", "content": model.system}]
        self._tokenizer = Tokenizer(folder, config.vocab)
        self._template = Template(self._tokenizer, model.template)
        self._decoder = hf.load(folder, dtype=model.dtype, partitioner=partitioner)

    def annotate(self, segments: Sequence[Segment]) -> list[Outcome]:
        section = self._section
        prompts = [self._prompt(segment.text) for segment in segments]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        outcomes: dict[int, Outcome] = {
            i: Dropped(segments[i], "failed", f"{len(prompts[i])} tokens and the reply exceed the model's {self._positions}")
            for i in order
            if len(prompts[i]) + section.max_new_tokens > self._positions
        }
        order = [i for i in order if i not in outcomes]
        for first in range(0, len(order), section.batch):
            batch = order[first : first + section.batch]
            replies = generate(
                self._decoder,
                [prompts[i] for i in batch],
                max_new_tokens=section.max_new_tokens,
                eos_ids=sorted(self._template.end_ids),
                temperature=section.temperature,
                seed=self._seed,
                samples=[_sample(segments[i].id) for i in batch],
            )
            for i, reply in zip(batch, replies, strict=True):
                text = self._tokenizer.decode(reply.token_ids)
                if reply.finish_reason == "length":
                    outcomes[i] = Dropped(segments[i], "truncated", truncated(text))
                else:
                    outcomes[i] = parse_reply_spans(segments[i], text, self.name)
        return [outcomes[i] for i in range(len(segments))]

    def _prompt(self, text: str) -> list[int]:
        messages = [*self._system, {"role": "user", "content": INSTRUCTION.format(text=text)}]
        return self._template.prompt(messages)


def make_annotator(config: Predictors) -> AnnotatorLike:
    """The annotator that a configuration names.

    Raises:
        TessyError: the annotator is unavailable or its settings cannot be used.
    """
    section = config.annotator
    if section.kind == "rules":
        return Rules(section.lexicon)
    if section.kind == "endpoint":
        return Endpoint(section)
    partitioner = Partitioner.of(config.mesh)
    return LocalModel(section, partitioner=partitioner, seed=config.seed)


def annotate(
    config: Predictors,
    speaker: Writer,
    rows: Iterable[Row],
    files: Files,
    log: Callable[[str], None] = logger.info,
    *,
    annotator: Callable[[Predictors], AnnotatorLike] = make_annotator,
) -> dict[str, int]:
    """Annotates segments of a speaker's traces, or continues. Returns the numbers of traces, of traces without thinking, of
    segments, and of segments by outcome.

    files: of the run folder, started. annotator: makes the annotator, called if there are segments to annotate.

    Raises:
        DataError: fewer traces have thinking, or fewer segments an annotation, than annotator.min_share, or all segments of
            a batch failed; gives the counts. Or the finished file is no longer valid; names the line.
        TessyError: the annotator cannot be used.
    """
    cuts = cuts_of(config, speaker, rows)
    work = _Work(files, config.output, speaker)
    finished = work.finished()
    if finished is None:
        _check_thinking(cuts, speaker, config.annotator.min_share)
        outcomes = _outcomes(config, speaker, cuts.segments, cuts.endings, work, log, annotator)
        work.save_dropped(outcomes)
        _check_kept(outcomes, config, work.dropped_name)
        work.append(outcomes)
    else:
        annotations, dropped = finished
        ids = {
            annotation.segment.id for annotation in annotations
        }  # after a kill, some of them may also be among the dropped
        final = [d for d in dropped if d.outcome != "failed" and d.segment.id not in ids]
        failed = [d.segment for d in dropped if d.outcome == "failed" and d.segment.id not in ids]
        annotated_traces = {a.segment.trace for a in annotations} | {d.segment.trace for d in dropped}
        late = {segment.trace for segment in cuts.segments} - annotated_traces
        if late:
            log(
                f"{speaker}: {len(late)} traces have no segment among the annotations, which are finished; delete "
                f"{work.finished_name} to annotate all again"
            )
        again = _outcomes(config, speaker, failed, cuts.endings, work, log, annotator)
        work.append(again)
        outcomes = [*annotations, *final, *again]
        work.save_dropped(outcomes)
    work.clear()
    counts = {"traces": cuts.traces, "without_thinking": cuts.without, "segments": len(outcomes), **_counts(outcomes)}
    if counts["failed"]:
        log(f"{speaker}: {counts['failed']} segments failed ({work.dropped_name}); start again to try them again")
    return counts


def _outcomes(
    config: Predictors,
    speaker: str,
    segments: Sequence[Segment],
    endings: Collection[str],
    work: _Work,
    log: Callable[[str], None],
    annotator: Callable[[Predictors], AnnotatorLike],
) -> list[Outcome]:
    """The outcome of each segment, from the committed parts or else from the annotator."""
    known = work.committed(segments)
    todo = [segment for segment in segments if not _is_final(known.get(segment.id))]
    if todo:
        chosen = annotator(config)
        log(f"{speaker}: {len(todo)} segments to annotate by {chosen.name}")
        for first in range(0, len(todo), chosen.at_once):
            outcomes = with_endings(chosen, todo[first : first + chosen.at_once], endings)
            work.commit(outcomes)  # saved before progress is logged
            known |= {outcome.segment.id: outcome for outcome in outcomes}
            done = len(todo[: first + chosen.at_once])
            log(f"{speaker}: {done} of {len(todo)} segments; {_described(known.values())}")
            _check_answers(outcomes, chosen.at_once, known.values())
    return [known[segment.id] for segment in segments]


def with_endings(annotator: AnnotatorLike, segments: Sequence[Segment], endings: Collection[str]) -> list[Outcome]:
    """Annotates segments without the marker that closes the thinking. The marker is style: there the student continues and
    the teacher hands over."""
    bare = [
        replace(segment, text=segment.text.removesuffix(max(filter(segment.text.endswith, endings), key=len, default="")))
        for segment in segments
    ]
    outcomes: list[Outcome] = []
    for segment, short, outcome in zip(segments, bare, annotator.annotate(bare), strict=True):
        if isinstance(outcome, Annotation) and segment != short:
            spans, at = list(outcome.spans), len(short.text)
            start = spans.pop().start if spans and spans[-1].end == at else at
            outcomes.append(replace(outcome, segment=segment, spans=(*spans, Range(start, len(segment.text)))))
        else:
            outcomes.append(replace(outcome, segment=segment))
    return outcomes


def cuts_of(config: Predictors, speaker: Writer, rows: Iterable[Row]) -> Cuts:
    """The segments of a speaker's traces, cut as the configuration sets."""
    model = config.student if speaker == "student" else config.teacher
    marks = model.thinking if model else None
    return segments(
        rows,
        config.segments,
        seed=config.seed,
        open_text=(marks and marks.open) or OPEN,
        close_text=(marks and marks.close) or CLOSE,
    )


class _Work:
    """The files of one speaker's annotations."""

    def __init__(self, files: Files, output: str, speaker: str) -> None:
        self._files, self._output = files, output.rstrip("/")
        self._folder, self._name = f"{FOLDER}/{speaker}", f"{FOLDER}/{speaker}.jsonl"
        self._dropped = f"{FOLDER}/{speaker}-dropped.jsonl"
        self.dropped_name = f"{self._output}/{self._dropped}"
        self.finished_name = f"{self._output}/{self._name}"
        self._next = 1 + max((int(PART.fullmatch(name)[1]) for name in self._parts()), default=-1)  # type: ignore[index]

    def finished(self) -> tuple[list[Annotation], list[Dropped]] | None:
        """The annotations and the dropped segments of the finished files; None before they exist."""
        data = self._get(self._name)
        if data is None:
            return None
        annotations = read_annotations(data, f"{self._output}/{self._name}").kept
        dropped = []
        for number, parsed in json_lines(self._get(self._dropped) or b""):
            try:
                if isinstance(parsed, DataError):
                    raise parsed
                dropped.append(Dropped.from_json(parsed))
            except DataError as error:
                raise DataError(f"{self.dropped_name}:{number}: {error}") from None
        return annotations, dropped

    def committed(self, segments: Sequence[Segment]) -> dict[str, Outcome]:
        """The last outcome of each segment in the committed parts.

        Raises:
            DataError: the parts belong to other segments.
        """
        by_id = {segment.id: segment for segment in segments}
        outcomes: dict[str, Outcome] = {}
        for name in sorted(self._parts(), key=lambda name: (len(name), name)):
            for number, parsed in json_lines(self._get(f"{self._folder}/{name}") or b""):
                try:
                    outcome = _outcome(parsed)
                except DataError as error:  # of a commit that did not return, and was therefore not reported
                    logger.warning("%s/%s/%s:%d: is left out: %s", self._output, self._folder, name, number, error)
                    continue
                segment = by_id.get(outcome.segment.id)
                if segment is None:
                    continue
                if segment != outcome.segment:
                    raise DataError(
                        f"{self._output}/{self._folder}/{name}:{number}: the segment {segment.id!r} differs from that "
                        f"of the traces, which have changed: delete {self._folder} to annotate them all again, or name "
                        "another output"
                    )
                outcomes[segment.id] = outcome
        return outcomes

    def commit(self, outcomes: Sequence[Outcome]) -> None:
        self._files.put(f"{self._folder}/part-{self._next:05}.jsonl", _lines(outcomes), new=True)
        self._next += 1

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Appends annotations. The bytes before them do not change."""
        new = [o for o in outcomes if isinstance(o, Annotation)]
        if new:
            before = self._get(self._name) or b""
            separator = b"" if not before or before.endswith(b"\n") else b"\n"
            self._files.put(self._name, before + separator + _lines(new))

    def save_dropped(self, outcomes: Sequence[Outcome]) -> None:
        data = _lines(o for o in outcomes if isinstance(o, Dropped))
        if data != self._get(self._dropped):
            self._files.put(self._dropped, data)

    def clear(self) -> None:
        """Deletes the parts."""
        for name in self._parts():
            self._files.delete(f"{self._folder}/{name}")

    def _parts(self) -> list[str]:
        return [name for name in self._files.sizes(self._folder) if PART.fullmatch(name)]

    def _get(self, name: str) -> bytes | None:
        try:
            return self._files.get(name)
        except FileNotFoundError:
            return None


def _lines(outcomes: Iterable[Outcome]) -> bytes:
    return "".join(json.dumps(o.to_json(), ensure_ascii=False) + "\n" for o in outcomes).encode()


def _outcome(parsed: Any) -> Outcome:
    if isinstance(parsed, DataError):
        raise parsed
    return (Dropped if isinstance(parsed, dict) and "outcome" in parsed else Annotation).from_json(parsed)


def _is_final(outcome: Outcome | None) -> bool:
    return outcome is not None and not (isinstance(outcome, Dropped) and outcome.outcome == "failed")


def _sample(segment_id: str) -> int:
    """The random key of a reply. It depends only on the segment id."""
    return int.from_bytes(hashlib.sha256(segment_id.encode()).digest()[:4], "big") >> 1


def _counts(outcomes: Iterable[Outcome]) -> dict[str, int]:
    counts = Counter("kept" if isinstance(o, Annotation) else o.outcome for o in outcomes)
    return {name: counts[name] for name in ("kept", *REASONS)}


def _described(outcomes: Iterable[Outcome]) -> str:
    return ", ".join(f"{count} {name}" for name, count in _counts(outcomes).items())


def _check_thinking(cuts: Cuts, speaker: str, share: float) -> None:
    having = cuts.traces - cuts.without
    if not having or having < share * cuts.traces:
        raise DataError(
            f"{having} of {cuts.traces} traces of the {speaker} have thinking, less than annotator.min_share = {share:g}; "
            f"check the traces, and {speaker}.thinking, which holds its markers"
        )


def _check_answers(batch: Sequence[Outcome], at_once: int, known: Iterable[Outcome]) -> None:
    """Raises DataError if every segment of a batch failed, because each request to an unavailable server takes all its
    retries."""
    failed = [o for o in batch if isinstance(o, Dropped) and o.outcome == "failed"]
    if len(failed) == at_once:
        raise DataError(
            f"all {len(failed)} segments of a batch failed ({failed[-1].detail}); so far {_described(known)}. Fix the cause "
            "and start again: finished annotations are kept"
        )


def _check_kept(outcomes: Sequence[Outcome], config: Predictors, dropped: str) -> None:
    kept, share = _counts(outcomes)["kept"], config.annotator.min_share
    if not kept or kept < share * len(outcomes):
        raise DataError(
            f"of {len(outcomes)} segments: {_described(outcomes)}; fewer were kept than annotator.min_share = {share:g} of "
            f"them. Look at {dropped}; then start again if segments failed, or use another model and another output"
        )
