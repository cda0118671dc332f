"""Control groups: limits of memory and of processes for a program and all that it starts, where they may be set."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
SLACK = 96 << 20
"""Bytes beyond a program's own: for what starts it, and for files of the last one that are still being counted out."""


@dataclass
class Group:
    """A control group, or two of them in the old hierarchy. joins: descriptors; who writes 0 there joins. kills: descriptor
    of the file that counts who was ended for memory. close: takes it away; nobody may be in it."""

    folders: list[Path]
    joins: list[int] = field(default_factory=list)
    kills: int | None = None
    counts_processes: bool = False

    def close(self) -> None:
        """Nothing is left of it."""
        for file in [*self.joins, *([] if self.kills is None else [self.kills])]:
            os.close(file)
        for folder in self.folders:
            for _ in range(100):
                try:
                    folder.rmdir()
                except OSError:  # those who left are still being counted out
                    time.sleep(0.01)
                else:
                    break


def made(memory: int, processes: int, mount: Path = MOUNT, member: str | None = None) -> Group | None:
    """A new group with these limits; None where none can be had that limits memory. member: what /proc/self/cgroup says."""
    if member is None:
        try:
            member = Path("/proc/self/cgroup").read_text()
        except OSError:
            return None
    for folder in _candidates(mount, member, "memory"):
        limits = [("memory.max", "memory.limit_in_bytes", memory + SLACK)]
        swap = [("memory.swap.max", "memory.swap.max", 0), ("memory.memsw.limit_in_bytes",) * 2 + (memory + SLACK,)]
        group = _group(folder, [*limits, ("pids.max", "pids.max", processes)], swap)
        if group is None:
            continue
        if not group.counts_processes:
            for other in _candidates(mount, member, "pids"):
                pids = _group(other, [("pids.max", "pids.max", processes)], [])
                if pids is not None:
                    group = Group(group.folders + pids.folders, group.joins + pids.joins, group.kills, True)
                    break
        if mount != MOUNT or _takes(group):
            return group
        group.close()
    return None


def _candidates(mount: Path, member: str, controller: str) -> Iterator[Path]:
    """Folders in which a group with this controller might be made: this process's own first, then those above."""
    for line in member.splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            roots: Sequence[Path] = (mount, mount / "unified")
        elif controller in controllers.split(","):
            roots = (mount / controllers, mount / controller)
        else:
            continue
        own = Path(path.lstrip("/"))
        for top in roots:
            for folder in (own, *own.parents):
                if (top / folder / "cgroup.procs").exists():
                    yield top / folder


def _group(parent: Path, limits: Sequence[tuple[str, str, int]], wanted: Sequence[tuple[str, str, int]]) -> Group | None:
    """A group in this folder, with the first of these limits at least."""
    kin = _kin()
    for left in parent.glob(f"{kin}-*"):  # of a process that was ended before it could tidy up
        if not os.path.exists(f"/proc/{left.name.split('-')[-2]}"):
            with contextlib.suppress(OSError):
                left.rmdir()
    folder = parent / f"{kin}-{os.getpid()}-{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):
        folder.mkdir()
        group = Group([folder])
        try:
            found = [_set(folder, names, value) for *names, value in limits]
            for *names, value in wanted:
                _set(folder, names, value)
            if found[0]:
                group.joins.append(os.open(folder / "cgroup.procs", os.O_WRONLY))
                for name in ("memory.events", "memory.oom_control"):
                    if group.kills is None and (folder / name).exists():
                        group.kills = os.open(folder / name, os.O_RDONLY)
                group.counts_processes = any(
                    took and name == "pids.max" for took, (name, *_) in zip(found, limits, strict=True)
                )
                return group
        except OSError:
            group.close()
            raise
        group.close()
    return None


def _kin() -> str:
    """What the names of groups begin with that processes made which this one can see."""
    try:
        return f"tessy-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "tessy-unknown"


def _set(folder: Path, names: Sequence[str], value: int) -> bool:
    """Sets the first of these that there is; whether it took."""
    for name in names:
        if (folder / name).exists():
            with contextlib.suppress(OSError):
                (folder / name).write_text(str(value))
                return True
    return False


def _takes(group: Group) -> bool:
    """Whether a process can join it: tried."""
    one = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        for file in group.joins:
            os.write(file, str(one.pid).encode())
    except OSError:
        return False
    finally:
        one.communicate()
    return True
