"""Remedies for a program that does not fit into memory: its largest parts, and a setting, mesh or target that fits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tessy_jax.plan.targets import GIB, Target, larger

HEADROOM = 0.95
"""The fraction of a device's usable memory that a program may use on a suggested mesh or target."""


def remedy(record: Mapping[str, Any], target: Target, lanes_key: str, pool_key: str = "") -> str | None:
    """The parts of a program by size, and changes that should make it fit. The estimate assumes that a larger mesh shards
    all bytes evenly.

    record: a record of `measure`. lanes_key: configuration key of the number of lanes; empty for a training step.
    pool_key: configuration key of the size of the caches, if it has to change with the lanes.

    Returns:
        None if the program fits, if the memory of the target is unknown, or if the compiler failed for another reason.
    """
    memory = target.usable
    if memory is None or record.get("fits"):
        return None
    arguments = sum(record["parts"].values())
    if "bytes" in record:
        total = record["device_bytes"]
        temporaries = max(0, total - arguments)
    else:
        beyond = re.search(r"total memory required for .*?\(([\d.]+)([MG])\)", record["error"])
        if beyond is None:
            return None
        temporaries = int(float(beyond[1]) * (GIB if beyond[2] == "G" else GIB >> 10))
        total = arguments + temporaries
    parts = {name: size for name, size in (record["parts"] | {"temporaries": temporaries}).items() if size}
    shown = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in sorted(parts.items(), key=lambda part: -part[1]))
    change = _change(record, target, total / memory, lanes_key, pool_key)
    return f"needs {total / 1e9:.1f} GB of {memory / 1e9:.1f} GB per device ({shown}); {change}"


def _change(record: Mapping[str, Any], target: Target, share: float, lanes_key: str, pool_key: str) -> str:
    """The changes: settings, and a larger mesh on the same target if it has enough devices, else a larger target. share: the
    program's bytes divided by the usable memory."""
    ways = []
    rows = record.get("rows_that_fit", {}).get(record["tokens"], 0)
    if rows and lanes_key:
        ways.append(f"set {lanes_key} to {rows}" + (f" and {pool_key} to {rows * record['tokens']}" if pool_key else ""))
    number = record["devices"] * 2 ** math.ceil(math.log2(max(2.0, share / HEADROOM)))
    axis = "tensor" if lanes_key else "fsdp"
    if number <= target.devices:
        ways.append(f"use {number} of the {target.devices} devices with a larger mesh axis {axis}")
    else:
        ways.append(f"use {larger(target, number)} with a larger mesh axis {axis}")
    if not lanes_key:
        ways.append("lower training.max_seq_len")
    return ", or ".join(ways)
