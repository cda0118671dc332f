"""Files that appear whole or not at all, by name under a run folder: on a path, or on what fsspec knows (`gs://`)."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from tessy_jax.errors import ConfigError, DataError, TessyError

logger = logging.getLogger(__name__)

PROBE = b"\0" * (1 << 20)
"""Is written and deleted before any work: a full or unwritable folder is found out in time."""
OBJECT_STORES = {"gs", "gcs", "s3", "s3a", "az", "abfs", "abfss", "oci", "oss", "r2", "memory"}
"""Have no folders to make, and making one might make a bucket."""


class Files(Protocol):
    """Names are relative to the run folder, with "/" between folders; hidden files are the implementation's own."""

    def start(self) -> None:
        """Before anything is written: makes the folder, keeps other writers out, and tries whether it can be written.

        Raises:
            ConfigError: another process writes to it.
            DataError: it cannot be written.
        """

    def stop(self) -> None:
        """Lets other writers in."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Names in a folder ("": the run folder) and their sizes in bytes; none where there is no such folder.

        Raises:
            ConfigError: the folder is a file.
            DataError: it cannot be read.
        """

    def get(self, name: str) -> bytes:
        """What a file holds.

        Raises:
            FileNotFoundError: there is none.
            DataError: it cannot be read.
        """

    def put(self, name: str, data: bytes, *, new: bool = False) -> None:
        """Makes or replaces a file, durably. new: there must be none of this name.

        Raises:
            ConfigError: a new one is there already, so another process writes here, too.
            DataError: it cannot be written.
        """

    def delete(self, name: str) -> None:
        """Deletes a file; one that is gone already is fine."""


def open_files(output: str) -> Files:
    """The files of a run folder, by path or address.

    Raises:
        ConfigError: no file system is known for the address.
    """
    path = local(output)
    return RemoteFiles(output) if path is None else LocalFiles(path)


def local(output: str) -> Path | None:
    """The path of a run folder; None where it is an address."""
    scheme, separator, rest = output.partition("://")
    if separator and scheme not in {"file", "local"}:
        return None
    return Path(rest if separator else output).expanduser()


def within(output: str, name: str) -> str:
    """The path or address of what lies in a run folder."""
    path = local(output)
    return f"{output.rstrip('/')}/{name}" if path is None else str(path / name)


def _conflict(name: str) -> ConfigError:
    return ConfigError(f"{name}: another process has written it meanwhile; let only one write to a run, and resume that one")


