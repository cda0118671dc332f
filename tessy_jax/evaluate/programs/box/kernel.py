"""Kernel features that isolate a process: namespaces, a private root, capabilities, Landlock."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable, Sequence

_libc = ctypes.CDLL(None, use_errno=True)

NEWNS, NEWCGROUP, NEWUTS, NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEWUSER, NEWPID, NEWNET = 0x10000000, 0x20000000, 0x40000000
RDONLY, NOSUID, NODEV, REMOUNT, BIND, REC, PRIVATE = 1, 2, 4, 32, 4096, 16384, 1 << 18
DETACH = 2
PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
PDEATHSIG, DUMPABLE, CAPBSET_DROP, NO_NEW_PRIVS, SUBREAPER, SECUREBITS = 1, 4, 24, 38, 36, 28
CAPABILITIES = 64
NO_ROOT = 0x2F
"""Securebits: user 0 gets no capabilities, and a change of user keeps none; both locked."""
ABIS = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 5: 0xFFFF}
"""Landlock: all file rights that a version supports, by the first version that has them."""
READ, USE_FILE = 0x000D, 0xC007
"""Landlock rights: to execute, to read a file and to list a folder; all rights that apply to a file."""


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    """Moves this process into new namespaces; a new PID namespace applies to its children."""
    _checked(_libc.unshare(flags), "unshare")


def prctl(option: int, value: int) -> int:
    """Calls prctl(2). Returns its result, which is negative on failure."""
    return int(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """See mount(2)."""
    arguments = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _checked(_libc.mount(*arguments), f"mount {target}")


def bind(source: str, target: str) -> None:
    """Binds a file or folder to another path, read-only."""
    mount(source, target, "", BIND | REC)
    attributes = struct.pack("QQQQ", RDONLY | NOSUID | (0 if source.startswith("/dev/") else NODEV), 0, 0, 0)
    if _libc.syscall(442, -100, target.encode(), 0x8000, attributes, len(attributes)) < 0:  # before Linux 5.12
        kept = os.statvfs(target).f_flag & (NOSUID | NODEV | 8 | 1024 | 2048 | 4096)
        flags = (kept & 15) | (kept & (1024 | 2048)) | (1 << 21 if kept & 4096 else 0)
        mount("", target, "", BIND | REMOUNT | RDONLY | NOSUID | flags)


def enter_root(base: str, binds: Iterable[tuple[str, str]], links: Iterable[tuple[str, str]]) -> None:
    """Enters a new root that contains only the given paths. base: a folder to mount it on. binds: (source, target) of bound
    files and folders. links: (source, target) of symbolic links."""
    mount("", "/", "", REC | PRIVATE)
    mount("root", base, "tmpfs", NOSUID | NODEV, "mode=755,size=1m")
    for source, target in binds:
        place = base + target
        if os.path.isdir(source):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.close(os.open(place, os.O_CREAT | os.O_RDONLY))
        bind(source, place)
    for source, target in links:
        os.makedirs(os.path.dirname(base + target), exist_ok=True)
        os.symlink(source, base + target)
    os.makedirs(f"{base}/tmp", exist_ok=True)
    os.chdir(base)
    _checked(_libc.syscall(PIVOT_ROOT[os.uname().machine], b".", b"."), "pivot_root")
    _checked(_libc.umount2(b".", DETACH), "umount")
    os.chdir("/")
    mount("", "/", "", BIND | REMOUNT | RDONLY | NOSUID | NODEV)


def enter_user(user: int | None) -> None:
    """Moves into a user namespace in which this process is user 0. user: the id outside that becomes user 1000 inside; None
    if this process may not map other users."""
    own_user, own_group = os.geteuid(), os.getegid()
    process = os.getpid()
    if user is None:
        unshare(NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"0 {own_user} 1")
        _write("/proc/self/gid_map", f"0 {own_group} 1")
        return
    entered, done = os.pipe(), os.pipe()
    helper = os.fork()
    if helper == 0:  # only a process outside the namespace may map other users
        os.close(entered[1])
        os.read(entered[0], 1)
        _write(f"/proc/{process}/uid_map", f"0 {own_user} 1\n1000 {user} 1")
        _write(f"/proc/{process}/gid_map", f"0 {own_group} 1\n1000 {user} 1")
        os.write(done[1], b".")
        os._exit(0)
    os.close(done[1])
    unshare(NEWUSER)
    os.close(entered[1])
    written = os.read(done[0], 1)
    os.waitpid(helper, 0)
    for end in (entered[0], done[0]):
        os.close(end)
    if not written:
        raise OSError("uid_map cannot be written")


def _write(path: str, text: str) -> None:
    file = os.open(path, os.O_WRONLY)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


def drop(user: int | None) -> None:
    """Gives up all privileges irrevocably. user: the user to change to; None keeps it."""
    for capability in range(CAPABILITIES):
        if prctl(CAPBSET_DROP, capability) < 0:
            break
    prctl(SECUREBITS, NO_ROOT)
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _checked(_libc.capset(struct.pack("Ii", 0x20080522, 0), bytes(24)), "capset")
    _checked(prctl(NO_NEW_PRIVS, 1), "no_new_privs")


def landlock_version() -> int:
    """The version of Landlock; 0 if the kernel has none."""
    return max(0, int(_libc.syscall(444, None, ctypes.c_size_t(0), 1)))


def landlock(readable: Sequence[str], writable: Sequence[str]) -> None:
    """Restricts this process irrevocably to these folders and files, without TCP and without signals to other processes, as
    far as the version supports it. Does nothing if the kernel has no Landlock."""
    version = landlock_version()
    if not version:
        return
    rights = ABIS[max(abi for abi in ABIS if abi <= version)]
    sizes = 8 if version < 4 else 16 if version < 6 else 24
    attributes = struct.pack("QQQ", rights, 3, 3)[:sizes]
    rules = _checked(_libc.syscall(444, attributes, ctypes.c_size_t(sizes), 0), "landlock")
    for path in (*readable, *writable):
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        allowed = rights if path in writable else READ & rights
        if not os.path.isdir(path):
            allowed &= USE_FILE
        rule = struct.pack("=Qi", allowed, place)
        _checked(_libc.syscall(445, rules, 1, rule, 0), f"landlock {path}")
        os.close(place)
    _checked(_libc.syscall(446, rules, 0), "landlock")
    os.close(rules)
