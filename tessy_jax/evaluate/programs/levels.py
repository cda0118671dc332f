"""The levels of the sandbox: for each, the command that starts a fork server, and a check whether it is available."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

BOX = Path(__file__).parent / "box"
INSIDE = "/run/sandbox"
"""The folder of the fork server's files in a root made by nsjail or bubblewrap."""
PROCESSES = 64
"""Maximum number of threads of a program, and of processes and threads of a build, at the same time."""
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
DEVICES = ("null", "zero", "full", "random", "urandom")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "HOME": "/tmp"}


class Resources(NamedTuple):
    """The resources of a fork server. user: its user id outside namespaces; None if this process cannot change its user.
    groups, kills: descriptors of its control groups, see `cgroups.Group`. counted: whether these groups limit the number of
    processes. scratch: a folder for builds; empty if programs have their own mounts."""

    user: int | None
    groups: list[int]
    kills: int | None
    counted: bool
    scratch: str


class Start(NamedTuple):
    """How to start a fork server. command: the prefix before the interpreter. settings: see `box.server.Server`. box: the
    parent folder of the server's files."""

    command: list[str]
    settings: dict[str, Any]
    box: str


@dataclass(frozen=True)
class Level:
    """A way to isolate programs. isolated: programs run in their own namespaces. missing: returns the reason why the level
    is not available, or None."""

    name: str
    isolated: bool
    description: str
    missing: Callable[[], str | None]
    start: Callable[[Resources], Start]


def command(start: Start) -> list[str]:
    """The command line that starts a fork server."""
    code = (
        f"import sys, json; sys.path.insert(0, {start.box!r}); from box.server import main; sys.path.pop(0); "
        f"main(json.loads({json.dumps(start.settings)!r}))"
    )
    return [*start.command, interpreter(), "-S", "-s", "-P", "-B", "-c", code]


def interpreter() -> str:
    """The Python that programs run in: that of this process, without its packages."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def root() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """The contents of a program's root, read-only: (source, target) of bound files and folders, and of symbolic links."""
    folders = ["/usr/lib", "/usr/lib64", "/usr/libexec", "/usr/include", "/usr/bin", "/lib", "/lib64", "/bin"]
    folders += ["/etc/alternatives", "/etc/ld.so.cache", *_python()]
    binds: list[tuple[str, str]] = []
    links: list[tuple[str, str]] = []
    for folder in dict.fromkeys(folders):
        if os.path.islink(folder):
            links.append((os.readlink(folder), folder))
        elif os.path.exists(folder) and not any(folder.startswith(f"{known}/") for known, _ in binds):
            binds.append((folder, folder))
    binds += [(f"/dev/{name}", f"/dev/{name}") for name in DEVICES]
    links.append(("/tmp", "/dev/shm"))
    return binds, links


def _python() -> list[str]:
    return [interpreter(), *(os.path.join(sys.base_prefix, name) for name in ("lib", "lib64"))]


def _settings(resources: Resources, *, isolated: bool, user: int | None, **more: Any) -> dict[str, Any]:
    counts = user is not None or (isolated and _counts_by_namespace())
    return {
        "namespaces": isolated,
        "root": None,
        "outside": None,
        "user": user,
        "processes": PROCESSES if counts else None,
        "threads": counts or resources.counted,
        "cgroups": resources.groups,
        "kills": resources.kills,
        "readable": ["/"],
        "scratch": resources.scratch,
        **more,
    }


def _counts_by_namespace() -> bool:
    """Whether RLIMIT_NPROC counts the processes of a user per user namespace (since Linux 5.14)."""
    return tuple(int(part) for part in re.findall("[0-9]+", os.uname().release)[:2]) >= (5, 14)


def _own(resources: Resources) -> Start:
    binds, links = root()
    built = {"base": "/tmp", "binds": binds, "links": links}
    user = None if resources.user is None else 1000
    settings = _settings(resources, isolated=True, user=user, root=built, outside=resources.user)
    return Start([], settings, str(BOX.parent))


def _bubblewrap(resources: Resources) -> Start:
    binds, links = root()
    # without --die-with-parent, which ends the server when the thread that started it ends
    options = [shutil.which("bwrap") or "bwrap", "--new-session", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    options += ["--unshare-uts", "--unshare-cgroup-try"]
    if resources.user is None:
        options += ["--unshare-user", "--uid", "0", "--gid", "0"]
    for name in CAPABILITIES:
        options += ["--cap-add", name]
    shown = [*binds, (str(BOX), f"{INSIDE}/box")]
    for folder in dict.fromkeys(str(folder) for _, target in shown for folder in reversed(Path(target).parents)):
        options += ["--dir", folder]  # otherwise only user 0 could read it
    for source, target in shown:
        options += ["--dev-bind" if target.startswith("/dev/") else "--ro-bind", source, target]
    for source, target in links:
        options += ["--symlink", source, target]
    options += ["--dir", "/tmp", "--remount-ro", "/", "--"]
    return Start(options, _settings(resources, isolated=True, user=resources.user), INSIDE)


def _nsjail(resources: Resources) -> Start:
    binds, links = root()
    options = [shutil.which("nsjail") or "nsjail", "-Mo", "-Q", "--keep_env", "--keep_caps", "--disable_proc"]
    options += ["--disable_rlimits", "-t", "0", "--cwd", "/", "-T", "/tmp"]
    options += ["--nice_level", str(os.getpriority(os.PRIO_PROCESS, 0))]  # nsjail's default is the lowest priority
    for file in (*resources.groups, *([] if resources.kills is None else [resources.kills])):
        options += ["--pass_fd", str(file)]
    options += ["-u", f"0:{os.geteuid()}:1", "-g", f"0:{os.getegid()}:1"]
    if resources.user is not None:
        options += ["-u", f"1000:{resources.user}:1", "-g", f"1000:{resources.user}:1"]
    for source, target in [*binds, (str(BOX), f"{INSIDE}/box")]:
        options += ["-B" if target.startswith("/dev/") else "-R", f"{source}:{target}"]
    for source, target in links:
        options += ["-s", f"{source}:{target}"]
    settings = _settings(resources, isolated=True, user=None if resources.user is None else 1000)
    return Start([*options, "--"], settings, INSIDE)


def _process(resources: Resources) -> Start:
    readable = [path for path, _ in root()[0]]
    user = resources.user if all(_open_to_all(path) for path in _python() if os.path.exists(path)) else None
    return Start([], _settings(resources, isolated=False, user=user, readable=readable), str(BOX.parent))


def _open_to_all(path: str) -> bool:
    """Whether every user can reach a path."""
    return all(folder.stat().st_mode & 1 for folder in Path(path).parents)


def _program(name: str) -> Callable[[], str | None]:
    def missing() -> str | None:
        return None if shutil.which(name) else f"{name} is not installed"

    return missing


def _linux() -> str | None:
    return None if sys.platform == "linux" else f"this is {sys.platform}, not Linux"


LEVELS = (
    Level("nsjail", True, "namespaces and root made by nsjail", _program("nsjail"), _nsjail),
    Level("bubblewrap", True, "namespaces and root made by bubblewrap", _program("bwrap"), _bubblewrap),
    Level("namespaces", True, "namespaces and root made by this package", _linux, _own),
    Level("process", False, "no namespaces: a plain process with limits", _linux, _process),
)
"""All levels, the strongest first."""
