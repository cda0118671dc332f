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
import numpy as np
from jax.experimental import topologies

from tessy_jax.backend import Backend
from tessy_jax.errors import ConfigError

GIB = 1 << 30
CARDS = Path(__file__).with_name("cards")
TPUS = {"v4": (32 * GIB, 1), "v5e": (16 * GIB, 1), "v5p": (95 * GIB, 1), "v6e": (32 * GIB, 1), "tpu7x": (96 * GIB, 2)}
"""For each TPU: the bytes of one device's memory, and the number of devices per chip."""
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
    def backend(self) -> Backend:
        """The backend, which determines the kernels that the models use."""
        return Backend(self.platform, _card(self.kind, r"major: (\d+)") if self.platform == "cuda" else 0.0)


def parse_target(text: str) -> Target:
    """Parses a target.

    Raises:
        ConfigError: the target is unknown.
    """
    cards = sorted(file.stem for file in CARDS.glob("*.txtpb"))
    match = re.fullmatch(rf"(cpu|{'|'.join(cards)})(?::([1-9]\d*))?", text)
    if match:
        kind, devices = match[1], int(match[2] or 1)
        if kind == "cpu":
            return Target(text, "cpu", kind, devices)
        return Target(text, "cuda", kind, devices, int(_card(kind, r"device_memory_size: (\d+)")))
    match = re.fullmatch(rf"(?:([1-9]\d*)x)?({'|'.join(TPUS)}):(\d+(?:x\d+)+)", text)
    if match:
        memory, per_chip = TPUS[match[2]]
        slices = int(match[1] or 1)
        devices = math.prod(int(n) for n in match[3].split("x")) * per_chip * slices
        if devices:
            return Target(text, "tpu", match[2], devices, memory, match[3], slices)
    raise ConfigError(
        f"target {text!r} is unknown; a target is cpu, a GPU ({', '.join(cards)}) with a number of devices, or a TPU "
        f"({', '.join(TPUS)}) with its topology; examples: {EXAMPLES}"
    )


def larger(target: Target, devices: int) -> str:
    """The text of a target of the same kind with at least this number of devices."""
    if target.platform != "tpu":
        return f"{target.kind}:{devices}"
    chips = -(-devices // (TPUS[target.kind][1] * target.slices))
    sides = [1] * len(target.topology.split("x"))
    while math.prod(sides) < chips:
        sides = sorted([sides[0] * 2, *sides[1:]])
    sides.sort(reverse=sides[0] == 1)  # 2x2x1, but 2x2x4
    slices = f"{target.slices}x" if target.slices > 1 else ""
    return f"{slices}{target.kind}:{'x'.join(map(str, sides))}"


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
    """The environment variables of a process that compiles for a target without initializing an attached accelerator."""
    variables = dict(os.environ) | {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
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


def target_mesh_devices(target: Target, sizes: dict[str, int]) -> list[Any]:
    """The first devices of a target, as many as a mesh of these axis sizes has.

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
    return list(np.asarray(target_devices(target), dtype=object)[:needed])


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
