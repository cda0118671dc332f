"""What programs are traced for: the platform of this process or of a planned target, with or without our kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import jax


class Backend(NamedTuple):
    """platform: JAX's name, such as cpu, tpu or cuda. capability: the compute capability of an NVIDIA GPU, such as 9.0; 0
    for other devices. memory: for a planned target, the bytes that programs may use on one device, if known; None for the
    backend of this process, whose devices can be asked."""

    platform: str
    capability: float = 0.0
    memory: int | None = None


_planned: list[Backend] = []
_kernels = [True]


def backend() -> Backend:
    """The backend that the current trace is for."""
    if _planned:
        return _planned[-1]
    text = str(getattr(jax.devices()[0], "compute_capability", ""))
    try:
        return Backend(jax.default_backend(), float(text))
    except ValueError:  # AMD GPUs have names such as gfx90a
        return Backend(jax.default_backend())


def use_kernels(enabled: bool) -> None:
    """Sets whether later traces may use the package's own kernels; by default, they may. Plain XLA runs in their place."""
    _kernels[0] = enabled


def kernels_enabled() -> bool:
    """Whether traces may use the package's own kernels."""
    return _kernels[0]


def is_planned() -> bool:
    """Whether the current trace is for a planned target, whose devices are absent."""
    return bool(_planned)


@contextmanager
def tracing_for(planned: Backend) -> Iterator[None]:
    """Traces for another backend than that of this process. Cached traces are not affected."""
    _planned.append(planned)
    try:
        yield
    finally:
        _planned.pop()
