"""The conversations of a training run as examples, kept on disk as flat arrays, and the order in which they are learnt."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessy_jax.config import Examples
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.records import Row
from tessy_jax.store import RunReader
from tessy_jax.store.messages import messages_of, own_id
from tessy_jax.store.tables import table_rows
from tessy_jax.text.chat import Chat
from tessy_jax.train.examples import KINDS, UNKNOWN, example
from tessy_jax.train.pack import NO_TARGET, Batch, Example, assemble, batches, pack

FORMS = ("messages", "dialogs", "conversations")
COLUMNS = (
    "id",
    "prompt_id",
    "rollout",
    "spans",
    "meta",
    "prompt",
    "completion",
    "input_ids",
    "labels",
    "source_ids",
    *FORMS,
)
AT_ONCE = 1 << 22  # tokens that are counted at once
IGNORED = -100  # how tokenized data sets mark what is no target


@dataclass(frozen=True)
class TokenizedDataset:
    """Examples: number i is tokens[offsets[i]:offsets[i + 1]], of arrays that lie on disk. names: of the kinds. skipped,
    cut: ids of rows that were too long."""

    tokens: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    names: tuple[str, ...] = KINDS
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

    def fingerprint(self) -> str:
        """A hash of all of it."""
        digest = hashlib.sha256(self.offsets.tobytes())
        for array in (self.tokens, self.kinds):
            for first in range(0, len(array), AT_ONCE):
                digest.update(np.ascontiguousarray(array[first : first + AT_ONCE]).data)
        return digest.hexdigest()

    def targets(self) -> dict[str, int]:
        """Targets by kind."""
        counts = np.zeros(len(self.names), np.int64)
        for first in range(0, len(self.kinds), AT_ONCE):
            counts += np.bincount(self.kinds[first : first + AT_ONCE], minlength=len(self.names))
        return {name: int(n) for name, n in zip(self.names, counts, strict=True) if name != self.names[NO_TARGET]}

    def described(self) -> str:
        """What there is to learn, in a line."""
        found = self.targets()
        share = sum(found.values()) / max(len(self.tokens), 1)
        by = ", ".join(f"{n} {name}" for name, n in found.items() if n)
        left = "".join(f"; {len(ids)} rows {what}" for ids, what in ((self.skipped, "left out"), (self.cut, "cut")) if ids)
        return f"{len(self)} examples, {len(self.tokens)} tokens, {share:.1%} of them targets ({by}){left}"


def to_memmap(examples: Iterable[Example], names: tuple[str, ...] = KINDS) -> TokenizedDataset:
    """Examples as they come, written to unnamed temporary files (TMPDIR) and mapped into memory from there, so that their
    number is limited by the disk alone. names: of their kinds.

    Raises:
        DataError: the disk is full.
    """
    lengths: list[int] = [0]
    # unbuffered: closing would raise once more what could not be written
    with tempfile.TemporaryFile(buffering=0) as tokens, tempfile.TemporaryFile(buffering=0) as kinds:
        for batch in _batched(examples):
            try:
                _write(tokens, [np.ascontiguousarray(found.tokens, np.int32).tobytes() for found in batch])
                _write(kinds, [np.ascontiguousarray(found.kinds, np.uint8).tobytes() for found in batch])
            except OSError as error:
                raise _no_room(error) from None
            lengths += [len(found.tokens) for found in batch]
        if len(lengths) == 1:
            return TokenizedDataset(np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(1, np.int64), names)
        mapped = np.memmap(tokens, np.int32, "r"), np.memmap(kinds, np.uint8, "r")
    return TokenizedDataset(*mapped, np.cumsum(lengths, dtype=np.int64), names)


def _batched(examples: Iterable[Example]) -> Iterator[list[Example]]:
    left = iter(examples)
    while batch := list(islice(left, 256)):
        yield batch


def _write(file: Any, parts: list[bytes]) -> None:
    """All of it: a file without a buffer may take less at once."""
    data = memoryview(b"".join(parts))
    while data:
        data = data[file.write(data) :]


def _no_room(error: OSError) -> DataError:
    return DataError(
        f"{tempfile.gettempdir()}: cannot hold the tokenized examples, five bytes a token ({error.strerror}); make room, or "
        "name another folder in TMPDIR"
    )


def read(section: Examples, chat: Chat, size: int, vocab: int) -> TokenizedDataset:
    """All examples of an input, of at most `size` tokens below `vocab`.

    Raises:
        DataError: the input cannot be read, a row is no conversation or too long, or there is nothing to learn.
    """
    skipped: list[str] = []
    cut: list[str] = []

    def fitting() -> Iterator[Example]:
        for where, name, found in _examples(section, chat, vocab):
            if len(found.tokens) <= size:
                yield found
            elif section.on_overlength == "refuse":
                raise DataError(
                    f"{where}: row {name!r} has {len(found.tokens)} tokens, "
                    f"training.max_seq_len is {size}; raise it, or set "
                    "data.on_overlength to skip or cut"
                )
            elif section.on_overlength == "skip" or not (found.kinds[:size] != NO_TARGET).any():
                skipped.append(name)
            else:
                cut.append(name)
                yield Example(found.tokens[:size], found.kinds[:size])

    data = to_memmap(fitting())
    if not len(data):
        raise DataError(f"{section.path}: has no rows to learn from ({len(skipped)} are longer than {size} tokens)")
    if not sum(data.targets().values()):
        raise DataError(f"{section.path}: none of its {len(data.tokens)} tokens is a target; look at its labels")
    return TokenizedDataset(data.tokens, data.kinds, data.offsets, data.names, skipped, cut)


def _examples(section: Examples, chat: Chat, vocab: int) -> Iterator[tuple[str, str, Example]]:
    """Where, the row's id, and its example."""
    for where, index, raw in rows_at(section.path, section.split, section.limit):
        try:
            if isinstance(raw, Row):
                yield where, raw.id, example(chat, raw)
            elif isinstance(raw, dict) and raw.get("input_ids") is not None:
                yield where, own_id(raw) or str(index), _tokenized(raw, vocab)
            else:
                row = row_of(raw, index)
                yield where, row.id, example(chat, row)
        except DataError as error:
            raise DataError(f"{where}: {error}") from error


