"""The examples of a training run as flat arrays on disk, and the batches of every step."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tessy_jax.config import Examples
from tessy_jax.errors import DataError
from tessy_jax.records import Row
from tessy_jax.store import RunReader
from tessy_jax.store.data_sets import NOT_READ
from tessy_jax.store.files import local
from tessy_jax.store.messages import BESIDE, FORMS, MARKS, THOUGHTS, messages_of, own_id, refuse_rendered, refuse_unlearnt
from tessy_jax.store.opening import reader_of
from tessy_jax.store.table_files import format_of
from tessy_jax.store.tables import table_rows
from tessy_jax.text.chat import Chat
from tessy_jax.train.examples import KINDS, example
from tessy_jax.train.pack import NO_TARGET, Batch, Example, TargetKind, assemble, batches, pack

WHOLE: dict[str, Callable[[int], NDArray[np.int64]]] = {
    "attention_mask": lambda size: np.ones(size, np.int64),
    "position_ids": np.arange,
    "seq_lengths": lambda size: np.array([size]),
}
"""Columns of tokenized data sets, and their values for a row that holds one example without padding."""
MASKS = ("completion_mask", "assistant_masks", "assistant_mask", "loss_mask")
"""Columns of tokenized data sets that say which tokens are targets, as labels do."""
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
    *WHOLE,
    *MASKS,
    *MARKS,
    *THOUGHTS,
    *FORMS,
    *BESIDE,
)
CHUNK = 1 << 22  # tokens of a memory-mapped array that are read at a time
IGNORED = -100  # the label of a token that is no target in tokenized data sets


@dataclass(frozen=True)
class TokenizedDataset:
    """Examples in memory-mapped arrays; example i is tokens[offsets[i]:offsets[i + 1]].

    tokens [N], kinds [N], offsets [examples + 1]. names: of the kinds. skipped, cut: ids of rows that exceed the maximum
    length. labels: the targets of classification, int32 [N]; None if each token is its own target.
    """

    tokens: NDArray[np.int32]
    kinds: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    names: tuple[str, ...] = KINDS
    skipped: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    labels: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Example:
        part = slice(self.offsets[i], self.offsets[i + 1])
        tokens = self.tokens[part]
        return Example(tokens, tokens if self.labels is None else self.labels[part], self.kinds[part])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of tokens of each example."""
        return np.diff(self.offsets)

    def fingerprint(self) -> str:
        """A hash of all arrays."""
        digest = hashlib.sha256(self.offsets.tobytes())
        for array in (self.tokens, self.kinds) if self.labels is None else (self.tokens, self.kinds, self.labels):
            for first in range(0, len(array), CHUNK):
                digest.update(np.ascontiguousarray(array[first : first + CHUNK]).data)
        return digest.hexdigest()

    def targets(self) -> dict[str, int]:
        """The number of targets of each kind."""
        counts = np.zeros(len(self.names), np.int64)
        for first in range(0, len(self.kinds), CHUNK):
            counts += np.bincount(self.kinds[first : first + CHUNK], minlength=len(self.names))
        return {name: int(n) for name, n in zip(self.names, counts, strict=True) if name != self.names[NO_TARGET]}

    def described(self) -> str:
        """One line: examples, tokens, and targets by kind."""
        targets = self.targets()
        share = sum(targets.values()) / max(len(self.tokens), 1)
        by_kind = ", ".join(f"{n} {name}" for name, n in targets.items() if n)
        overlong = ((self.skipped, "left out"), (self.cut, "cut"))
        notes = "".join(f"; {len(ids)} rows {action}" for ids, action in overlong if ids)
        return f"{len(self)} examples, {len(self.tokens)} tokens, {share:.1%} of them targets ({by_kind}){notes}"


