"""The levels of the sandbox: how a fork server is started at each, what each keeps away, and which there are here."""

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
"""Where the folder of the fork server is in a root that others make."""
PROCESSES = 64
"""Threads that a program may have at once; processes and threads of a build."""
CAPABILITIES = ("CAP_SYS_ADMIN", "CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP")
DEVICES = ("null", "zero", "full", "random", "urandom")
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "HOME": "/tmp"}


class Place(NamedTuple):
    """What a server is started with. user: outside, of its own; None where this process may not become others. groups:
    descriptors of its cgroups' files; kills: that of the file that counts; see `box.server.Server`. counted: whether these
    limit memory and processes. scratch: a folder for builds, where programs have no mounts of their own."""

    user: int | None
    groups: list[int]
    kills: int | None
    counted: bool
    scratch: str


class Start(NamedTuple):
    """command: without the interpreter's part. settings: see `box.server.Server`. box: where the server's files are."""

    command: list[str]
    settings: dict[str, Any]
    box: str


@dataclass(frozen=True)
class Level:
    """A way to keep programs apart. apart: in namespaces of their own. missing: why it cannot be had; None if it may."""

    name: str
    apart: bool
    says: str
    missing: Callable[[], str | None]
    start: Callable[[Place], Start]


def command(start: Start) -> list[str]:
    """What starts a fork server."""
    code = (
        f"import sys, json; sys.path.insert(0, {start.box!r}); from box.server import main; sys.path.pop(0); "
        f"main(json.loads({json.dumps(start.settings)!r}))"
    )
    return [*start.command, interpreter(), "-S", "-s", "-P", "-B", "-c", code]


def interpreter() -> str:
    """The Python that programs run in: that of this process, without its packages."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def root() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What a program's root holds, all to be read only: files and folders with their places, and links with theirs."""
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


def _settings(place: Place, *, apart: bool, user: int | None, **more: Any) -> dict[str, Any]:
    counts = user is not None or (apart and _counts_by_namespace())
    return {
        "namespaces": apart,
        "root": None,
        "outside": None,
        "user": user,
        "processes": PROCESSES if counts else None,
        "threads": counts or place.counted,
        "cgroups": place.groups,
        "kills": place.kills,
        "readable": ["/"],
        "scratch": place.scratch,
        **more,
    }


def _counts_by_namespace() -> bool:
    """Whether a limit of processes is for those of a user in one user namespace, rather than for all that the user has."""
    return tuple(int(part) for part in re.findall("[0-9]+", os.uname().release)[:2]) >= (5, 14)


def _own(place: Place) -> Start:
    binds, links = root()
    built = {"base": "/tmp", "binds": binds, "links": links}
    user = None if place.user is None else 1000
    settings = _settings(place, apart=True, user=user, root=built, outside=place.user)
    return Start([], settings, str(BOX.parent))


def _bubblewrap(place: Place) -> Start:
    binds, links = root()
    # not --die-with-parent: that is the end of the thread that started it, which is too early
    options = [shutil.which("bwrap") or "bwrap", "--new-session", "--unshare-ipc", "--unshare-pid", "--unshare-net"]
    options += ["--unshare-uts", "--unshare-cgroup-try"]
    if place.user is None:
        options += ["--unshare-user", "--uid", "0", "--gid", "0"]
    for name in CAPABILITIES:
        options += ["--cap-add", name]
    shown = [*binds, (str(BOX), f"{INSIDE}/box")]
    for folder in dict.fromkeys(str(folder) for _, target in shown for folder in reversed(Path(target).parents)):
        options += ["--dir", folder]  # else none but user 0 could look into it
    for source, target in shown:
        options += ["--dev-bind" if target.startswith("/dev/") else "--ro-bind", source, target]
    for says, target in links:
        options += ["--symlink", says, target]
    options += ["--dir", "/tmp", "--remount-ro", "/", "--"]
    return Start(options, _settings(place, apart=True, user=place.user), INSIDE)


def _nsjail(place: Place) -> Start:
    binds, links = root()
    options = [shutil.which("nsjail") or "nsjail", "-Mo", "-Q", "--keep_env", "--keep_caps", "--disable_proc"]
    options += ["--disable_rlimits", "-t", "0", "--cwd", "/", "-T", "/tmp"]
    options += ["--nice_level", str(os.getpriority(os.PRIO_PROCESS, 0))]  # its own is the lowest there is
    for file in (*place.groups, *([] if place.kills is None else [place.kills])):
        options += ["--pass_fd", str(file)]
    options += ["-u", f"0:{os.geteuid()}:1", "-g", f"0:{os.getegid()}:1"]
    if place.user is not None:
        options += ["-u", f"1000:{place.user}:1", "-g", f"1000:{place.user}:1"]
    for source, target in [*binds, (str(BOX), f"{INSIDE}/box")]:
        options += ["-B" if target.startswith("/dev/") else "-R", f"{source}:{target}"]
    for says, target in links:
        options += ["-s", f"{says}:{target}"]
    settings = _settings(place, apart=True, user=None if place.user is None else 1000)
    return Start([*options, "--"], settings, INSIDE)


def _process(place: Place) -> Start:
    readable = [path for path, _ in root()[0]]
    user = place.user if all(_open_to_all(path) for path in _python() if os.path.exists(path)) else None
    return Start([], _settings(place, apart=False, user=user, readable=readable), str(BOX.parent))


def _open_to_all(path: str) -> bool:
    """Whether every user can reach it."""
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
"""The strongest first."""
