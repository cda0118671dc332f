"""Prompts out of JSONL, Parquet, or a data set by name or folder, in all forms in which they are published.

A row holds one of `messages` (role and content), `prompt` (a string, or messages), `dialogs` (role and content),
`conversations` (from and value), tried in this order, and may have an `id`. An answer at the end is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tessy_jax.errors import DataError
from tessy_jax.store.messages import messages_of, own_id
from tessy_jax.store.tables import table_rows

FORMS = ("messages", "prompt", "dialogs", "conversations")


@dataclass(frozen=True)
class Prompt:
    """A prompt. id: the row's own, or a hash of the messages. messages: role and content; the user's last. index: of the row
    in the input, from 0, rows that were skipped included."""

    id: str
    messages: list[dict[str, str]]
    index: int


@dataclass(frozen=True)
class Prompts:
    """What an input holds. skipped: where (file:line) and why, for each row that is no prompt."""

    prompts: list[Prompt]
    skipped: list[tuple[str, str]] = field(default_factory=list)


class Job(NamedTuple):
    """One response to be written: the rollout-th to its prompt."""

    prompt: Prompt
    rollout: int


def read(path: str, split: str = "train", limit: int | None = None, skip_invalid: bool = False) -> Prompts:
    """The prompts of an input, checked in whole; later rows than the first `limit` are not looked at.

    path: a JSONL or Parquet file or address, or the folder or name of a data set. split: of a data set.
    skip_invalid: rows that are no prompt are recorded instead of refused.

    Raises:
        DataError: the input cannot be read or has no prompts, or a row is no prompt, or two different prompts have one id.
        ConfigError: the input needs a package that is not installed.
    """
    prompts: list[Prompt] = []
    skipped: list[tuple[str, str]] = []
    places: dict[str, tuple[str, list[dict[str, str]]]] = {}
    rows = 0
    for index, (where, row) in enumerate(table_rows(path, split, limit, (*FORMS, "id"))):
        rows += 1
        try:
            if isinstance(row, DataError):
                raise row
            own, messages = prompt_of(row)
            name = _hash(messages) if own is None else own
            first, known = places.setdefault(name, (where, messages))
            if known != messages:
                raise DataError(f"has the id {name!r} of another prompt, at {first}; give each prompt its own id, or none")
        except DataError as error:
            if not skip_invalid:
                raise DataError(f"{where}: {error}") from None
            skipped.append((where, str(error)))
        else:
            prompts.append(Prompt(name, known, index))
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