def to_memmap(examples: Iterable[Example], names: tuple[str, ...] = KINDS, *, labelled: bool = False) -> TokenizedDataset:
    """Writes examples to unnamed temporary files (TMPDIR) and maps these into memory, so that only the disk limits their
    number. names: of their kinds. labelled: the targets are labels instead of tokens.

    Raises:
        DataError: the disk is full.
    """
    lengths: list[int] = [0]
    # unbuffered: closing a buffered file would raise the write error again
    with (
        tempfile.TemporaryFile(buffering=0) as tokens,
        tempfile.TemporaryFile(buffering=0) as kinds,
        tempfile.TemporaryFile(buffering=0) as labels,
    ):
        for batch in _batched(examples):
            try:
                _write(tokens, [np.ascontiguousarray(item.tokens, np.int32).tobytes() for item in batch])
                _write(kinds, [np.ascontiguousarray(item.kinds, np.uint8).tobytes() for item in batch])
                if labelled:
                    _write(labels, [np.ascontiguousarray(item.targets, np.int32).tobytes() for item in batch])
            except OSError as error:
                raise _disk_error(error) from None
            lengths += [len(item.tokens) for item in batch]
        if len(lengths) == 1:
            return TokenizedDataset(np.zeros(0, np.int32), np.zeros(0, np.uint8), np.zeros(1, np.int64), names)
        return TokenizedDataset(
            np.memmap(tokens, np.int32, "r"),
            np.memmap(kinds, np.uint8, "r"),
            np.cumsum(lengths, dtype=np.int64),
            names,
            labels=np.memmap(labels, np.int32, "r") if labelled else None,
        )


def _batched(examples: Iterable[Example]) -> Iterator[list[Example]]:
    remaining = iter(examples)
    while batch := list(islice(remaining, 256)):
        yield batch


def _write(file: Any, parts: list[bytes]) -> None:
    """Writes all parts; one write to an unbuffered file may take only some bytes."""
    data = memoryview(b"".join(parts))
    while data:
        data = data[file.write(data) :]


def _disk_error(error: OSError) -> DataError:
    return DataError(
        f"{tempfile.gettempdir()}: cannot hold the tokenized examples, five to nine bytes a token ({error.strerror}); "
        "free space, or set TMPDIR to another folder"
    )


def read(section: Examples, chat: Chat, size: int, vocab: int) -> TokenizedDataset:
    """The examples of an input. size: the maximum length in tokens. vocab: the number of token ids of the model.

    Raises:
        DataError: the input cannot be read, a row is not a conversation or too long, or no token is a target.
    """
    skipped: list[str] = []
    cut: list[str] = []

    def fitting() -> Iterator[Example]:
        for where, name, item in _examples(section, chat, vocab):
            if len(item.tokens) <= size:
                yield item
            elif section.on_overlength == "refuse":
                raise DataError(
                    f"{where}: row {name!r} has {len(item.tokens)} tokens, training.max_seq_len is {size}; raise it, or "
                    "set data.on_overlength to skip or cut"
                )
            elif section.on_overlength == "skip" or not (item.kinds[:size] != NO_TARGET).any():
                skipped.append(name)
            else:
                cut.append(name)
                yield Example(item.tokens[:size], item.targets[:size], item.kinds[:size])

    data = to_memmap(fitting())
    if not len(data):
        raise DataError(f"{section.path}: has no rows to learn from ({len(skipped)} are longer than {size} tokens)")
    if not sum(data.targets().values()):
        raise DataError(f"{section.path}: none of its {len(data.tokens)} tokens is a target; look at its labels")
    return replace(data, skipped=skipped, cut=cut)


def _examples(section: Examples, chat: Chat, vocab: int) -> Iterator[tuple[str, str, Example]]:
    """The place, the id and the example of each row."""
    for where, index, raw in rows_at(section.path, section.split, section.limit, subset=section.subset):
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


