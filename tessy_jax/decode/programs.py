"""Compiles the programs of an engine, each once per process, and runs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from tessy_jax import compile_cache
from tessy_jax.decode.totals import Compilation
from tessy_jax.program import Program
from tessy_jax.sharding import Partitioner

_COMPILED: dict[Any, tuple[Any, int]] = {}  # compiled programs and the bytes of their temporary arrays


def forget_programs() -> None:
    """Frees the compiled programs that engines of this process have used, as `jax.clear_caches` does for functions."""
    _COMPILED.clear()


class Programs:
    """The programs of one engine. compilations: those it has run, in the order of their first use."""

    def __init__(self, partitioner: Partitioner) -> None:
        self.partitioner = partitioner
        self.compilations: list[Compilation] = []

    def of(
        self,
        name: str,
        function: Callable[..., Any],
        static: tuple[Any, ...],
        args: tuple[Any, ...],
        *,
        donate: int | None = None,
        like: tuple[int, ...] = (),
    ) -> Program:
        """The program function(*static, *args). donate: index of the argument that the result overwrites, and whose sharding
        it has. like: indices of the arguments whose shardings the results have. Without either the result is replicated."""
        placed: Any = self.partitioner.sharding(())
        if placed is not None and (like or donate is not None):
            of = [jax.tree.map(lambda x: x.sharding, args[i]) for i in (like or (donate or 0,))]
            placed = tuple(of) if like else of[0]
        jitted = jax.jit(lambda *given: function(*static, *given), donate_argnums=donate, out_shardings=placed)
        leaves, structure = jax.tree.flatten(args)
        shapes = tuple((np.shape(x), np.dtype(x.dtype), getattr(x, "sharding", None)) for x in leaves)
        return Program(name, jitted, args, key=(function, static, structure, shapes))

    def run(self, program: Program) -> Any:
        """Runs a program, and returns its results. Equal programs are compiled once per process."""
        traced = seconds = 0.0
        if program.key not in _COMPILED:
            start = time.perf_counter()
            lowered = program.jitted.lower(*program.args)
            at_lowered, hits = time.perf_counter(), compile_cache.hits()
            compiled = lowered.compile()
            traced = at_lowered - start
            seconds = time.perf_counter() - at_lowered if compile_cache.hits() == hits else 0.0
            _COMPILED[program.key] = compiled, int(getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0))
        compiled, temporary = _COMPILED[program.key]
        if not any(c.name == program.name for c in self.compilations):
            self.compilations.append(Compilation(program.name, traced, seconds, temporary))
        return compiled(*program.args)

    def call(self, *args: Any, **options: Any) -> Any:
        """Runs the program that `of` makes of these arguments."""
        return self.run(self.of(*args, **options))
