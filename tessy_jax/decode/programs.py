"""Compiles the programs of an engine, each once per process, and runs them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Format, Layout

from tessy_jax import compile_cache
from tessy_jax.backend import backend
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
        chooses_layouts: bool = False,
    ) -> Program:
        """The program function(*static, *args). donate: index of the argument that the result overwrites, and whose sharding
        it has. like: indices of the arguments whose shardings the results have. Without either the result is replicated.
        chooses_layouts: on TPUs, the compiler chooses the layouts of the first argument; pass it through `placed` before the
        program runs."""
        placed: Any = self.partitioner.sharding(())
        if placed is not None and (like or donate is not None):
            of = [jax.tree.map(lambda x: x.sharding, args[i]) for i in (like or (donate or 0,))]
            placed = tuple(of) if like else of[0]
        options: dict[str, Any] = {"donate_argnums": donate, "out_shardings": placed}
        chooses_layouts &= pads_to_tiles()
        if chooses_layouts:
            chosen = jax.tree.map(lambda x: Format(Layout.AUTO, x.sharding), args[0])
            options["in_shardings"] = (chosen, *(None for _ in args[1:]))
        jitted = jax.jit(lambda *given: function(*static, *given), **options)
        shapes = tuple(_shapes(x, "format" if i or not chooses_layouts else "sharding") for i, x in enumerate(args))
        return Program(name, jitted, args, (function, static, jax.tree.structure(args), shapes), chooses_layouts)

    def placed(self, program: Program) -> Any:
        """The first argument of a program, moved to the layouts that the compiler chose; unchanged if the compiler does not
        choose them. Arrays are moved one at a time, and the originals of moved arrays are freed."""

        def move(x: Any, to: Any) -> jax.Array:
            if x.format == to:
                return x
            moved = jax.block_until_ready(jax.device_put(x, to))
            x.delete()
            return moved

        if not program.chooses_layouts:
            return program.args[0]
        return jax.tree.map(move, program.args[0], self._compiled(program).input_formats[0][0])

    def run(self, program: Program) -> Any:
        """Runs a program, and returns its results."""
        return self._compiled(program)(*program.args)

    def _compiled(self, program: Program) -> Any:
        """Compiles a program, once per process for equal programs."""
        traced = seconds = 0.0
        if program.key not in _COMPILED:
            start = time.perf_counter()
            given, *others = program.args
            given = jax.tree.map(_shape, given) if program.chooses_layouts else given
            lowered = program.jitted.lower(given, *others)
            at_lowered, hits = time.perf_counter(), compile_cache.hits()
            compiled = lowered.compile()
            traced = at_lowered - start
            seconds = time.perf_counter() - at_lowered if compile_cache.hits() == hits else 0.0
            _COMPILED[program.key] = compiled, int(getattr(compiled.memory_analysis(), "temp_size_in_bytes", 0))
        compiled, temporary = _COMPILED[program.key]
        if not any(c.name == program.name for c in self.compilations):
            self.compilations.append(Compilation(program.name, traced, seconds, temporary))
        return compiled

    def call(self, *args: Any, **options: Any) -> Any:
        """Runs the program that `of` makes of these arguments."""
        return self.run(self.of(*args, **options))


def pads_to_tiles() -> bool:
    """Whether the default layout of an array depends on its shape: TPUs store last the dimension that needs the least
    padding. A program that reads another layout copies the array in every call."""
    return backend().platform == "tpu"


def _shape(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


def _shapes(tree: Any, place: str) -> tuple[Any, ...]:
    """Shapes, dtypes, and the attribute `place` of arrays."""
    return tuple((np.shape(x), np.dtype(x.dtype), getattr(x, place, None)) for x in jax.tree.leaves(tree))
