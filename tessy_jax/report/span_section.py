"""A section of the run page: responses with the writer of each span and its log-probability under both models."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from markupsafe import Markup

from tessy_jax.records import Span
from tessy_jax.report.compared import LONGEST, clipped, prompt_text
from tessy_jax.report.page import Section, Table, count, fragment
from tessy_jax.report.view import Response, Round, Score

HEAD, TAIL = 9000, 3000
"""Characters shown at the beginning and at the end of a response; the middle is left out."""
MODELS = ("student", "teacher")


class _Piece(NamedTuple):
    """A run of text in one style. marks: CSS classes. hint: the tooltip; empty for the marker of omitted text."""

    text: str
    marks: str
    hint: str = ""


def written(rounds: Sequence[Round]) -> Section:
    """Returns the section: some responses of every round."""
    heading = "Responses by span"
    shown = [round_ for round_ in rounds if round_.responses]
    if not shown:
        return Section(heading, "No responses have been written.")
    scored = any(response.scores for round_ in shown for response in round_.responses)
    lead = (
        "The first responses in prompt order. Hover over or tap a span, or focus a response with the Tab key and move with "
        "the arrow keys, to see the turn"
        + (" and the mean log-probability (natural logarithm) of its tokens under both models." if scored else ".")
    )
    pieces: list[Table | Markup] = []
    for round_ in shown:
        items = [_item(response) for response in round_.responses]
        pieces.append(fragment("responses.html", title=round_.name.capitalize(), items=items))
        means = _means(round_)
        if means is not None:
            pieces.append(means)
    return Section(heading, lead, pieces)


def _item(response: Response) -> dict[str, Any]:
    row = response.row
    models = [name for name in MODELS if any(span.source == name for span in row.spans)]
    facts = [f"{count(len(row.content))} characters"]
    facts += [f"{count(int(row.meta.get(f'tokens_{name}') or 0))} tokens of the {name}" for name in models]
    return {
        "id": row.id,
        "facts": " · ".join(facts),
        "prompt": clipped(prompt_text(row.messages[:-1]), LONGEST["prompt"]),
        "pieces": _pieces(response),
    }


def _pieces(response: Response) -> list[_Piece]:
    """Returns the shown spans, with a marker for the omitted middle."""
    content, spans = response.row.content, response.row.spans
    turns = sum(span.source != "template" for span in spans)
    cut = (HEAD, len(content) - TAIL) if len(content) > HEAD + TAIL else (len(content), len(content))
    pieces: list[_Piece] = []
    turn, answering = 0, False
    for span in spans:
        turn += span.source != "template"
        marks = ["span", span.source]
        if span.phase == "answer" and not answering:
            marks.append("first-of-answer")
            answering = True
        hint = _hint(span, turn, turns, response.scores)
        if span.start < cut[0]:
            pieces.append(_Piece(content[span.start : min(span.end, cut[0])], " ".join(marks), hint))
        if span.start < cut[1] <= span.end and cut[0] < cut[1]:
            pieces.append(_Piece(f"\n[… {count(cut[1] - cut[0])} characters left out …]\n", "gap"))
        if span.end > cut[1]:
            pieces.append(_Piece(content[max(span.start, cut[1]) : span.end], " ".join(marks), hint))
    return pieces


def _hint(span: Span, turn: int, turns: int, scores: Mapping[str, Sequence[Score]]) -> str:
    where = "thinking" if span.phase == "think" else "answer"
    if span.source == "template":
        return f"template\nwritten by neither model, {where}"
    lines = [f"{span.source}\nturn {turn} of {turns}, {where}, {count(span.end - span.start)} characters"]
    for name, values in _values(span, scores).items():
        mean = f"{fmean(values):.2f}".replace("-", "−") if values else "not scored"
        of = f" over {count(len(values))} token{'s' * (len(values) != 1)}" if values else ""
        lines.append(f"mean log-probability, {name}: {mean}{of}")
    return "\n".join(lines)


def _values(span: Span, scores: Mapping[str, Sequence[Score]]) -> dict[str, list[float]]:
    """Returns, by model, the log-probabilities of the tokens that start in a span."""

    def first(own: Sequence[Score], point: int) -> int:
        return bisect_left(own, point, key=lambda score: score[0])

    return {
        name: [value for _, _, value in own[first(own, span.start) : first(own, span.end)]] for name, own in scores.items()
    }


def _means(round_: Round) -> Table | None:
    """Returns the mean log-probability of each writer's thinking under each model; None if nothing was scored."""
    values_of: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for response in round_.responses:
        for span in response.row.spans:
            if span.source != "template" and span.phase == "think":
                for name, values in _values(span, response.scores).items():
                    values_of[span.source, name] += values
    scorers = [name for name in MODELS if any(values and scorer == name for (_, scorer), values in values_of.items())]
    writers = [name for name in MODELS if any(values and writer == name for (writer, _), values in values_of.items())]
    if not scorers:
        return None
    rows = [[f"thinking of the {writer}", *(_mean(values_of[writer, scorer]) for scorer in scorers)] for writer in writers]
    note = (
        "Means over the tokens of the responses above; the number of tokens is in brackets. The values are per token of the "
        "scoring model, so models with different vocabularies are not comparable. Values nearer to 0 are more probable "
        "under that model."
    )
    title = f"{round_.name.capitalize()}: mean log-probability"
    return Table(title, ["", *(f"under the {scorer}" for scorer in scorers)], rows, note)


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ({count(len(values))})".replace("-", "−") if values else "–"
