"""Two styles to solve a task in, and the responses that they make of its steps.

A response thinks `opener (connective step)* closer` and then answers in a framing; the steps and the answer are capability,
all the rest is style. Words stand between single spaces, and the space in front of a word belongs to it, as it does to the
tokens of byte-level BPE: a span of capability begins with the space in front of its first word.

No connective or closer begins another one, of either style. So the words that are there always tell what the next one is
part of: a step begins where a connective is complete, and ends with its semicolon. The words alone do not tell: see `tasks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from random import Random
from typing import Literal, NamedTuple, TypeVar

from tessy_jax.mini.tasks import Item

Speaker = Literal["student", "teacher"]
Kind = Literal["style", "capability"]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Style:
    """What a speaker says around the steps. framings: in front of the answer and behind it, the latter perhaps nothing."""

    openers: tuple[str, ...]
    connectives: tuple[str, ...]
    closers: tuple[str, ...]
    framings: tuple[tuple[str, str], ...]

    @property
    def phrases(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.openers, *self.connectives, *self.closers, *(part for pair in self.framings for part in pair if part))


STYLES: dict[Speaker, Style] = {
    "student": Style(
        openers=(
            "okay let me see .",
            "alright so let me think .",
            "hmm let me take a look .",
            "okay so we take it 1 by 1 .",
        ),
        connectives=("so now", "okay then", "hmm so", "and then", "wait let me check so", "alright next", "let me see"),
        closers=("so that is it .", "okay that looks good .", "hmm that seems right ."),
        framings=(("the answer is", "."), ("so it is", "."), ("okay so that makes", ".")),
    ),
    "teacher": Style(
        openers=(
            "we need to compute .",
            "task : compute stepwise .",
            "plan : take 1 step at a time .",
            "we then proceed stepwise .",
        ),
        connectives=("thus", "next step :", "we compute", "then we need", "hence", "it follows", "now we obtain"),
        closers=("all steps are done .", "computation complete .", "this completes the task ."),
        framings=(("result :", ""), ("therefore the result equals", "."), ("final answer :", ".")),
    ),
}


class KindSpan(NamedTuple):
    """Code points start…end−1 of a text, and what they are."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A response. thinking, answer: their texts; the spans beside each tile it, neighbours being of different kinds."""

    thinking: str
    thinking_spans: tuple[KindSpan, ...]
    answer: str
    answer_spans: tuple[KindSpan, ...]


def render(item: Item, speaker: Speaker, rng: Random, mixed: bool = False) -> Rendered:
    """A right response to an item, in the words that rng chooses.

    mixed: each phrase is of the other's style as often as of the speaker's own.
    """
    other: Speaker = "teacher" if speaker == "student" else "student"

    def pick(part: Callable[[Style], tuple[T, ...]]) -> T:
        return rng.choice(part(STYLES[other if mixed and rng.random() < 0.5 else speaker]))

    phrases: list[tuple[Kind, str]] = [("style", pick(lambda style: style.openers))]
    for step in item.steps:
        phrases += [("style", pick(lambda style: style.connectives)), ("capability", step)]
    phrases.append(("style", pick(lambda style: style.closers)))
    return Rendered(*tile(phrases), *tile(framed(item.answer, pick(lambda style: style.framings))))


def framed(answer: str, framing: tuple[str, str]) -> list[tuple[Kind, str]]:
    """The phrases of an answer in its framing."""
    before, after = framing
    return [("style", before), ("capability", answer), ("style", after)]


def tile(phrases: Iterable[tuple[Kind, str]]) -> tuple[str, tuple[KindSpan, ...]]:
    """Phrases (empty ones left out) joined by spaces, and the spans that tile the text, as few as can be."""
    text = ""
    spans: list[KindSpan] = []
    for kind, phrase in phrases:
        if not phrase:
            continue
        start = len(text)
        text += f" {phrase}" if text else phrase
        if spans and spans[-1].kind == kind:
            start = spans.pop().start
        spans.append(KindSpan(kind, start, len(text)))
    return text, tuple(spans)
