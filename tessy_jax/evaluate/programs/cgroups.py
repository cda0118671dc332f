"""Control groups: limits of memory and processes for a program and its descendants, where this process may set them."""

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
"""Bytes added to a program's memory limit: for the process that starts it, and for files of the previous program that the
kernel has not yet released."""


@dataclass
class Group:
    """A control group, or two of them in cgroup v1. folders: of the groups. joins: descriptors; a process joins by writing 0
    to each. kills: descriptor of the file that counts processes killed for memory, or None. counts_processes: whether the
    number of processes is limited."""

    folders: list[Path]
    joins: list[int] = field(default_factory=list)
    kills: int | None = None
    counts_processes: bool = False

    def close(self) -> None:
        """Closes the descriptors and removes the group, which must have no processes."""
        for file in [*self.joins, *([] if self.kills is None else [self.kills])]:
            os.close(file)
        for folder in self.folders:
            for _ in range(100):
                try:
                    folder.rmdir()
                except OSError:  # the kernel still counts processes that have ended
                    time.sleep(0.01)
                else:
                    break


def new_group(memory: int, processes: int, mount: Path = MOUNT, member: str | None = None) -> Group | None:
    """Makes a group with these limits; None if no group can limit memory here. memory: bytes of a program; the group gets
    `SLACK` more. member: the contents of /proc/self/cgroup; read if None."""
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
        if mount != MOUNT or _can_be_joined(group):
            return group
        group.close()
    return None


def _candidates(mount: Path, member: str, controller: str) -> Iterator[Path]:
    """Folders in which a group with this controller may be possible: that of this process first, then its parents."""
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


def _group(parent: Path, limits: Sequence[tuple[str, str, int]], optional: Sequence[tuple[str, str, int]]) -> Group | None:
    """Makes a group in a folder; None if the first of the limits cannot be set. limits, optional: names of the file in
    cgroup v2 and v1, and a value."""
    prefix = _prefix()
    for stale in parent.glob(f"{prefix}-*"):  # of a process that was killed before it could remove its group
        if not os.path.exists(f"/proc/{stale.name.split('-')[-2]}"):
            with contextlib.suppress(OSError):
                stale.rmdir()
    folder = parent / f"{prefix}-{os.getpid()}-{secrets.token_hex(4)}"
    with contextlib.suppress(OSError):
        folder.mkdir()
        group = Group([folder])
        try:
            was_set = [_set(folder, names, value) for *names, value in limits]
            for *names, value in optional:
                _set(folder, names, value)
            if was_set[0]:
                group.joins.append(os.open(folder / "cgroup.procs", os.O_WRONLY))
                for name in ("memory.events", "memory.oom_control"):
                    if group.kills is None and (folder / name).exists():
                        group.kills = os.open(folder / name, os.O_RDONLY)
                group.counts_processes = any(
                    success and name == "pids.max" for success, (name, *_) in zip(was_set, limits, strict=True)
                )
                return group
        except OSError:
            group.close()
            raise
        group.close()
    return None


def _prefix() -> str:
    """The prefix of the names of groups in this PID namespace."""
    try:
        return f"tessy-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return "tessy-unknown"


def _set(folder: Path, names: Sequence[str], value: int) -> bool:
    """Writes a value to the first of these files that exists. Returns whether it was written."""
    for name in names:
        if (folder / name).exists():
            with contextlib.suppress(OSError):
                (folder / name).write_text(str(value))
                return True
    return False


def _can_be_joined(group: Group) -> bool:
    """Whether a process can join a group. Tries it with a new process."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        for file in group.joins:
            os.write(file, str(process.pid).encode())
    except OSError:
        return False
    finally:
        process.communicate()
    return True