class LocalFiles:
    """A folder. A file is written beside its place, synced, renamed, and the folder synced."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self._lock: int | None = None

    def start(self) -> None:
        try:
            _make(self.root)
            self._lock = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise self._unwritable(self.root, error) from None
        try:
            self._take_lock(self._lock)
            for folder in ("", "responses", "snapshots", "annotations", "annotations/student", "annotations/teacher"):
                for partial in (self.root / folder).glob(".*.partial"):  # of a process that was killed
                    if partial.is_file():
                        partial.unlink()
            self.put(".probe", PROBE)
            self.delete(".probe")
        except BaseException:
            self.stop()
            raise

    def _take_lock(self, lock: int) -> None:
        """Held until it is closed or the process ends, however it ends."""
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
            raise ConfigError(
                f"{self.root}: process {pid or 'unknown'} is writing this run; wait for it, end it, or name another `output`"
            ) from None
        except OSError as error:
            logger.warning("%s: cannot be locked (%s); let no other process write to it", self.root, error)
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode("ascii"), 0)

    def stop(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def sizes(self, folder: str) -> dict[str, int]:
        place = self.root / folder
        sizes = {}
        try:
            with os.scandir(place) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):  # a writer has just deleted it
                        sizes[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            return {}
        except NotADirectoryError:
            raise ConfigError(f"{place}: is in or is a file; name a folder as `output`") from None
        except OSError as error:
            raise DataError(f"{place}: cannot be read ({error.strerror}); mend that, then run again") from None
        return sizes

    def get(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DataError(f"{self.root / name}: cannot be read ({error.strerror}); mend that, then run again") from None

    def put(self, name: str, data: bytes, *, new: bool = False) -> None:
        assert self._lock is not None, "a run folder is written between start and stop only"
        target = self.root / name
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        if new and target.exists():
            raise _conflict(str(target))
        try:
            _make(target.parent)
            with partial.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(target)
            _sync(target.parent)
        except OSError as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise self._unwritable(target, error) from None

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    @staticmethod
    def _unwritable(place: Path, error: OSError) -> DataError:
        return DataError(
            f"{place}: cannot be written ({error.strerror}); free some space or name a writable folder as `output`, "
            "then run again: what was committed is kept"
        )


class RemoteFiles:
    """An address. A file is one put, which object stores do whole or not at all; other file systems as well as they can."""

    def __init__(self, url: str) -> None:
        import fsspec.core  # type: ignore[import-untyped, import-not-found, unused-ignore]

        self.url = url.rstrip("/")
        try:
            self._fs, root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:  # the package for it is missing; no such protocol
            raise ConfigError(f"{url}: cannot be opened ({error}); give a path, or install what serves it") from None
        self._root = root.rstrip("/")
        self._makes_folders = url.partition("://")[0] not in OBJECT_STORES
        self._creates = True
        self._open = False

    def start(self) -> None:
        self._open = True
        for name in self.sizes(""):
            if name.startswith(".probe"):  # of a process that was killed
                self._remove(name)
        probe = f".probe-{uuid.uuid4().hex}"
        try:
            self.put(probe, PROBE, new=True)
        except DataError:
            self._creates = False
            self.put(probe, PROBE)
            logger.warning(
                "%s: cannot distinguish a new file from a replaced one; let only one process write to it", self.url
            )
        self._remove(probe)

    def _remove(self, name: str) -> None:
        try:
            self.delete(name)
        except Exception as error:
            raise DataError(
                f"{self.url}/{name}: cannot be deleted ({error}); grant that, or name another `output`"
            ) from None

    def stop(self) -> None:
        self._open = False

    def sizes(self, folder: str) -> dict[str, int]:
        place = f"{self._root}/{folder}".rstrip("/")
        try:
            self._fs.invalidate_cache()
            listing: list[dict[str, Any]] = self._fs.ls(place, detail=True)
        except FileNotFoundError:
            return {}
        except Exception as error:  # object stores have errors of their own
            raise DataError(f"{self.url}: cannot be read ({error}); check the address and your access to it") from None
        entries = {entry["name"].strip("/"): entry for entry in listing}
        own = entries.pop(place.strip("/"), None)  # a file, or the empty object by which some tools mark a folder
        if own is not None and own["type"] == "file" and own["size"] and not entries:
            raise ConfigError(f"{self.url}: is a file; name a folder as `output`")
        return {name.rpartition("/")[2]: int(entry["size"] or 0) for name, entry in entries.items()}

    def get(self, name: str) -> bytes:
        try:
            data: bytes = self._fs.cat_file(f"{self._root}/{name}")
        except FileNotFoundError:
            raise
        except Exception as error:
            raise DataError(
                f"{self.url}/{name}: cannot be read ({error}); check your access to it, then run again"
            ) from None
        return data

    def put(self, name: str, data: bytes, *, new: bool = False) -> None:
        assert self._open, "a run folder is written between start and stop only"
        place = f"{self._root}/{name}"
        try:
            if self._makes_folders:
                self._fs.makedirs(place.rpartition("/")[0], exist_ok=True)
            self._fs.pipe_file(place, data, mode="create" if new and self._creates else "overwrite")
        except FileExistsError:
            if self.get(name) != data:  # else it is ours: a put that was tried again after its answer got lost
                raise _conflict(f"{self.url}/{name}") from None
        except Exception as error:
            raise DataError(
                f"{self.url}/{name}: cannot be written ({error}); check the address and your access to it, "
                "then run again: what was committed is kept"
            ) from None

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(f"{self._root}/{name}")


@contextlib.contextmanager
def whole_folder(folder: Path, kind: type[TessyError]) -> Iterator[Path]:
    """A place to write files, which becomes the folder by one rename after every byte is on disk; on an error, or killed,
    nothing stands under the folder's name.

    Raises:
        TessyError: of this kind: the folder exists and is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise kind(f"{folder}: exists and is not empty; name a new folder or remove it")
    staging = folder.parent / f".{folder.name}.{os.getpid()}.partial"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for left_over in folder.parent.glob(f".{folder.name}.*.partial"):
            shutil.rmtree(left_over)
        staging.mkdir()
        yield staging
        for file in (*staging.rglob("*"), staging):
            _sync(file)
        staging.rename(folder)
        _sync(folder.parent)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError) and not isinstance(error, TessyError):
            raise kind(f"{folder}: cannot be written ({error}); make room or name another place") from error
        raise


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _make(folder: Path) -> None:
    """A folder and those above it, durably."""
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)
