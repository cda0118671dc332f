"""Rows and prompts of the miniature, for pretraining, predictor training and evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Literal

from tessy_jax.mini.styles import Kind, KindSpan, Speaker, render
from tessy_jax.mini.tasks import Item, stream
from tessy_jax.records import CLOSE, OPEN, Phase, Row, Source, Span

Writers = Literal["speaker", "kinds"]
BY_KIND: dict[Kind, Source] = {"style": "student", "capability": "teacher"}


def row(
    item: Item, speaker: Speaker, *, rollout: int = 0, seed: int = 0, mixed: float = 0.0, writers: Writers = "speaker"
) -> Row:
    """A right response to an item in a speaker's style. It depends only on the arguments.

    rollout, seed: vary the words of the style. mixed: the probability that the response mixes both styles (see `render`).
    writers: the writers that the spans name: "speaker": the speaker wrote everything; "kinds": the student wrote the style
    and the teacher the capability, for either speaker, so that the spans are the exact boundaries.
    """
    rng = stream("row", speaker, seed, item.id, rollout)
    is_mixed = rng.random() < mixed
    response = render(item, speaker, rng, mixed=is_mixed)

    def parts(phase: Phase, text: str, kinds: Iterable[KindSpan]) -> list[tuple[Source, Phase, str]]:
        if writers == "speaker":
            return [(speaker, phase, text)]
        return [(BY_KIND[span.kind], phase, text[span.start : span.end]) for span in kinds]

    pieces: list[tuple[Source, Phase, str]] = [
        ("template", "think", OPEN),
        *parts("think", response.thinking, response.thinking_spans),
        ("template", "think", CLOSE),
        *parts("answer", response.answer, response.answer_spans),
    ]
    ends = list(accumulate((len(text) for _, _, text in pieces), initial=0))
    spans = tuple(Span(pieces[i][0], pieces[i][1], *at) for i, at in enumerate(pairwise(ends)))
    messages = (
        {"role": "user", "content": item.prompt},
        {"role": "assistant", "content": "".join(text for _, _, text in pieces)},
    )
    meta = {"recipe": "grammar", "family": item.family, "style": speaker, "mixed": is_mixed, "seed": seed}
    return Row(f"{item.id}/{rollout}", item.id, rollout, messages, spans, meta)


def rows(
    items: Iterable[Item], speaker: Speaker, *, seed: int = 0, mixed: float = 0.0, writers: Writers = "speaker"
) -> Iterator[Row]:
    """One row per item, in their order; see `row`."""
    return (row(item, speaker, seed=seed, mixed=mixed, writers=writers) for item in items)


def prompt(item: Item) -> dict[str, str]:
    """An item as a row of prompts: {"id", "prompt"}. `item_of` gives the item of an id."""
    return {"id": item.id, "prompt": item.prompt}


def write_prompts(file: Path, items: Iterable[Item]) -> None:
    """Writes a JSONL file of prompts."""
    _write(file, map(prompt, items))


def write_rows(file: Path, rows: Iterable[Row]) -> None:
    """Writes a JSONL file of rows."""
    _write(file, (row.to_json() for row in rows))


def _write(file: Path, objects: Iterable[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in objects)
