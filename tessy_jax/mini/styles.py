"""Two styles of solving a task, and responses to a task in these styles.

A response thinks `opener (connective step)* closer` and then answers in a framing. The steps and the answer are capability,
everything else is style. Words are separated by single spaces, and the space before a word belongs to it, as in tokens of
byte-level BPE: a span of capability begins with the space before its first word.

No connective or closer is a prefix of another, in either style. The preceding words therefore determine the kind of the next
word: a step begins after a complete connective and ends with its semicolon. A word alone does not determine its kind, see
`tasks`.
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
    """The phrases of a speaker around the steps. framings: text before and after the answer; the latter may be empty."""

    openers: tuple[str, ...]
    connectives: tuple[str, ...]
    closers: tuple[str, ...]
    framings: tuple[tuple[str, str], ...]

    @property
    def phrases(self) -> tuple[str, ...]:
        """All phrases."""
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
    """The kind of code points start…end−1 of a text."""

    kind: Kind
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """A response. The spans of thinking and answer tile their texts; neighbouring spans differ in kind."""

    thinking: str
    thinking_spans: tuple[KindSpan, ...]
    answer: str
    answer_spans: tuple[KindSpan, ...]


def render(item: Item, speaker: Speaker, rng: Random, mixed: bool = False) -> Rendered:
    """A right response to an item, in words chosen by rng.

    mixed: each phrase is in the other speaker's style with probability 1/2.
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
    """Phrases (without empty ones) joined by spaces, and the smallest number of spans that tile the text."""
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
