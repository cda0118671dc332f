"""Remedies for a program that does not fit into memory: its largest parts, and a setting or a larger target that fits."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from tessy_jax.plan.targets import GIB, Target, larger

HEADROOM = 0.95
"""The fraction of a device's memory that a program may use on a suggested target."""


def remedy(record: Mapping[str, Any], target: Target) -> str | None:
    """The parts of a program by size, and changes that should make it fit. The estimate assumes that a larger target shards
    all of its bytes evenly.

    record: a record of `measure`.

    Returns:
        None if the program fits, if the memory of the target is unknown, or if the compiler failed for another reason.
    """
    if target.memory is None or record.get("fits"):
        return None
    arguments = sum(record["parts"].values())
    if "bytes" in record:
        temporaries = record["device_bytes"] - arguments
    else:
        beyond = re.search(r"total memory required for .*?\(([\d.]+)([MG])\)", record["error"])
        if beyond is None:
            return None
        temporaries = int(float(beyond[1]) * (GIB if beyond[2] == "G" else GIB >> 10))
    total = arguments + temporaries
    parts = {name: size for name, size in record["parts"].items() if size} | {"temporaries": temporaries}
    shown = ", ".join(f"{name} {size / 1e9:.1f} GB" for name, size in sorted(parts.items(), key=lambda part: -part[1]))
    change = _change(record, target, total / target.memory)
    return f"needs {total / 1e9:.1f} GB of {target.memory / 1e9:.1f} GB per device ({shown}); {change}"


def _change(record: Mapping[str, Any], target: Target, share: float) -> str:
    ways = []
    rows = record.get("rows_that_fit", {}).get(record["tokens"], 0)
    training = record["program"] == "train"
    if rows and not training:
        ways.append(f"set synthesis.lanes to {rows}")
    number = target.devices * 2 ** math.ceil(math.log2(max(2.0, share / HEADROOM)))
    axis = "fsdp" if training else "tensor"
    ways.append(f"use {larger(target, number)} with a larger mesh axis {axis}")
    if training:
        ways.append("lower training.max_seq_len")
    return ", or ".join(ways)
