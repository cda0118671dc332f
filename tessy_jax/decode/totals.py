"""Counts of an engine's work, for the summary of a job."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class Compilation(NamedTuple):
    """A compiled program of the engine: its purpose, the seconds to trace it (0 if the process had compiled it before) and
    to compile it (0 also if it came from the compilation cache), and its temporary bytes in addition to its arguments."""

    name: str
    trace_seconds: float
    compile_seconds: float
    temporary_bytes: int


@dataclass
class Totals:
    """Counts over all dispatches, one per side; see `state.Counts`. prefilled, shared: tokens of inserted responses that
    their lanes had to read, and that another lane had read. host_syncs: waits for the device."""

    passes: np.ndarray = field(default_factory=lambda: np.zeros(2))
    sampled: np.ndarray = field(default_factory=lambda: np.zeros(2))
    rows: np.ndarray = field(default_factory=lambda: np.zeros(2))
    caught_up: np.ndarray = field(default_factory=lambda: np.zeros(2))
    predictor_passes: np.ndarray = field(default_factory=lambda: np.zeros(2))
    bridged: np.ndarray = field(default_factory=lambda: np.zeros(2))
    prefilled: np.ndarray = field(default_factory=lambda: np.zeros(2))
    shared: np.ndarray = field(default_factory=lambda: np.zeros(2))
    rounds: float = 0
    host_syncs: int = 0
