"""Targets of compilation: CPU devices of this machine, and TPU slices and NVIDIA GPUs that are not attached."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from tessy_jax.backend import Backend
from tessy_jax.errors import ConfigError
from tessy_jax.gpu_memory import GPU_MEMORY_SHARE

GIB = 1 << 30
CARDS = Path(__file__).with_name("cards")
TPUS = {"v4": (16 * GIB, 2), "v5e": (16 * GIB, 1), "v5p": (95 * GIB, 1), "v6e": (32 * GIB, 1), "tpu7x": (96 * GIB, 2)}
"""For each TPU: the bytes of one device's memory, and the number of devices per chip. libtpu describes each chip of
an absent v4 as two devices, each with half of the memory."""
SLICES_2D = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
SLICES_3D = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8), (8, 8, 8), (8, 8, 16), (8, 16, 16))
SLICES = {"v4": SLICES_3D, "v5e": SLICES_2D, "v5p": SLICES_3D, "v6e": SLICES_2D, "tpu7x": SLICES_3D}
"""The topologies that `larger` suggests for each TPU, in ascending order."""
MOST_DEVICES = 1 << 16
"""The largest number of devices of a target."""
HOST_CHIPS = 4
"""Chips per host by default in libtpu's topologies."""
EXAMPLES = "cpu, cpu:8, h100:8, v5e:4x4, v5p:2x2x1, 2xv6e:2x4"


@dataclass(frozen=True)
class Target:
    """Devices to compile for. text: as given by the user. platform: cpu, cuda or tpu. kind: such as h100 or v5p. devices:
    their number. memory: bytes of one device; None for CPUs. topology: chips of a TPU slice, such as 2x2x1. slices: number
    of TPU slices."""

    text: str
    platform: str
    kind: str
    devices: int
    memory: int | None = None
    topology: str = ""
    slices: int = 1

    @property
    def usable(self) -> int | None:
        """Bytes of one device's memory that a program may use; None for CPUs."""
        return int(self.memory * GPU_MEMORY_SHARE) if self.memory is not None and self.platform == "cuda" else self.memory

    @property
    def backend(self) -> Backend:
        """The backend. It determines the kernels that the models use, and the lanes that `synthesis.lanes: auto` takes."""
        capability = _card(self.kind, r"major: (\d+)") if self.platform == "cuda" else 0.0
        return Backend(self.platform, capability, self.usable)


def parse_target(text: str) -> Target:
    """Parses a target.

    Raises:
        ConfigError: the target is unknown, or has more than `MOST_DEVICES` devices.
    """
    cards = sorted(file.stem for file in CARDS.glob("*.txtpb"))
    match = re.fullmatch(rf"(cpu|{'|'.join(cards)})(?::([1-9][0-9]*))?", text)
    if match:
        kind = match[1]
        devices = _checked(text, match[2] or "1")
        if kind == "cpu":
            return Target(text, "cpu", kind, devices)
        return Target(text, "cuda", kind, devices, int(_card(kind, r"device_memory_size: (\d+)")))
    match = re.fullmatch(rf"(?:([1-9][0-9]*)x)?({'|'.join(TPUS)}):([1-9][0-9]*(?:x[1-9][0-9]*)+)", text)
    if match:
        memory, per_chip = TPUS[match[2]]
        slices = match[1] or "1"
        devices = _checked(text, str(per_chip), slices, *match[3].split("x"))
        return Target(text, "tpu", match[2], devices, memory, match[3], int(slices))
    raise ConfigError(
        f"target {text!r} is unknown; a target is cpu, a GPU ({', '.join(cards)}) with a number of devices, or a TPU "
        f"({', '.join(TPUS)}) with its topology; examples: {EXAMPLES}"
    )


def _checked(text: str, *factors: str) -> int:
    """The number of devices of a target: the product of the factors.

    Raises:
        ConfigError: the product is larger than `MOST_DEVICES`.
    """
    devices = math.prod(int(factor[: len(str(MOST_DEVICES)) + 1]) for factor in factors)  # int() refuses very long strings
    if devices > MOST_DEVICES:
        raise ConfigError(f"target {text[:80]!r}: has more than {MOST_DEVICES:,} devices; give fewer")
    return devices