def rows_at(path: str, split: str, limit: int | None) -> Iterator[tuple[str, int, Any]]:
    """The first `limit` rows at a path, as where, number and row: a run folder's Rows, in an order that does not depend on
    when they were finished, or what a table holds. split: of a data set.

    Raises:
        DataError: they cannot be read.
    """
    try:
        reader: RunReader | None = RunReader(path)
    except (ConfigError, DataError):
        reader = None
    if reader is not None:
        rows = sorted(reader.rows(), key=lambda row: row.key)  # whatever order they were finished in
        yield from ((path, i, row) for i, row in enumerate(rows[:limit]))
        return
    for index, (where, row) in enumerate(table_rows(path, split, limit, COLUMNS)):
        if isinstance(row, DataError):
            raise DataError(f"{where}: {row}")
        yield where, index, row


def row_of(raw: Any, index: int) -> Row:
    """A row of any accepted form: ours, messages that end with the assistant's, or `prompt` and `completion`.

    Raises:
        DataError: it is none, or its spans do not tile its content.
    """
    if isinstance(raw, dict) and raw.get("spans") is not None:
        return Row.from_json(raw)
    if isinstance(raw, dict) and raw.get("completion") is not None:
        messages = messages_of(raw, ("prompt",))[1] + messages_of(raw, ("completion",), "assistant")[1]
    else:
        messages = messages_of(raw, FORMS, or_else="or prompt and completion, or input_ids and labels")[1]
    if not messages or messages[-1]["role"] != "assistant" or not messages[-1]["content"]:
        last = messages[-1]["role"] if messages else "nobody"
        raise DataError(f"the last message is of {last!r}; it should be the assistant's, and not empty")
    if len(messages) == 1:
        raise DataError("there is no message in front of the assistant's; it should answer something")
    name = own_id(raw) or str(index)
    return Row(name, name, 0, tuple(messages), (), {})


