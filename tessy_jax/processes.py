"""Helpers for several processes that run one job on one mesh. Process 0 is the primary: it alone writes files."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from tessy_jax import __version__, errors
from tessy_jax.errors import ConfigError, DataError, TessyError

T = TypeVar("T")
R = TypeVar("R")


def initialize() -> None:
    """Initializes `jax.distributed`. Call it before any use of a device.

    Cloud TPU, GKE, SLURM and Open MPI describe the other processes. Any other launcher must set JAX_COORDINATOR_ADDRESS
    (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        ConfigError: the other processes are unknown or cannot be reached.
    """
    count, number = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(num_processes=int(count) if count else None, process_id=int(number) if number else None)
    except Exception as error:  # from a ValueError to whatever the transport raises
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"--distributed: the other processes cannot be found or reached ({reason}); start under SLURM, Open MPI, GKE or "
            "on a Cloud TPU, or set JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID"
        ) from error


def provenance(**versions: str) -> dict[str, Any]:
    """Where a job ran, for its summary: the first device and the number of devices, the number of processes, and the
    versions of tessy_jax, JAX and the given packages."""
    return {
        "devices": [*(str(device) for device in jax.devices()[:1]), f"{jax.device_count()} in all"],
        "processes": jax.process_count(),
        "versions": {"tessy_jax": __version__, "jax": jax.__version__, **versions},
    }


def is_primary() -> bool:
    """Whether this process is process 0, which writes files and messages."""
    return jax.process_index() == 0


def on_primary(work: Callable[[], T]) -> T:
    """Runs `work` on process 0 and returns its result, which must be JSON, in every process.

    Raises:
        TessyError: in every process, if `work` raises one; any other error becomes a RuntimeError in the other processes.
    """
    if jax.process_count() == 1:
        return work()
    message = b"{}"
    failed: Exception | None = None
    if is_primary():
        try:
            message = json.dumps({"result": work()}).encode()
        except Exception as error:  # the other processes wait for the broadcast
            failed, message = error, json.dumps({"error": type(error).__name__, "text": str(error)}).encode()
    answer = json.loads(_broadcast(message))
    if failed is not None:
        raise failed
    if "error" in answer:
        kind: Any = getattr(errors, answer["error"], None)
        if isinstance(kind, type) and issubclass(kind, TessyError):
            raise kind(answer["text"])
        raise RuntimeError(f"process 0: {answer['error']}: {answer['text']}")
    result: T = answer["result"]
    return result


class OnPrimary(Generic[T]):
    """An object that exists on process 0 only, such as an open file. All processes must make it and call `run`."""

    def __init__(self, make: Callable[[], T]) -> None:
        """Makes the object on process 0.

        Raises:
            TessyError: see `on_primary`.
        """
        self._objects: list[T] = []
        on_primary(lambda: self._objects.append(make()))

    def run(self, work: Callable[[T], R]) -> R:
        """Passes the object to `work` on process 0 and returns the result, which must be JSON, in every process.

        Raises:
            TessyError: see `on_primary`.
        """
        return on_primary(lambda: work(self._objects[0]))


def all_or_raise(work: Callable[[], T]) -> T:
    """Runs `work` in every process and returns the result of this one if all succeed.

    Raises:
        Exception: the error of this process; a RuntimeError if only another process failed.
    """
    if jax.process_count() == 1:
        return work()
    failed: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failed = error
    succeeded = np.asarray(multihost_utils.process_allgather(np.int32(failed is None))).reshape(-1)
    if failed is not None:
        raise failed
    if not succeeded.all():
        raise RuntimeError(f"process {int(np.argmin(succeeded))} failed; see its messages")
    return result


def check_same(value: Any, name: str) -> None:
    """Checks that a JSON value is the same in every process. name: what the error calls it.

    Raises:
        DataError: in every process, if the value differs.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(json.dumps(value).encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    other = (digests != digests[0]).any(axis=1)
    if other.any():
        raise DataError(
            f"{name}: process {int(np.argmax(other))} reads other data than process 0; give all processes the same files"
        )


def smallest(value: int) -> int:
    """The smallest of the values of all processes, each below 2³¹. Every process must call it."""
    return value if jax.process_count() == 1 else int(np.asarray(multihost_utils.process_allgather(np.int32(value))).min())


def gather(x: jax.Array) -> np.ndarray:
    """Gathers a sharded array on every host. Every process must call it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _broadcast(data: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.frombuffer(data.ljust(size, b"\0")[:size], np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())