def larger(target: Target, devices: int) -> str:
    """The text of a target of the same kind with at least this number of devices. A TPU target keeps its number of slices
    unless the largest slice of `SLICES` is too small."""
    if target.platform != "tpu":
        return f"{target.kind}:{devices}"
    chips = -(-devices // TPUS[target.kind][1])
    known = SLICES[target.kind]
    topology = next((t for t in known if math.prod(t) * target.slices >= chips), known[-1])
    slices = max(target.slices, -(-chips // math.prod(topology)))
    return f"{f'{slices}x' if slices > 1 else ''}{target.kind}:{'x'.join(map(str, topology))}"


def check_extras(target: Target) -> None:
    """Checks that the compiler of a target is installed.

    Raises:
        ConfigError: it is not; the message names the extra.
    """
    needed = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_plugins.xla_cuda12")}.get(target.platform, ())
    extra = {"tpu": "plan-tpu", "cuda": "plan-gpu"}.get(target.platform, "")
    if not all(_installed(name) for name in needed):
        raise ConfigError(
            f"target {target.text}: {needed[0]} is not installed; install the extra: pip install 'tessy_jax[{extra}]'"
        )


def environment(target: Target) -> dict[str, str]:
    """The environment variables of a process that compiles for a target without initializing an attached accelerator. The
    process uses no compilation cache, so its seconds always include compilation."""
    variables = dict(os.environ) | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    variables["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    if target.platform == "cpu":
        flags = [f for f in variables.get("XLA_FLAGS", "").split() if "host_platform_device_count" not in f]
        variables["XLA_FLAGS"] = " ".join([*flags, f"--xla_force_host_platform_device_count={target.devices}"])
    return variables


def target_devices(target: Target) -> list[Any]:
    """The devices of a target, to compile for. Call it in a process with the target's `environment`.

    Raises:
        ConfigError: the topology does not exist.
    """
    own = jax.devices("cpu")  # also registers the plugins
    if target.platform == "cpu":
        return list(own)
    if target.platform == "cuda":
        return list(
            topologies.get_topology_desc(
                platform="cuda",
                topology_name=target.text,
                target_config=(CARDS / f"{target.kind}.txtpb").read_text("utf-8"),
                topology=f"1x1x{target.devices}",
            ).devices
        )
    options: dict[str, Any] = {"num_slices": target.slices} if target.slices > 1 else {}
    chips = tuple(int(n) for n in target.topology.split("x"))
    if math.prod(chips) < HOST_CHIPS:
        options["chips_per_host_bounds"] = (*chips, 1, 1)[:3]
    try:
        name = f"{target.kind}:{target.topology}"
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # libtpu raises several types
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"target {target.text}: libtpu has no such topology ({reason}); give a topology of {target.kind}, "
            "in the form of v5e:4x4, v5p:2x2x1 or v6e:2x4"
        ) from None


def check_mesh(target: Target, sizes: dict[str, int]) -> None:
    """Checks that a target has enough devices for a mesh with these axis sizes.

    Raises:
        ConfigError: the target has too few devices.
    """
    needed = math.prod(sizes.values())
    if needed > target.devices:
        axes = ", ".join(f"{axis}: {size}" for axis, size in sizes.items())
        raise ConfigError(
            f"target {target.text}: has {target.devices} of the {needed} devices of the mesh {{{axes}}}; give a larger "
            "target, or a smaller mesh with --set mesh={…}"
        )


def target_mesh_devices(target: Target, sizes: dict[str, int]) -> list[Any]:
    """The first devices of a target, as many as a mesh of these axis sizes has.

    Raises:
        ConfigError: see `check_mesh` and `target_devices`.
    """
    check_mesh(target, sizes)
    return target_devices(target)[: math.prod(sizes.values())]


def _card(kind: str, pattern: str) -> float:
    """A number from the description of a GPU."""
    match = re.search(pattern, (CARDS / f"{kind}.txtpb").read_text("utf-8"))
    assert match is not None, (kind, pattern)
    return float(match[1])


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
