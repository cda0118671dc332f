"""Machines to compile for: this one's CPU, TPU slices and NVIDIA cards, which need not be there."""

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
"""Of each TPU, the memory of one device, and the devices of one chip."""
HOST_CHIPS = 4
"""Chips that the TPU library expects of a host."""
EXAMPLES = "cpu, cpu:8, h100:8, v5e:4x4, v5p:2x2x1, 2xv6e:2x4"


@dataclass(frozen=True)
class Target:
    """A machine. text: as the user writes it. platform: cpu, cuda or tpu. kind: such as h100 or v5p. devices: how many.
    memory: bytes of one device; None where it is not known. topology: of a TPU slice, such as 2x2x1. slices: how many."""

    text: str
    platform: str
    kind: str
    devices: int
    memory: int | None = None
    topology: str = ""
    slices: int = 1

    @property
    def backend(self) -> Backend:
        """What the models' choices of kernels depend on."""
        return Backend(self.platform, _card(self.kind, r"major: (\d+)") if self.platform == "cuda" else 0.0)


def parse_target(text: str) -> Target:
    """A target from its text.

    Raises:
        ConfigError: the text names no target.
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
        f"target {text!r} is unknown; a target is cpu, a card ({', '.join(cards)}) with a number of devices, or a TPU "
        f"({', '.join(TPUS)}) with its topology: {EXAMPLES}"
    )


def larger(target: Target, devices: int) -> str:
    """A target of the same kind with at least so many devices."""
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
    """Checks that the packages that compile for a target are installed.

    Raises:
        ConfigError: they are not; names the extra.
    """
    needed = {"tpu": ("libtpu",), "cuda": ("jax_cuda12_plugin", "jax_plugins.xla_cuda12")}.get(target.platform, ())
    extra = {"tpu": "plan-tpu", "cuda": "plan-gpu"}.get(target.platform, "")
    if not all(_installed(name) for name in needed):
        raise ConfigError(
            f"target {target.text}: {needed[0]} is not installed; install the extra: pip install 'tessy_jax[{extra}]'"
        )


def environment(target: Target) -> dict[str, str]:
    """The environment of a process that compiles for a target; it initializes no accelerator of this machine."""
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
    except Exception as error:  # the TPU library raises several types
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"target {target.text}: the TPU library has no such topology ({reason}); give one of {target.kind}'s slices, "
            "such as v5e:4x4, v5p:2x2x1 or v6e:2x4"
        ) from None


def target_mesh_devices(target: Target, sizes: dict[str, int]) -> list[Any]:
    """The devices that a mesh of these sizes takes of a target.

    Raises:
        ConfigError: the target has fewer.
    """
    needed = math.prod(sizes.values())
    if needed > target.devices:
        axes = ", ".join(f"{axis}: {size}" for axis, size in sizes.items())
        raise ConfigError(
            f"target {target.text} has {target.devices} devices, the mesh {{{axes}}} needs {needed}; give a larger target, "
            "or another mesh with --set mesh={…}"
        )
    return list(np.asarray(target_devices(target), dtype=object)[:needed])


def _card(kind: str, pattern: str) -> float:
    """A number of a card's description."""
    match = re.search(pattern, (CARDS / f"{kind}.txtpb").read_text("utf-8"))
    assert match is not None, (kind, pattern)
    return float(match[1])


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
