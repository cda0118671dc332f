"""Part of the page of a run: responses in which one sees who wrote what, and what each model thinks of it."""

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
"""Characters at the beginning and at the end of a response that are shown; what lies between them is left out."""
MODELS = ("student", "teacher")


class _Piece(NamedTuple):
    """Text that is shown in one way. marks: classes. hint: what there is to know of it; none for what was left out."""

    text: str
    marks: str
    hint: str = ""


def written(rounds: Sequence[Round]) -> Section:
    """The section: some responses of every round."""
    heading = "Who wrote what"
    shown = [one for one in rounds if one.responses]
    if not shown:
        return Section(heading, "No responses have been written.")
    scored = any(response.scores for one in shown for response in one.responses)
    lead = (
        "The first responses in the order of the prompts. Point at a span, tap it, or go into a response with the Tab key "
        "and through it with the arrow keys, to learn which turn it was"
        + (
            " and how probable both models find it: the mean of the natural logarithm of its tokens' probabilities."
            if scored
            else "."
        )
    )
    pieces: list[Table | Markup] = []
    for one in shown:
        items = [_item(response) for response in one.responses]
        pieces.append(fragment("responses.html", title=one.name.capitalize(), items=items))
        means = _means(one)
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
    """The spans, as far as they are shown."""
    content, spans = response.row.content, response.row.spans
    turns = sum(span.source != "template" for span in spans)
    cut = (HEAD, len(content) - TAIL) if len(content) > HEAD + TAIL else (len(content), len(content))
    found: list[_Piece] = []
    turn, answering = 0, False
    for span in spans:
        turn += span.source != "template"
        marks = ["span", span.source]
        if span.phase == "answer" and not answering:
            marks.append("first-of-answer")
            answering = True
        hint = _hint(span, turn, turns, response.scores)
        if span.start < cut[0]:
            found.append(_Piece(content[span.start : min(span.end, cut[0])], " ".join(marks), hint))
        if span.start < cut[1] <= span.end and cut[0] < cut[1]:
            found.append(_Piece(f"\n[… {count(cut[1] - cut[0])} characters left out …]\n", "gap"))
        if span.end > cut[1]:
            found.append(_Piece(content[max(span.start, cut[1]) : span.end], " ".join(marks), hint))
    return found


def _hint(span: Span, turn: int, turns: int, scores: Mapping[str, Sequence[Score]]) -> str:
    where = "thinking" if span.phase == "think" else "answer"
    if span.source == "template":
        return f"template\nneither model wrote this, {where}"
    lines = [f"{span.source}\nturn {turn} of {turns}, {where}, {count(span.end - span.start)} characters"]
    for name, values in _values(span, scores).items():
        mean = f"{fmean(values):.2f}".replace("-", "−") if values else "not scored"
        of = f" over {count(len(values))} token{'s' * (len(values) != 1)}" if values else ""
        lines.append(f"mean log-probability, {name}: {mean}{of}")
    return "\n".join(lines)


def _values(span: Span, scores: Mapping[str, Sequence[Score]]) -> dict[str, list[float]]:
    """By model: the log-probabilities of its tokens that begin in a span."""

    def first(found: Sequence[Score], point: int) -> int:
        return bisect_left(found, point, key=lambda score: score[0])

    return {
        name: [value for _, _, value in found[first(found, span.start) : first(found, span.end)]]
        for name, found in scores.items()
    }


def _means(one: Round) -> Table | None:
    """The mean log-probability of what each model wrote in the thinking, by each."""
    found: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    for response in one.responses:
        for span in response.row.spans:
            if span.source != "template" and span.phase == "think":
                for name, values in _values(span, response.scores).items():
                    found[span.source, name] += values
    predictors = [name for name in MODELS if any(values and predictor == name for (_, predictor), values in found.items())]
    writers = [name for name in MODELS if any(values and writer == name for (writer, _), values in found.items())]
    if not predictors:
        return None
    rows = [
        [f"thinking of the {writer}", *(_mean(found[writer, predictor]) for predictor in predictors)] for writer in writers
    ]
    note = (
        "Means over the tokens of these responses, in brackets their number: per token of the model that judges, so that "
        "models of different vocabularies are not to be compared. The nearer to 0, the more it is what that model "
        "would write."
    )
    title = f"{one.name.capitalize()}: mean log-probability"
    return Table(title, ["", *(f"by the {predictor}" for predictor in predictors)], rows, note)


def _mean(values: Sequence[float]) -> str:
    return f"{fmean(values):.3f} ({count(len(values))})".replace("-", "−") if values else "–"
