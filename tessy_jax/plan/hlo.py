"""Parses the text of an optimized HLO module: the kernel launches, collectives and copies of its computations.

A kernel is an instruction that the device launches: a fusion, a dot, a copy, a collective. Control flow, tuples and views
launch nothing. Scopes are the `jax.named_scope`s of the program, from the outermost to the innermost.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

CONTROL = ("while", "conditional", "call", "async-start", "async-update", "async-done")
VIEWS: tuple[str, ...] = (
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "domain",
    "opt-barrier",
    "partition-id",
    "replica-id",
)
ORDERING: tuple[str, ...] = ("after-all", "add-dependency", "copy-done", "slice-done", "send-done", "recv-done")
ORDERING += ("all-gather-done", "all-reduce-done", "collective-permute-done")
NOT_LAUNCHED = frozenset((*CONTROL, *VIEWS, *ORDERING))
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
COPIES = ("copy", "copy-start", "transpose")
BITS = {"pred": 8, "bf16": 16, "s4": 4, "u4": 4, "f4e2m1fn": 4, "token": 0}

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][a-z0-9\-]*)\((.*)$")
_ARRAY = re.compile(r"([a-z][a-z0-9]*)\[([\d,]*)\]")


Scopes = tuple[str, ...]


class Instruction(NamedTuple):
    """name: of the result. operation: the opcode. result: the text of the result type. rest: the rest of the line."""

    name: str
    operation: str
    result: str
    rest: str

    @property
    def scopes(self) -> Scopes:
        """The parts of the `op_name` in its metadata."""
        match = re.search(r'op_name="([^"]*)"', self.rest)
        return tuple(match[1].split("/")) if match else ()

    def scopes_within(self, outer: Scopes) -> Scopes:
        """Its scopes, or `outer` if they do not begin with `outer`. JAX lowers a function once for several calls, with the
        scopes of the first call, so the scopes of the enclosing loop or branch are more reliable."""
        own = self.scopes
        return own if own[: len(outer)] == outer else outer

    @property
    def bytes(self) -> int:
        """Bytes of the result, or of the largest element of a tuple."""
        return max((_array_bytes(*parts) for parts in _ARRAY.findall(self.result)), default=0)

    @property
    def shape(self) -> str:
        """The first array of the result, such as `bf16[32,8,4096,128]`."""
        match = _ARRAY.search(self.result)
        return match[0] if match else self.result

    def attribute(self, name: str) -> str | None:
        """The computation that an attribute such as `body` names."""
        match = re.search(rf"\b{name}=%?([\w.\-]+)", self.rest)
        return match[1] if match else None


@dataclass(frozen=True)
class Module:
    """The computations of a module by name, and the name of its entry computation."""

    computations: dict[str, list[Instruction]]
    entry: str

    @classmethod
    def parse(cls, text: str) -> Module:
        """Parses the text of `compiled.as_text()`.

        Raises:
            ValueError: the text has no entry computation.
        """
        computations: dict[str, list[Instruction]] = {}
        entry, current = "", None
        for line in text.splitlines():
            if line.startswith("}"):
                current = None
            elif current is None:
                match = _HEADER.match(line)
                if match:
                    current = computations.setdefault(match[2], [])
                    entry = match[2] if match[1] else entry
            else:
                match = _INSTRUCTION.match(line)
                if match:
                    current.append(Instruction(match[1], match[3], match[2], match[4]))
        if not entry:
            raise ValueError("the text is not an optimized HLO module: it has no ENTRY computation")
        return cls(computations, entry)

    def walk(self, computation: str | None = None) -> Iterator[Instruction]:
        """All instructions that a computation runs. Those of loops and branches appear once."""
        for instruction in self.computations[computation or self.entry]:
            yield instruction
            for called in self.called(instruction):
                yield from self.walk(called)

    def called(self, instruction: Instruction) -> list[str]:
        """The computations that control flow runs: body and condition of a loop, all branches, or the callee."""
        if instruction.operation == "while":
            names = [instruction.attribute("body"), instruction.attribute("condition")]
        elif instruction.operation == "conditional":
            names = list(self.branches(instruction))
        elif instruction.operation == "call":
            names = [instruction.attribute("to_apply")]
        elif instruction.operation == "async-start":
            names = [instruction.attribute("calls")]
        else:
            return []
        return [name for name in names if name in self.computations]

    @staticmethod
    def branches(instruction: Instruction) -> list[str]:
        """The computations of a conditional's branches."""
        match = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
        if match:
            return [name.strip().lstrip("%") for name in match[1].split(",")]
        names = (instruction.attribute("true_computation"), instruction.attribute("false_computation"))
        return [name for name in names if name]


