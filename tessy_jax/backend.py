"""The platform that programs are traced for: that of this process, or that of a planned target."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax


class Backend(NamedTuple):
    """platform: JAX's name, such as cpu, tpu or cuda. capability: the compute capability of an NVIDIA GPU, such as 9.0; 0
    for other devices."""

    platform: str
    capability: float = 0.0


_planned: list[Backend] = []


def backend() -> Backend:
    """The backend that the current trace is for."""
    if _planned:
        return _planned[-1]
    text = str(getattr(jax.devices()[0], "compute_capability", ""))
    try:
        return Backend(jax.default_backend(), float(text))
    except ValueError:  # AMD GPUs have names such as gfx90a
        return Backend(jax.default_backend())


@contextmanager
def tracing_for(planned: Backend) -> Iterator[None]:
    """Traces for another backend than that of this process. Cached traces are not affected."""
    _planned.append(planned)
    try:
        yield
    finally:
        _planned.pop()
