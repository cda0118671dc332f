"""Reads prompts from JSONL, JSON, CSV, TSV, Parquet, or a data set by name or folder, in the common published forms.

A row holds one of `messages` (role and content), `prompt` (a string, or messages), `dialogs` (role and content),
`conversations` (from and value), tried in this order, and may have an `id`. A final answer is dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tessy_jax.errors import DataError
from tessy_jax.store.messages import BESIDE, PROMPT_PARTS, held_by, messages_of, own_id, refuse_rendered, short
from tessy_jax.store.tables import table_rows

FORMS = ("messages", "prompt", "dialogs", "conversations")


@dataclass(frozen=True)
class Prompt:
    """A prompt.

    id: the id of its row, or a hash of the messages.
    messages: dicts of role and content; the last message is the user's. Rows of responses save these messages.
    index: the index of its row in the input, from 0, counting skipped rows.
    ground_truth: the result of `ground_truth` in `read`, such as the right answer.
    shown: the messages that writers see instead; None: `messages`.
    """

    id: str
    messages: list[dict[str, str]]
    index: int
    ground_truth: Any = field(default=None, compare=False)
    shown: list[dict[str, str]] | None = None

    @property
    def asked(self) -> list[dict[str, str]]:
        """The messages that writers see."""
        return self.messages if self.shown is None else self.shown


@dataclass(frozen=True)
class Prompts:
    """The prompts of an input. skipped: place (file:line) and reason, for each row that is not a prompt."""

    prompts: list[Prompt]
    skipped: list[tuple[str, str]] = field(default_factory=list)


class Job(NamedTuple):
    """One response to be written: a rollout of a prompt."""

    prompt: Prompt
    rollout: int


def read(
    path: str,
    split: str = "train",
    limit: int | None = None,
    skip_invalid: bool = False,
    *,
    subset: str | None = None,
    prompt: str | None = None,
    columns: Collection[str] = (),
    shown: Callable[[Any], Any] = lambda row: row,
    ground_truth: Callable[[dict[str, Any], str], Any] = lambda row, name: None,
) -> Prompts:
    """Reads and checks all prompts of an input.

    path, split, subset: the table; see `table_rows`.
    limit: read only this many rows from the start.
    skip_invalid: record rows that are not prompts, instead of raising.
    prompt: the column with the prompt, for rows in none of the accepted forms.
    columns: the columns that `shown` and `ground_truth` read.
    shown: maps a row to an accepted form, if `prompt` is None; may raise DataError.
    ground_truth: maps a row and the prompt's id to `Prompt.ground_truth`; may raise DataError.

    Raises:
        DataError: the input cannot be read or has no prompts, a row is not a prompt, or two different prompts share an id.
        ConfigError: the input needs a package that is not installed.
    """
    prompts: list[Prompt] = []
    skipped: list[tuple[str, str]] = []
    places: dict[str, tuple[str, list[dict[str, str]]]] = {}
    rows = 0
    names = dict.fromkeys((*FORMS, *BESIDE, "id", *([] if prompt is None else [prompt]), *columns))
    for index, (place, content) in enumerate(table_rows(path, split, limit, names, subset=subset)):
        rows += 1
        try:
            if isinstance(content, DataError):
                raise content
            row = shown(content) if prompt is None else _with_prompt(content, prompt)
            own, messages = prompt_of(
                row,
                or_else="or set prompt to the column with the prompt",
                beside="or set the key `prompt` of the data to `prompt`",
            )
            name = _hash(messages) if own is None else own
            first, earlier = places.get(name, (place, messages))
            if earlier != messages:
                raise DataError(
                    f"has the id {short(name)} of another prompt, at {first}; give each prompt its own id, or none"
                )
            truth = ground_truth(row, name)
        except DataError as error:
            if not skip_invalid:
                raise DataError(f"{place}: {error}") from None
            skipped.append((place, str(error)))
        else:
            places[name] = first, earlier
            prompts.append(Prompt(name, earlier, index, truth))
    if not rows:
        raise DataError(f"{path}: holds no rows; give at least one prompt")
    if not prompts:
        raise DataError(f"{path}: none of its {rows} rows is a prompt; the first, at {': '.join(skipped[0])}")
    return Prompts(prompts, skipped)


def jobs(prompts: Iterable[Prompt], rollouts: int) -> list[Job]:
    """The responses to write, `rollouts` per prompt, in the order of the prompts.

    The j-th occurrence of a prompt, from 0, has rollouts j·rollouts … (j+1)·rollouts − 1, so that (prompt id, rollout) is
    unique.
    """
    times: Counter[str] = Counter()
    result = []
    for prompt in prompts:
        first = times[prompt.id] * rollouts
        result += [Job(prompt, rollout) for rollout in range(first, first + rollouts)]
        times[prompt.id] += 1
    return result


def with_system(text: str | None, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Messages with this system message, prepended to the text of an existing one; None leaves them unchanged."""
    if text is None:
        return list(messages)
    first, *rest = messages
    if first["role"] == "system":
        return [{"role": "system", "content": f"{text}\n\n{first['content']}"}, *rest]
    return [{"role": "system", "content": text}, *messages]


def _hash(messages: Sequence[Mapping[str, str]]) -> str:
    """The id of a prompt without one: a hash of its messages."""
    canonical = json.dumps(messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return "h" + hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16]


def prompt_of(row: Any, *, or_else: str = "", beside: str = "") -> tuple[str | None, list[dict[str, str]]]:
    """The id of a row, or None, and its messages. or_else, beside: see `messages_of`.

    Raises:
        DataError: the row is not a prompt.
    """
    form, messages = messages_of(row, FORMS, or_else=or_else, beside=beside)
    if form != "prompt" and messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise DataError(f"{form} is empty; it should end with a message of the user")
    if messages[-1]["role"] != "user":
        raise DataError(
            f"{form} ends with a message of {messages[-1]['role']!r}; the message before the answer should be the user's"
        )
    if not messages[-1]["content"].strip():
        raise DataError(f"the prompt is empty; {form} should end with some text of the user")
    refuse_rendered(messages, form)
    return own_id(row), messages


def _with_prompt(row: Any, column: str) -> Any:
    """The row with `column` as its `prompt`, without the other forms and parts of prompts: the user says that it is all."""
    if not isinstance(row, dict):
        return row
    if row.get(column) is None:
        raise DataError(
            f"has no `{column}`, which should hold the prompt; it holds {held_by(row)}: set prompt to one of them"
        )
    others = {name: value for name, value in row.items() if name not in (*FORMS, *PROMPT_PARTS)}
    return {**others, "prompt": row[column]}
