"""The conversations of a training run as examples, held as flat arrays, and the order in which they are learnt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessy_jax.config import Examples
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.records import Row
from tessy_jax.store import RunReader
from tessy_jax.store.tables import table_rows
from tessy_jax.text.chat import Chat
from tessy_jax.train.examples import KINDS, example
from tessy_jax.train.pack import NO_TARGET, Batch, Example, assemble, batches, pack


@dataclass(frozen=True)
class Data:
    """Examples: number i is tokens[offsets[i]:offsets[i + 1]]. skipped, cut: ids of rows that were too long."""

    tokens: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    skipped: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Example:
        part = slice(self.offsets[i], self.offsets[i + 1])
        return Example(self.tokens[part], self.kinds[part])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each example."""
        return np.diff(self.offsets)

    def targets(self) -> dict[str, int]:
        """Targets by who wrote them."""
        counts = np.bincount(self.kinds, minlength=len(KINDS))
        return {name: int(n) for name, n in zip(KINDS, counts, strict=True) if name != KINDS[NO_TARGET]}

    def described(self) -> str:
        """What there is to learn, in a line."""
        found = self.targets()
        share = sum(found.values()) / max(len(self.tokens), 1)
        by = ", ".join(f"{n} {name}" for name, n in found.items() if n)
        left = "".join(f"; {len(ids)} rows {what}" for ids, what in ((self.skipped, "left out"), (self.cut, "cut")) if ids)
        return f"{len(self)} examples, {len(self.tokens)} tokens, {share:.1%} of them targets ({by}){left}"


def read(section: Examples, chat: Chat, size: int) -> Data:
    """All examples of an input, of at most `size` tokens.

    Raises:
        DataError: the input cannot be read, a row is no conversation or too long, or there is nothing to learn.
    """
    tokens, kinds, lengths, skipped, cut = [], [], [], [], []
    for where, row in _rows(section):
        try:
            found = example(chat, row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if len(found.tokens) > size:
            if section.too_long == "refuse":
                raise DataError(
                    f"{where}: row {row.id!r} has {len(found.tokens)} tokens, training.tokens is {size}; raise it, or set "
                    "data.too_long to skip or cut"
                )
            if section.too_long == "skip" or not (found.kinds[:size] != NO_TARGET).any():
                skipped.append(row.id)
                continue
            cut.append(row.id)
            found = Example(found.tokens[:size], found.kinds[:size])
        tokens.append(found.tokens)
        kinds.append(found.kinds)
        lengths.append(len(found.tokens))
    if not lengths:
        raise DataError(f"{section.path}: has no rows to learn from ({len(skipped)} are longer than {size} tokens)")
    return Data(np.concatenate(tokens), np.concatenate(kinds), np.cumsum([0, *lengths]), skipped, cut)


def _rows(section: Examples) -> Iterator[tuple[str, Row]]:
    try:
        reader: RunReader | None = RunReader(section.path)
    except (ConfigError, DataError):
        reader = None
    if reader is not None:
        rows = sorted(reader.rows(), key=lambda row: row.key)  # whatever order they were finished in
        yield from ((section.path, row) for row in rows[: section.limit])
        return
    wanted = ("id", "prompt_id", "rollout", "messages", "spans", "meta", "prompt", "completion")
    for index, (where, row) in enumerate(table_rows(section.path, section.split, section.limit, wanted)):
        if isinstance(row, DataError):
            raise DataError(f"{where}: {row}")
        try:
            yield where, row_of(row, index)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None


def row_of(raw: Any, index: int) -> Row:
    """A row of any accepted form: ours, `messages` that end with the assistant's, or `prompt` and `completion`.

    Raises:
        DataError: it is none, or its spans do not tile its content.
    """
    if not isinstance(raw, Mapping):
        raise DataError(f"is a {type(raw).__name__}; it should be an object with messages")
    if raw.get("spans") is not None:
        return Row.from_json(dict(raw))
    if raw.get("messages") is not None:
        messages = raw["messages"]
    elif raw.get("prompt") is not None and raw.get("completion") is not None:
        messages = _messages(raw["prompt"], "user") + _messages(raw["completion"], "assistant")
    else:
        raise DataError(
            f"holds {', '.join(sorted(map(str, raw))) or 'nothing'}; it should hold messages, or prompt and completion"
        )
    given = [{"role": m["role"], "content": m["content"]} if _is_message(m) else m for m in messages]
    if not all(_is_message(m) for m in given):
        raise DataError("messages should be objects with the strings role and content")
    if not given or given[-1]["role"] != "assistant" or not given[-1]["content"]:
        last = given[-1]["role"] if given else "nobody"
        raise DataError(f"the last message is of {last!r}; it should be the assistant's, and not empty")
    if len(given) == 1:
        raise DataError("there is no message in front of the assistant's; it should answer something")
    return Row(str(raw.get("id") or index), str(raw.get("id") or index), 0, tuple(given), (), {})


def _messages(value: Any, role: str) -> list[Any]:
    return [{"role": role, "content": value}] if isinstance(value, str) else list(value)


def _is_message(m: Any) -> bool:
    return isinstance(m, Mapping) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)


@dataclass(frozen=True)
class Order:
    """Which rows of packed examples every step of a run learns from: of any step, without those before it."""

    data: Data
    size: int
    rows: int
    seed: int

    def epoch(self, number: int) -> list[list[Any]]:
        """The batches of an epoch, as rows of example numbers."""
        return batches(pack(self.data.lengths, self.size, seed=self.seed, epoch=number), self.rows)

    def assembled(self, number: int, first: int = 0) -> Iterator[Batch]:
        """The batches of an epoch from its first-th on, as arrays."""
        for batch in self.epoch(number)[first:]:
            yield assemble([[self.data[i] for i in row] for row in batch], self.size)

    def from_step(self, step: int) -> Iterator[Batch]:
        """The batches from optimizer step `step` on, epoch after epoch, without end."""
        number = 0
        while step >= (steps := len(self.epoch(number))):
            number, step = number + 1, step - steps
        yield from self.assembled(number, step)
        for later in count(number + 1):
            yield from self.assembled(later)

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, at least one."""
        whole = int(epochs)
        last = round((epochs - whole) * len(self.epoch(whole))) if epochs > whole else 0
        return max(1, sum(len(self.epoch(number)) for number in range(whole)) + last)
