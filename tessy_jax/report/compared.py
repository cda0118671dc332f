"""A section of the run page: answers to the same problems before and after training, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from markupsafe import Markup

from tessy_jax.report.page import Section, Table, count, fragment
from tessy_jax.report.results import DOMAINS
from tessy_jax.report.view import Answer, Compared, Kind, RunView

KINDS: dict[Kind, str] = {
    "gained": "wrong, then right",
    "lost": "right, then wrong",
    "right": "right both times",
    "wrong": "wrong both times",
}
LONGEST = {"thinking": 3000, "answer": 1500, "prompt": 2000}
"""Characters shown; the middle of longer text is left out."""


def compared(view: RunView) -> Section:
    """Returns the section. It classifies changes from the first to the last evaluation and shows the answers of all."""
    heading = "Before and after"
    if not view.changes:
        return Section(heading, "The comparison needs two finished evaluations.")
    first, last = view.evaluations[0].name, view.evaluations[-1].name
    kinds = get_args(Kind)
    rows = [
        [DOMAINS.get(domain, domain), *(count(changes.get(kind, 0)) for kind in kinds)]
        for domain, changes in sorted(view.changes.items())
    ]
    table = Table(
        f"Verdicts {first} and {last}",
        ["", *(KINDS[kind] for kind in kinds)],
        rows,
        "Number of responses. Each response is compared with the response of the same problem and rollout.",
    )
    lead = (
        "A sample of the problems; problems whose verdict changed are sampled more often. The sample is chosen by a hash "
        "of the problem names, not by hand."
    )
    items = [_item(problem) for problem in view.compared]
    pieces: list[Table | Markup] = [table]
    if items:
        pieces.append(fragment("compared.html", items=items))
    return Section(heading, lead, pieces)


def _item(problem: Compared) -> dict[str, Any]:
    parts = [problem.id, *([problem.family] if problem.family else []), DOMAINS.get(problem.domain, problem.domain)]
    return {
        "name": parts[0],
        "facts": " · ".join([*parts[1:], KINDS[problem.kind]]),
        "kind": problem.kind,
        "prompt": clipped(prompt_text(problem.prompt), LONGEST["prompt"]),
        "reference": problem.reference,
        "answers": [_answer(answer) for answer in problem.answers],
    }


def prompt_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Returns messages as text; several messages are prefixed with their roles."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def _answer(answer: Answer) -> dict[str, Any]:
    thinking = answer_text = ""
    if answer.row is not None:
        content = answer.row.content
        for span in answer.row.spans:
            if span.source == "template":
                continue
            if span.phase == "think":
                thinking += content[span.start : span.end]
            else:
                answer_text += content[span.start : span.end]
    words = answer.reason.replace("_", " ")
    if answer.row is None:
        verdict = f"failed: {words}"
    else:
        verdict = "right" if answer.right else "wrong" if words == "wrong answer" else f"wrong: {words}"
    return {
        "name": answer.evaluation,
        "right": answer.right,
        "verdict": verdict,
        "extracted": answer.extracted,
        "thinking": clipped(thinking, LONGEST["thinking"]),
        "characters": count(len(thinking)),
        "answer": clipped(answer_text.strip(), LONGEST["answer"]),
        "has_row": answer.row is not None,
    }


def clipped(text: str, most: int) -> str:
    """Shortens text to about `most` characters: a marker with the number of omitted characters replaces the middle."""
    if len(text) <= most:
        return text
    head, tail = 2 * most // 3, most // 3
    return f"{text[:head]}\n[… {count(len(text) - head - tail)} characters left out …]\n{text[-tail:]}"
