"""The devices that programs are traced for: this process's, unless a plan names others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax


class Backend(NamedTuple):
    """platform: cpu, tpu, cuda or as JAX names it. capability: of an NVIDIA card, such as 9.0; 0 otherwise."""

    platform: str
    capability: float = 0.0


_planned: list[Backend] = []


def backend() -> Backend:
    """The devices that the current trace is for."""
    if _planned:
        return _planned[-1]
    text = str(getattr(jax.devices()[0], "compute_capability", ""))
    try:
        return Backend(jax.default_backend(), float(text))
    except ValueError:  # AMD's are names
        return Backend(jax.default_backend())


@contextmanager
def tracing_for(planned: Backend) -> Iterator[None]:
    """Traces for other devices than this process's. Functions that are traced already keep their traces."""
    _planned.append(planned)
    try:
        yield
    finally:
        _planned.pop()
