"""The annotator that need not guess: traces whose spans say who wrote what, the style or the substance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tessy_jax.boundary.segments import Segment
from tessy_jax.boundary.spans import Annotation, Dropped, Outcome, Range
from tessy_jax.records import Row


class RecordedSpans:
    """Takes what the student wrote of a trace's thinking for style, and what the teacher wrote for capability. A segment of
    a trace without spans is dropped as empty."""

    name = "spans"
    at_once = 2000

    def __init__(self, rows: Iterable[Row]) -> None:
        self._styles: dict[str, list[tuple[int, int]]] = {}
        for row in rows:
            own = [span for span in row.spans if span.phase == "think" and span.source != "template"]
            if own:
                style = [(s.start - own[0].start, s.end - own[0].start) for s in own if s.source == "student"]
                self._styles[row.id] = style

    def annotate(self, segments: Sequence[Segment]) -> list[Outcome]:
        return [self._one(segment) for segment in segments]

    def _one(self, segment: Segment) -> Outcome:
        known = self._styles.get(segment.trace)
        if known is None:
            return Dropped(segment, "empty", "the trace does not say who wrote it")
        size = len(segment.text)
        inside = [(max(0, start - segment.start), min(size, end - segment.start)) for start, end in known]
        return Annotation(segment, tuple(Range(start, end) for start, end in inside if start < end), self.name)
