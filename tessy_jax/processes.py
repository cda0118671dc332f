"""Several processes that run one job on one mesh: what one of them does for all, and what all have to know alike."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from tessy_jax import errors
from tessy_jax.errors import ConfigError, DataError, TessyError

T = TypeVar("T")


def initialize() -> None:
    """Makes this process one of several, before it touches a device (`jax.distributed`).

    The launcher says who the others are: Cloud TPU, GKE, SLURM and Open MPI do; anywhere else the variables
    JAX_COORDINATOR_ADDRESS (host:port of the first), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
        ConfigError: nobody says, or the others cannot be reached.
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


def devices() -> list[str]:
    """What a run is on, as summaries say it: the first device, and how many there are."""
    return [*(str(device) for device in jax.devices()[:1]), f"{jax.device_count()} in all"]


def is_primary() -> bool:
    """Whether this process is the one that writes files and tells the user."""
    return jax.process_index() == 0


def on_primary(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all of them; it runs there alone. Its result is JSON.

    Raises:
        TessyError: in all processes, what it raises in the first; an error of any other kind comes as a RuntimeError.
    """
    if jax.process_count() == 1:
        return work()
    said = b"{}"
    failed: Exception | None = None
    if is_primary():
        try:
            said = json.dumps({"result": work()}).encode()
        except Exception as error:  # the others wait to hear of it
            failed, said = error, json.dumps({"error": type(error).__name__, "text": str(error)}).encode()
    found = json.loads(_broadcast(said))
    if failed is not None:
        raise failed
    if "error" in found:
        kind: Any = getattr(errors, found["error"], None)
        if isinstance(kind, type) and issubclass(kind, TessyError):
            raise kind(found["text"])
        raise RuntimeError(f"process 0: {found['error']}: {found['text']}")
    result: T = found["result"]
    return result


def all_or_raise(work: Callable[[], T]) -> T:
    """What `work` gives in this process, where it goes well in all of them; each does its own.

    Raises:
        Exception: what it raises here; a RuntimeError where it goes wrong elsewhere only.
    """
    if jax.process_count() == 1:
        return work()
    failed: Exception | None = None
    try:
        result = work()
    except Exception as error:
        failed = error
    well = np.asarray(multihost_utils.process_allgather(np.int32(failed is None))).reshape(-1)
    if failed is not None:
        raise failed
    if not well.all():
        raise RuntimeError(f"process {int(np.argmin(well))} has failed; see what it says")
    return result


def check_same(value: Any, name: str) -> None:
    """Sees that a value, something that JSON knows, is the same in all processes.

    Raises:
        DataError: in all processes, that it is not; says what it is by its name.
    """
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(json.dumps(value).encode()).digest(), np.uint8)
    digests = np.asarray(multihost_utils.process_allgather(digest))
    other = (digests != digests[0]).any(axis=1)
    if other.any():
        raise DataError(
            f"{name}: process {int(np.argmax(other))} reads something else than process 0; let all read the same files"
        )


def gather(x: jax.Array) -> np.ndarray:
    """An array that is cut over devices, on every host; all processes ask for it together."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def _broadcast(data: bytes) -> bytes:
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.frombuffer(data.ljust(size, b"\0")[:size], np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes())