def rows_at(path: str, split: str, limit: int | None, *, subset: str | None = None) -> Iterator[tuple[str, int, Any]]:
    """The first `limit` rows at a path, as (place, number, row). The rows of a run folder are sorted by key, so that their
    order does not depend on the order in which they were finished. split, subset: of a data set.

    Raises:
        DataError: the rows cannot be read.
    """
    reader = _run_at(path)
    if reader is not None:
        if subset is not None:
            raise DataError(f"{path}: is a run folder, which has no configurations, but subset is {subset!r}; leave it out")
        rows = sorted(reader.rows(), key=lambda row: row.key)
        yield from ((path, i, row) for i, row in enumerate(rows[:limit]))
        return
    for index, (where, row) in enumerate(table_rows(path, split, limit, COLUMNS, subset=subset)):
        if isinstance(row, DataError):
            raise DataError(f"{where}: {row}")
        yield where, index, row


def _run_at(path: str) -> RunReader | None:
    """A reader of the run folder at a path; None if the path is a table."""
    folder = local(path)
    if format_of(path) is not None or (folder is not None and not folder.is_dir()):
        return None
    try:
        return reader_of(path)
    except DataError:
        if folder is None:  # the address of a file, which cannot be listed
            return None
        raise


def row_of(raw: Any, index: int) -> Row:
    """A `Row` from any accepted form: a row of a run, messages that end with the assistant's, or `prompt` and `completion`.

    Raises:
        DataError: the form is unknown, or the spans do not tile the content.
    """
    if isinstance(raw, dict) and raw.get("spans") is not None:
        return Row.from_json({name: value for name, value in raw.items() if value is not NOT_READ})
    if isinstance(raw, dict) and raw.get("completion") is not None:
        form, prompt = messages_of(raw, ("prompt",))
        answer = messages_of(raw, ("completion",), "assistant")[1]
        refuse_rendered(prompt, form)
        refuse_rendered(answer, "completion")
        messages = prompt + answer
        other = next((name for name in FORMS if raw.get(name)), None)
        if other is not None and messages_of(raw, (other,))[1] != messages:
            raise DataError(f"holds different conversations in `prompt` and `completion` and in `{other}`; leave one out")
    else:
        form, messages = messages_of(raw, FORMS, or_else="or prompt and completion, or input_ids and labels")
        refuse_rendered(messages, form)
    if not messages or messages[-1]["role"] != "assistant":
        last = messages[-1]["role"] if messages else "no one"
        raise DataError(f"the last message is of {last!r}; it should be the assistant's")
    if not messages[-1]["content"].strip():
        raise DataError("the assistant's last message is empty; it should hold an answer; leave out rows without one")
    if len(messages) == 1:
        raise DataError("there is no message in front of the assistant's; it should answer something")
    refuse_unlearnt(raw, messages)
    name = own_id(raw) or str(index)
    return Row(name, name, 0, tuple(messages), (), {})


def _tokenized(raw: dict[str, Any], vocab: int) -> Example:
    """The example of a tokenized row: `input_ids`, `labels` (the convention of transformers: the same tokens, or −100), and
    optionally `source_ids` (numbers of `TargetKind`)."""
    tokens, labels = _integers(raw, "input_ids"), _integers(raw, "labels")
    sources = None if raw.get("source_ids") is None else _integers(raw, "source_ids")
    lengths = {"input_ids": len(tokens), "labels": len(labels), "source_ids": len(labels if sources is None else sources)}
    if len(set(lengths.values())) > 1 or not len(tokens):
        shown = " and ".join(f"{n} {name}" for name, n in lengths.items() if raw.get(name) is not None)
        raise DataError(f"has {shown}; it should have one label per token, and at least one token")
    if tokens.min() < 0 or tokens.max() >= vocab:
        raise DataError(f"has input_ids from {tokens.min()} to {tokens.max()}, the model has {vocab} tokens; tokenize again")
    mismatches = np.flatnonzero((labels != IGNORED) & (labels != tokens))
    if len(mismatches):
        i = mismatches[0]
        raise DataError(
            f"labels[{i}] is {labels[i]}; it should be {IGNORED}, or the token at the same place, {tokens[i]} (the loss "
            "shifts them)"
        )
    for name, whole in WHOLE.items():
        if raw.get(name) is not None and not np.array_equal(_integers(raw, name), whole(len(tokens))):
            raise DataError(
                f"{name} says that the row has padding or several examples; remove the padding, give one example per row, "
                f"and leave {name} out"
            )
    for name in MASKS:
        if raw.get(name) is not None and not np.array_equal(_integers(raw, name) != 0, labels != IGNORED):
            raise DataError(
                f"{name} and labels differ in which tokens are targets; write {IGNORED} into labels where {name} is 0, and "
                f"leave {name} out"
            )
    kinds = np.full(len(tokens), TargetKind.UNKNOWN) if sources is None else sources
    if kinds.min() < 0 or kinds.max() >= len(KINDS):
        raise DataError(f"source_ids range from {kinds.min()} to {kinds.max()}; they should be 0 to {len(KINDS) - 1}")
    contradictory = np.flatnonzero((labels != IGNORED) & (kinds == NO_TARGET))
    if len(contradictory):
        i = contradictory[0]
        raise DataError(
            f"source_ids[{i}] is {NO_TARGET} (no target), but labels[{i}] is {labels[i]}; the label should be {IGNORED}"
        )
    ids = tokens.astype(np.int32)
    return Example(ids, ids, np.where(labels == IGNORED, NO_TARGET, kinds).astype(np.uint8))


