"""Prompts out of JSONL, Parquet, or a data set by name or folder, in all forms in which they are published.

A row holds one of `messages` (role and content), `prompt` (a string, or messages), `dialogs` (role and content),
`conversations` (from and value), tried in this order, and may have an `id`. An answer at the end is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tessy_jax.errors import DataError
from tessy_jax.store.messages import messages_of, own_id
from tessy_jax.store.tables import table_rows

FORMS = ("messages", "prompt", "dialogs", "conversations")


@dataclass(frozen=True)
class Prompt:
    """A prompt. id: the row's own, or a hash of the messages. messages: role and content; the user's last. index: of the row
    in the input, from 0, rows that were skipped included. known: what else its row says of it, to who asked for it. shown:
    what writers see instead of the messages, which are what is saved (None: the messages)."""

    id: str
    messages: list[dict[str, str]]
    index: int
    ground_truth: Any = field(default=None, compare=False)
    shown: list[dict[str, str]] | None = None

    @property
    def asked(self) -> list[dict[str, str]]:
        """What writers see."""
        return self.messages if self.shown is None else self.shown


@dataclass(frozen=True)
class Prompts:
    """What an input holds. skipped: where (file:line) and why, for each row that is no prompt."""

    prompts: list[Prompt]
    skipped: list[tuple[str, str]] = field(default_factory=list)


class Job(NamedTuple):
    """One response to be written: the rollout-th to its prompt."""

    prompt: Prompt
    rollout: int


def read(
    path: str,
    split: str = "train",
    limit: int | None = None,
    skip_invalid: bool = False,
    *,
    prompt: str | None = None,
    columns: Collection[str] = (),
    shown: Callable[[Any], Any] = lambda row: row,
    known: Callable[[dict[str, Any], str], Any] = lambda row, name: None,
) -> Prompts:
    """The prompts of an input, checked in whole; later rows than the first `limit` are not looked at.

    path: a JSONL or Parquet file or address, or the folder or name of a data set. split: of a data set.
    skip_invalid: rows that are no prompt are recorded instead of refused. prompt: the column that is the prompt, where rows
    have none of the accepted forms. columns: what `shown` and `known` look at: the one gives a row an accepted form where
    `prompt` is None, the other says what is known of a row and the prompt's id; both may raise DataError.

    Raises:
        DataError: the input cannot be read or has no prompts, or a row is no prompt, or two different prompts have one id.
        ConfigError: the input needs a package that is not installed.
    """
    prompts: list[Prompt] = []
    skipped: list[tuple[str, str]] = []
    places: dict[str, tuple[str, list[dict[str, str]]]] = {}
    rows = 0
    wanted = dict.fromkeys((*FORMS, "id", *([] if prompt is None else [prompt]), *columns))
    for index, (where, found) in enumerate(table_rows(path, split, limit, wanted)):
        rows += 1
        try:
            if isinstance(found, DataError):
                raise found
            row = shown(found) if prompt is None else _with_prompt(found, prompt)
            own, messages = prompt_of(row)
            name = _hash(messages) if own is None else own
            first, before = places.get(name, (where, messages))
            if before != messages:
                raise DataError(f"has the id {name!r} of another prompt, at {first}; give each prompt its own id, or none")
            told = known(row, name)
        except DataError as error:
            if not skip_invalid:
                raise DataError(f"{where}: {error}") from None
            skipped.append((where, str(error)))
        else:
            places[name] = first, before
            prompts.append(Prompt(name, before, index, told))
    if not rows:
        raise DataError(f"{path}: holds no rows; give at least one prompt")
    if not prompts:
        raise DataError(f"{path}: none of its {rows} rows is a prompt; the first, at {': '.join(skipped[0])}")
    return Prompts(prompts, skipped)


def jobs(prompts: Iterable[Prompt], rollouts: int) -> list[Job]:
    """The responses to write, in the order of the prompts: `rollouts` for every one.

    Where a prompt comes again, its rollouts are numbered on, so that (prompt id, rollout) is unique: the j-th time, from 0,
    it has rollouts j·rollouts … (j+1)·rollouts − 1.
    """
    times: Counter[str] = Counter()
    found = []
    for prompt in prompts:
        first = times[prompt.id] * rollouts
        found += [Job(prompt, rollout) for rollout in range(first, first + rollouts)]
        times[prompt.id] += 1
    return found


def with_system(text: str | None, messages: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Messages that begin with a system message, in front of the text of one that is there; as they are where it is None."""
    if text is None:
        return list(messages)
    first, *rest = messages
    if first["role"] == "system":
        return [{"role": "system", "content": f"{text}\n\n{first['content']}"}, *rest]
    return [{"role": "system", "content": text}, *messages]


def _hash(messages: Sequence[Mapping[str, str]]) -> str:
    """The id of a prompt that has none: of its messages alone, wherever they came from."""
    canonical = json.dumps(messages, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return "h" + hashlib.sha256(canonical.encode("utf-8")).hexdigest()[:16]


def prompt_of(row: Any) -> tuple[str | None, list[dict[str, str]]]:
    """Id, if it has one, and messages of a row."""
    form, messages = messages_of(row, FORMS)
    if form != "prompt" and messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages:
        raise DataError(f"{form} is empty; it should end with a message of the user")
    if messages[-1]["role"] != "user":
        raise DataError(
            f"{form} ends with a message of {messages[-1]['role']!r}; the last before the answer should be the user's"
        )
    if not messages[-1]["content"].strip():
        raise DataError(f"the prompt is empty; {form} should end with some text of the user")
    return own_id(row), messages


def _with_prompt(row: Any, column: str) -> Any:
    """A row in which a column is the prompt, and no other form is."""
    if not isinstance(row, dict):
        return row
    if row.get(column) is None:
        held = ", ".join(f"`{name}`" for name in sorted(row)[:12]) or "nothing"
        raise DataError(f"has no `{column}`, which should hold the prompt; it holds {held}: set prompt to one of them")
    return {**{name: value for name, value in row.items() if name not in FORMS}, "prompt": row[column]}