def _tokenized(raw: dict[str, Any], vocab: int) -> Example:
    """The example of a row that has been tokenized before: `input_ids`, `labels` (as transformers takes them: the same
    tokens, or −100), and perhaps `source_ids` (places in KINDS)."""
    try:
        tokens, labels = (np.asarray(raw[name], np.int64) for name in ("input_ids", "labels"))
        kinds = np.where(labels == IGNORED, NO_TARGET, UNKNOWN)
        if raw.get("source_ids") is not None:
            kinds = np.where(labels == IGNORED, NO_TARGET, np.asarray(raw["source_ids"], np.int64))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"input_ids, labels and source_ids should be lists of as many whole numbers ({error!r})") from None
    if tokens.ndim != 1 or tokens.shape != labels.shape or not len(tokens):
        raise DataError(f"has {tokens.shape} input_ids and {labels.shape} labels; it should have one label a token")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise DataError(f"has input_ids from {tokens.min()} to {tokens.max()}, the model has {vocab} tokens; tokenize again")
    strange = np.flatnonzero((labels != IGNORED) & (labels != tokens))
    if len(strange):
        raise DataError(
            f"labels[{strange[0]}] is {labels[strange[0]]}; it should be {IGNORED}, or the token at the same place, "
            f"{tokens[strange[0]]} (the loss shifts them)"
        )
    if kinds.min() < 0 or kinds.max() >= len(KINDS):
        raise DataError(f"source_ids go from {kinds.min()} to {kinds.max()}; they should be 0 to {len(KINDS) - 1}")
    return Example(tokens.astype(np.int32), kinds.astype(np.uint8))


def tokenized_row(found: Example) -> dict[str, list[int]]:
    """The row of a tokenized data set from which `read` makes this example."""
    labels = np.where(found.kinds == NO_TARGET, IGNORED, found.tokens)
    return {"input_ids": found.tokens.tolist(), "labels": labels.tolist(), "source_ids": found.kinds.tolist()}


@dataclass(frozen=True)
class BatchPlan:
    """Which rows of packed examples every step of a run learns from: of any step, without those before it. labels: see
    `pack.assemble`."""

    data: TokenizedDataset
    max_seq_len: int
    batch_size: int
    seed: int
    labels: bool = False

    def epoch(self, number: int) -> list[list[Sequence[int]]]:
        """The batches of an epoch, as rows of example numbers."""
        return batches(pack(self.data.lengths, self.max_seq_len, seed=self.seed, epoch=number), self.batch_size)

    def assembled(self, rows: Sequence[Sequence[int]]) -> Batch:
        """Rows of example numbers as arrays."""
        return assemble([[self.data[i] for i in row] for row in rows], self.max_seq_len, labels=self.labels)

    def from_step(self, step: int) -> Iterator[list[Sequence[int]]]:
        """The batches from optimizer step `step` on, epoch after epoch, without end."""
        number = 0
        while step >= len(plan := self.epoch(number)):
            number, step = number + 1, step - len(plan)
        yield from plan[step:]
        for later in count(number + 1):
            yield from self.epoch(later)

    def ends(self, steps: int, every: int) -> dict[int, int]:
        """The optimizer step with which every `every`-th epoch ends, by the epoch's number from 1; of so many steps."""
        found, step = {}, 0
        for number in count(1) if every else ():
            step += len(self.epoch(number - 1))
            if step > steps:
                break
            if number % every == 0:
                found[number] = step
        return found

    def steps(self, epochs: float) -> int:
        """Optimizer steps of so many epochs, at least one."""
        whole = int(epochs)
        last = round((epochs - whole) * len(self.epoch(whole))) if epochs > whole else 0
        return max(1, sum(len(self.epoch(number)) for number in range(whole)) + last)