def _integers(raw: dict[str, Any], name: str) -> NDArray[np.int64]:
    """A column of whole numbers, int64 [N]."""
    value = raw.get(name)
    if not isinstance(value, list):
        shown = f"is {value!r:.60}" if name in raw else "is missing"
        raise DataError(f"{name} {shown}; it should be a list of whole numbers, one per token")
    with suppress(ValueError, OverflowError):  # nested lists, numbers that are too large
        array = np.asarray(value)
        if array.dtype.kind == "i" or not value:
            return array.astype(np.int64).reshape(len(value))
    i, item = next((i, item) for i, item in enumerate(value) if type(item) is not int or abs(item) >= 1 << 63)
    raise DataError(f"{name}[{i}] is {item!r:.60}; it should be a whole number")


def tokenized_row(example: Example) -> dict[str, list[int]]:
    """The row of a tokenized data set from which `read` makes the same example."""
    labels = np.where(example.kinds == NO_TARGET, IGNORED, example.tokens)
    return {"input_ids": example.tokens.tolist(), "labels": labels.tolist(), "source_ids": example.kinds.tolist()}


@dataclass(frozen=True)
class BatchPlan:
    """The packed rows of every training step. Each step can be computed without the steps before it."""

    data: TokenizedDataset
    max_seq_len: int
    batch_size: int
    seed: int

    def epoch(self, number: int) -> list[list[Sequence[int]]]:
        """The batches of an epoch, as rows of example numbers."""
        return batches(pack(self.data.lengths, self.max_seq_len, seed=self.seed, epoch=number), self.batch_size)

    def assembled(self, rows: Sequence[Sequence[int]]) -> Batch:
        """The arrays of rows of example numbers."""
        return assemble([[self.data[i] for i in row] for row in rows], self.max_seq_len)

    def from_step(self, step: int) -> Iterator[list[Sequence[int]]]:
        """The batches from optimizer step `step` on; an infinite iterator."""
        number = 0
        while step >= len(plan := self.epoch(number)):
            number, step = number + 1, step - len(plan)
        yield from plan[step:]
        for later in count(number + 1):
            yield from self.epoch(later)

    def ends(self, steps: int, every: int) -> dict[int, int]:
        """The optimizer step at which every `every`-th epoch ends, by the epoch's number from 1, up to step `steps`."""
        ends, step = {}, 0
        for number in count(1) if every else ():
            step += len(self.epoch(number - 1))
            if step > steps:
                break
            if number % every == 0:
                ends[number] = step
        return ends

    def steps(self, epochs: float) -> int:
        """The number of optimizer steps in `epochs` epochs, at least one."""
        full = int(epochs)
        last = round((epochs - full) * len(self.epoch(full))) if epochs > full else 0
        return max(1, sum(len(self.epoch(number)) for number in range(full)) + last)