@dataclass
class Launches:
    """The launches of one run of a computation.

    kernels: number of kernels by group. host_reads: number of predicates of loops and branches; on GPUs, the host waits for
    each of them before it launches the next kernel. collectives, collective_bytes: number of collectives and bytes of their
    results, by operation.
    """

    kernels: Counter[str] = field(default_factory=Counter)
    host_reads: int = 0
    collectives: Counter[str] = field(default_factory=Counter)
    collective_bytes: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """The number of kernels."""
        return self.kernels.total()

    def add(self, other: Launches, times: int = 1) -> None:
        for name in ("kernels", "collectives", "collective_bytes"):
            own: Counter[str] = getattr(self, name)
            for key, count in getattr(other, name).items():
                own[key] += count * times
        self.host_reads += other.host_reads * times


def launches(
    module: Module,
    computation: str,
    *,
    skip: Callable[[Scopes], bool] = lambda scopes: False,
    group: Callable[[Scopes], str] = lambda scopes: "",
    iterations: Mapping[str, int] = MappingProxyType({}),
    within: Scopes = (),
) -> Launches:
    """Counts the launches of one run of a computation.

    Loops with a known trip count count that many iterations, and a loop that begins a scope `layers_x<n>` counts n. Other
    loops count the iterations that `iterations` gives for a scope that the loop begins (default: 1). Conditionals count the
    branch with the most kernels, or with the fewest if `iterations` gives 0 for a scope that the conditional begins.

    skip: whether to ignore instructions with these scopes, such as those of a path that is not taken. group: the group of a
    kernel with these scopes. within: the scopes of the loop or branch that runs the computation.
    """
    result = Launches()
    options: dict[str, Any] = {"skip": skip, "group": group, "iterations": iterations}
    for instruction in module.computations[computation]:
        scopes = instruction.scopes_within(within)
        if skip(scopes):
            continue
        inner = [launches(module, name, within=scopes, **options) for name in module.called(instruction)]
        given = next((count for name, count in iterations.items() if name in scopes and name not in within), 1)
        if instruction.operation == "while":
            trips = re.search(r'known_trip_count"?:\s*\{"?n"?:"?(\d+)', instruction.rest)
            if not trips:
                begun = (re.fullmatch(r"layers_x(\d+)", name) for name in scopes if name not in within)
                trips = next(filter(None, begun), None)
            times = int(trips[1]) if trips else given
            body, condition = inner
            result.add(body, times)
            if not trips:
                result.add(condition, times + 1)
                result.host_reads += times + 1
        elif instruction.operation == "conditional":
            result.add((max if given else min)(inner, key=lambda branch: branch.total))
            result.host_reads += 1
        else:
            for called in inner:
                result.add(called)
            if instruction.operation not in NOT_LAUNCHED:
                result.kernels[group(scopes)] += 1
                operation = instruction.operation.removesuffix("-start")
                if operation in COLLECTIVES:
                    result.collectives[operation] += 1
                    result.collective_bytes[operation] += instruction.bytes
    return result


class Movement(NamedTuple):
    """Equal instructions of a computation. operation: such as `all-gather`. shape: of one result. count: number of
    instructions. bytes: of all results together."""

    operation: str
    shape: str
    count: int  # type: ignore[assignment]  # the field of a record, not tuple.count
    bytes: int


def collectives(module: Module, computation: str | None = None) -> list[Movement]:
    """The collectives of a computation, the largest first. Those of loops and branches count once."""
    return _movements(
        (i.operation.removesuffix("-start"), i)
        for i in module.walk(computation)
        if i.operation.removesuffix("-start") in COLLECTIVES
    )


def large_copies(module: Module, at_least: int, computation: str | None = None) -> list[Movement]:
    """Copies and transposes of at least `at_least` bytes, the largest first. Those of loops and branches count once."""
    return _movements(
        (i.operation.removesuffix("-start"), i)
        for i in module.walk(computation)
        if i.bytes >= at_least and (i.operation in COPIES or (i.operation == "fusion" and _is_copy(module, i)))
    )


def _is_copy(module: Module, fusion: Instruction) -> bool:
    """Whether a fusion only copies, transposes or slices."""
    name, moves = fusion.attribute("calls"), (*COPIES, "dynamic-slice")
    inside = [i.operation for i in module.computations.get(name or "", [])]
    return bool(inside) and set(inside) <= {"parameter", "bitcast", "tuple", *moves} and any(op in moves for op in inside)


def _movements(found: Iterator[tuple[str, Instruction]]) -> list[Movement]:
    counts: Counter[tuple[str, str]] = Counter()
    sizes: Counter[tuple[str, str]] = Counter()
    for operation, instruction in found:
        key = operation, instruction.shape
        counts[key] += 1
        sizes[key] += instruction.bytes
    ordered = sorted(counts, key=lambda key: (-sizes[key], key))
    return [Movement(*key, counts[key], sizes[key]) for key in ordered]


def _array_bytes(dtype: str, dims: str) -> int:
    digits = re.search(r"\d+", dtype)
    bits = BITS.get(dtype, int(digits[0]) if digits else 0)
    return math.ceil(math.prod(int(n) for n in dims.split(",") if n) * bits / 8)
