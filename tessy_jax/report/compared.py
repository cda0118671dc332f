"""Part of the page of a run: the same problems before and after training, side by side."""

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
"""Characters that are shown; of what is longer, the middle is left out."""


def compared(view: RunView) -> Section:
    """The section. The first and the last evaluation decide what became of a verdict; all stand beside each other."""
    heading = "Before and after"
    if not view.changes:
        return Section(heading, "There are no two evaluations to compare.")
    first, last = view.evaluations[0].name, view.evaluations[-1].name
    kinds = get_args(Kind)
    rows = [
        [DOMAINS.get(domain, domain), *(count(found.get(kind, 0)) for kind in kinds)]
        for domain, found in sorted(view.changes.items())
    ]
    table = Table(
        f"Verdicts {first} and {last}",
        ["", *(KINDS[kind] for kind in kinds)],
        rows,
        "Responses, each compared with the one of the same number to the same problem.",
    )
    lead = (
        "Some of the problems, more of those whose verdict changed. A hash of their names decides which ones: nobody has "
        "picked them."
    )
    items = [_item(one) for one in view.compared]
    pieces: list[Table | Markup] = [table]
    if items:
        pieces.append(fragment("compared.html", items=items))
    return Section(heading, lead, pieces)


def _item(one: Compared) -> dict[str, Any]:
    parts = [one.id, *([one.family] if one.family else []), DOMAINS.get(one.domain, one.domain)]
    return {
        "name": parts[0],
        "facts": " · ".join([*parts[1:], KINDS[one.kind]]),
        "kind": one.kind,
        "prompt": clipped(prompt_text(one.prompt), LONGEST["prompt"]),
        "reference": one.reference,
        "answers": [_answer(answer) for answer in one.answers],
    }


def prompt_text(messages: Sequence[Mapping[str, str]]) -> str:
    """Messages as text; each with its role, where there are several."""
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
    words = answer.why.replace("_", " ")
    if answer.row is None:
        verdict = f"came to nothing: {words}"
    else:
        verdict = "right" if answer.right else "wrong" if words == "wrong answer" else f"wrong: {words}"
    return {
        "name": answer.evaluation,
        "right": answer.right,
        "verdict": verdict,
        "said": answer.said,
        "thinking": clipped(thinking, LONGEST["thinking"]),
        "characters": count(len(thinking)),
        "answer": clipped(answer_text.strip(), LONGEST["answer"]),
        "there": answer.row is not None,
    }


def clipped(text: str, most: int) -> str:
    """Text of at most about so many characters: of what is longer, the middle is left out, and is said to be."""
    if len(text) <= most:
        return text
    head, tail = 2 * most // 3, most // 3
    return f"{text[:head]}\n[… {count(len(text) - head - tail)} characters left out …]\n{text[-tail:]}"
