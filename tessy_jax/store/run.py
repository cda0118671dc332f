"""The contents of a run folder, stored so that they survive `kill -9`.

Responses and failures are stored in part files, which are written once and never changed. The file
`responses/part-<first>-<n>.jsonl` holds the rows of n commits from number `first` on, one
`{"kind": "response" | "failure", "row": {…}}` per line. A commit writes one new part atomically. Small parts are merged into
larger ones: the merged part is written first, then the old parts are deleted. A crash in between leaves duplicate rows.
Readers take each key once, and the next writer deletes the duplicates.

A merge at least doubles the part that holds a byte, so a byte is rewritten O(log n) times.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

from tessy_jax import __version__
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.records import Failure, Key, Row, validate, validate_failure
from tessy_jax.store.files import Files, open_files

logger = logging.getLogger(__name__)

SMALL = 8 << 20
"""Parts below this many bytes are merged."""
FEW = 64
"""The largest number of small parts at the end."""
MARK = "# A run folder of tessy_jax"
"""The first words of our config.yaml."""
PART = re.compile(r"part-([0-9]{20})-([0-9]+)\.jsonl")
SNAPSHOT = re.compile(r"snapshot-([0-9]{20})\.bin")


class Part(NamedTuple):
    """A part file with the rows of commits first…first+commits−1, and its size in bytes."""

    first: int
    commits: int
    size: int

    @property
    def name(self) -> str:
        """Its name in the run folder."""
        return f"responses/part-{self.first:020}-{self.commits}.jsonl"

    @property
    def end(self) -> int:
        """The number of the first commit after it."""
        return self.first + self.commits


class RunReader:
    """Reads a run folder, also while another process writes to it. output: a path or an address.

    Raises:
        ConfigError: the folder is not a run folder, or the address has an unknown file system.
        DataError: the folder cannot be read.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self._files = open_files(output)
        if not self._is_ours():
            raise ConfigError(f"{output}: is not a run folder; give the `output` of an earlier run")

    def rows(self) -> Iterator[Row]:
        """All responses in the order of their commits, each key once.

        Raises:
            DataError: a part cannot be read, or a line is not a row.
        """
        seen: set[Key] = set()
        for name, kind, data in self._entries():
            if kind == "response" and _key(data) not in seen:
                seen.add(_key(data))
                try:
                    yield Row.from_json(data)
                except DataError as error:
                    raise DataError(f"{self.output}/{name}: {error}") from None

    def failures(self) -> Iterator[Failure]:
        """The failures without a response: for each key the one with the most attempts.

        Raises:
            DataError: a part cannot be read.
        """
        finished: set[Key] = set()
        failures: dict[Key, Failure] = {}
        for _, kind, data in self._entries():
            if kind == "response":
                finished.add(_key(data))
            elif _key(data) not in failures or data["attempts"] > failures[_key(data)].attempts:
                failures[_key(data)] = Failure.from_json(data)
        yield from (failure for key, failure in failures.items() if key not in finished)

    def finished(self) -> set[Key]:
        """The keys that have a response. A key that is also in a snapshot counts as finished."""
        return {_key(data) for _, kind, data in self._entries() if kind == "response"}

    def failed(self) -> set[Key]:
        """The keys that failed and have no response."""
        return {failure.key for failure in self.failures()}

    def config(self) -> str | None:
        """The text of config.yaml."""
        data = self._get("config.yaml")
        return None if data is None else data.decode("utf-8", "replace")

    def file(self, name: str) -> bytes | None:
        """The content of a file of the folder; None if it is absent."""
        return self._get(name)

    def summary(self) -> dict[str, Any] | None:
        """The content of summary.json; None if it is absent or torn."""
        with contextlib.suppress(ValueError):
            return json.loads(self._get("summary.json") or b"null")
        return None

    def load_snapshot(self) -> bytes | None:
        """The newest intact snapshot; None if there is none."""
        for number in sorted(self._snapshots(), reverse=True):
            data = self._get(_snapshot(number)) or b""
            if len(data) >= 32 and hashlib.sha256(data[32:]).digest() == data[:32]:
                return data[32:]
            logger.warning("%s/%s: is torn; the one before it is used", self.output, _snapshot(number))
        return None

    def _get(self, name: str) -> bytes | None:
        try:
            return self._files.get(name)
        except FileNotFoundError:
            return None

    def _snapshots(self) -> list[int]:
        return [int(match[1]) for name in self._files.sizes("snapshots") if (match := SNAPSHOT.fullmatch(name))]

    def _list(self) -> list[Part]:
        """The parts by number; a merged part precedes the parts it was made of."""
        sizes = self._files.sizes("responses").items()
        parts = [Part(int(match[1]), int(match[2]), size) for name, size in sizes if (match := PART.fullmatch(name))]
        return sorted(parts, key=lambda part: (part.first, -part.commits))

    def _entries(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """(part, kind, row) of every intact line; a row may occur twice."""
        read: set[str] = set()
        again = True
        while again:
            again = False
            for part in self._list():
                if part.name in read:
                    continue
                data = self._get(part.name)
                if data is None:  # merged since it was listed: its rows are in a newer part
                    again = True
                    break
                read.add(part.name)
                for number, line in enumerate(data.split(b"\n"), 1):
                    if line:
                        entry = _parse(line)
                        if entry is None:  # of a commit that never returned, so nothing that was promised
                            logger.warning("%s/%s:%d: is torn and is left out", self.output, part.name, number)
                        else:
                            yield part.name, *entry

    def _is_ours(self) -> bool:
        return (self.config() or "").startswith(MARK) or bool(self._list() or self._snapshots())


class RunStore(RunReader):
    """Writes a run folder, and creates it if it is absent. output: a path or an address.

    One process at a time: on a path it is locked until the process ends; on an object store a second writer is detected
    when both write the same number. Not for several threads at once.

    Raises:
        ConfigError: the folder holds something else, or another process writes to it.
        DataError: it cannot be written.
    """

    def __init__(self, output: str) -> None:
        self.output = output
        self._files = open_files(output)
        strange = self._strange()
        if strange and not self._is_ours():
            raise ConfigError(f"{output}: holds {strange!r} but no run of tessy_jax; name a new or empty folder as `output`")
        self._files.start()
        self._parts = self._list()
        self._next = max((part.end for part in self._parts), default=0)
        self._finished: set[Key] = set()
        self._failed: dict[Key, int] = {}  # attempts
        self._scan()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other processes write to the folder. This one may not any more."""
        self._files.stop()

    def finished(self) -> set[Key]:
        """The keys that have a response. A key that is also in a snapshot counts as finished."""
        return set(self._finished)

    def failed(self) -> set[Key]:
        """The keys that failed and have no response."""
        return set(self._failed) - self._finished

    def commit(self, rows: Sequence[Row], failures: Sequence[Failure] = ()) -> None:
        """Stores responses and failures durably: once this returns, they survive a kill of the process.

        A key keeps its first response; later rows of that key are ignored. A failed key may still get a response, or a
        failure with more attempts.

        Raises:
            DataError: a row is invalid (then nothing is stored), or the folder cannot be written.
        """
        finished: set[Key] = set()
        failed: dict[Key, int] = {}
        entries: list[dict[str, Any]] = []
        for row in rows:
            validate(row)
            if row.key not in self._finished and row.key not in finished:
                finished.add(row.key)
                entries.append({"kind": "response", "row": row.to_json()})
        for failure in failures:
            validate_failure(failure)
            before = max(self._failed.get(failure.key, -1), failed.get(failure.key, -1))
            if failure.key not in self._finished and failure.attempts > before:
                failed[failure.key] = failure.attempts
                entries.append({"kind": "failure", "row": failure.to_json()})
        if not entries:
            return
        lines = (json.dumps(entry, ensure_ascii=False, allow_nan=False, separators=(",", ":")) for entry in entries)
        data = "".join(line + "\n" for line in lines).encode("utf-8")
        part = Part(self._next, 1, len(data))
        self._next += 1  # even if the writing fails: no number is used twice
        self._files.put(part.name, data, new=True)
        self._parts.append(part)
        self._finished |= finished
        self._failed |= failed
        self._merge_newest()

    def save_config(self, text: str) -> None:
        """Replaces config.yaml by this YAML, with a comment on top that marks the folder as ours.

        Raises:
            DataError: the folder cannot be written.
        """
        text = text if text.startswith(MARK) else f"{MARK} {__version__}\n{text}"
        self._files.put("config.yaml", text.encode("utf-8"))

    def save_summary(self, summary: Mapping[str, Any]) -> None:
        """Replaces summary.json.

        Raises:
            DataError: the folder cannot be written.
        """
        self._files.put("summary.json", (json.dumps(summary, ensure_ascii=False, indent=1) + "\n").encode("utf-8"))

    def save_metrics(self, lines: str) -> None:
        """Replaces metrics.jsonl.

        Raises:
            DataError: the folder cannot be written.
        """
        self._files.put("metrics.jsonl", lines.encode("utf-8"))

    def save_page(self, name: str, text: str) -> None:
        """Replaces a file for people, such as report.html.

        Raises:
            DataError: the folder cannot be written.
        """
        self._files.put(name, text.encode("utf-8"))

    @property
    def files(self) -> Files:
        """The files of the folder, for content other than responses."""
        return self._files

    def save_snapshot(self, data: bytes) -> None:
        """Saves a snapshot of the responses in flight. The previous snapshot is kept in case this one is torn.

        Raises:
            DataError: the folder cannot be written.
        """
        numbers = sorted(self._snapshots())
        self._files.put(_snapshot(numbers[-1] + 1 if numbers else 0), hashlib.sha256(data).digest() + data, new=True)
        self._delete([_snapshot(number) for number in numbers[:-1]])

    def clear_snapshots(self) -> None:
        """Deletes all snapshots; call it when no response is in flight."""
        self._delete([_snapshot(number) for number in sorted(self._snapshots())])

    def compact(self) -> None:
        """Merges all small parts with their neighbours, at the end of a run.

        Raises:
            DataError: the folder cannot be written.
        """
        self._merge(self._parts)

    def _merge_newest(self) -> None:
        """Limits the number of small parts at the end."""
        large = self._parts[-1].size >= SMALL
        start = end = len(self._parts) - large
        while start and self._parts[start - 1].size < SMALL:
            start -= 1
        run = self._parts[start:end]
        if large:  # no later part can join the small ones before it
            self._merge(run)
        elif len(run) > FEW:
            while len(run) > 1 and 2 * max(part.size for part in run) > sum(part.size for part in run):
                run = run[run.index(max(run, key=lambda part: part.size)) + 1 :]
            self._merge(run)

    def _merge(self, parts: Sequence[Part]) -> None:
        """Merges neighbours until none is small; larger parts stay unchanged."""
        group: list[Part] = []
        for part in parts:
            if part.size < SMALL:
                group.append(part)
            if part.size >= SMALL or sum(p.size for p in group) >= SMALL:
                self._merge_group(group)
                group = []
        self._merge_group(group)

    def _merge_group(self, group: Sequence[Part]) -> None:
        pieces = [self._files.get(part.name) for part in group]
        data = b"".join(piece if piece.endswith(b"\n") else piece + b"\n" for piece in pieces)
        first = min((part.first for part in group), default=0)
        merged = Part(first, max((part.end for part in group), default=0) - first, len(data))
        if len(group) < 2 or any(part.name == merged.name for part in self._parts):
            return
        self._files.put(merged.name, data, new=True)
        at = self._parts.index(group[0])
        self._parts[at : at + len(group)] = [merged]
        self._delete([part.name for part in group])

    def _strange(self) -> str | None:
        """The first name in the folder that does not belong to a run."""
        inside = {"responses": PART, "snapshots": SNAPSHOT}
        strange = [name for name in self._files.sizes("") if name not in inside]
        for folder, ours in inside.items():
            strange += [f"{folder}/{name}" for name in self._files.sizes(folder) if not ours.fullmatch(name)]
        return min((name for name in strange if not name.rpartition("/")[2].startswith(".")), default=None)

    def _delete(self, names: Sequence[str]) -> None:
        """Deletes obsolete files; a failure only costs disk space."""
        for name in names:
            try:
                self._files.delete(name)
            except Exception as error:  # object stores have errors of their own
                logger.warning("%s/%s: cannot be deleted (%s)", self.output, name, error)

    def _scan(self) -> None:
        """Reads the keys, and deletes the parts that an interrupted merge left."""
        news: dict[str, bool] = {part.name: False for part in self._parts}
        for name, kind, data in self._entries():
            key = _key(data)
            if kind == "response":
                news[name] |= key not in self._finished
                self._finished.add(key)
            elif data["attempts"] > self._failed.get(key, -1):
                news[name] = True
                self._failed[key] = data["attempts"]
        end, old = 0, set()
        for part in self._parts:  # by number
            if part.end <= end and not news[part.name]:
                old.add(part.name)
            end = max(end, part.end)
        self._delete(sorted(old))
        self._parts = [part for part in self._parts if part.name not in old]


def _snapshot(number: int) -> str:
    return f"snapshots/snapshot-{number:020}.bin"


def _key(data: Mapping[str, Any]) -> Key:
    return data["prompt_id"], data["rollout"]


def _parse(line: bytes) -> tuple[str, dict[str, Any]] | None:
    """Kind and row of a line; None if the line is torn."""
    try:
        entry = json.loads(line)
        _key(entry["row"])
        return entry["kind"], entry["row"]
    except (ValueError, KeyError, TypeError):
        return None
