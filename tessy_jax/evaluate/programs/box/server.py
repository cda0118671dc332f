"""The fork server: starts every program in a separate, isolated process, and ends it at its limits.

A request arrives on standard input: a line of JSON, followed by the bytes of the program and of its input; see `Server`. A
reply goes to standard output: a line of JSON, followed by the bytes of the program's output.

With namespaces, each program has its own PID namespace. It can neither see nor signal other processes, and the kernel ends
all its processes when the first process of the namespace ends. It also has its own mounts, with a private /tmp. The tree:

    server ── first process of the namespace (waits; the program cannot reach it) ── program ── its processes

Without namespaces, seccomp keeps a program from writing files. In both cases it keeps a program from starting processes, so
that the processor time of one process is its total; a trusted build may start processes.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import resource
import select
import shutil
import signal
import stat
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from . import kernel, runner
from .seccomp import Filter

STDERR = 4096
"""Number of bytes kept of the end of standard error."""
PIECE = 1 << 16
FILES, OPEN_FILES = 4096, 128
GRACE = 0.02
FAILED = 3
"""Descriptor for errors before a program starts."""


@dataclass
class Watched:
    """A running program. ended: a pidfd, readable after its end. output, errors: its standard output and error. report:
    gives its wait status. failed: gives errors before its start. These are descriptors; out, err: the bytes read so far."""

    pid: int
    ended: int
    output: int
    errors: int
    report: int
    failed: int
    out: bytearray = field(default_factory=bytearray)
    err: bytearray = field(default_factory=bytearray)


class Server:
    """Runs programs, one per request.

    settings: {"namespaces": whether each program has its own; "root": arguments of `kernel.enter_root`, or null for the
    current root; "outside": the user id of programs outside the namespace, or null; "user": the user id that a program
    changes to, or null; "processes": maximum number of processes and threads of that user, or null if other processes have
    the same user; "threads": whether programs may start threads; "cgroups", "kills": descriptors, see `cgroups.Group`;
    "readable": folders; "scratch": a folder for builds, or empty}.

    A request: {"kind": "python" or "native"; "program", "input": sizes in bytes; "task": see `runner.run`; "names": whether
    the program gets `runner.names`; "compat": see `runner.run`; "build": whether it is a trusted build; "cpu", "wall":
    seconds; "memory", "output", "files": bytes}.
    A reply: {"ended": "exited", "killed", "timeout", "output" or "memory"; "code": exit code or negative signal; "cpu",
    "wall": seconds; "errors": text; "output": size in bytes}.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.names = runner.names()
        self.failed = -1
        self.requests, self.replies = os.dup(0), os.dup(1)
        for file in (self.requests, self.replies):
            os.set_inheritable(file, False)
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1):
            os.dup2(nothing, number)
        kernel.prctl(kernel.SUBREAPER, 1)
        self.seccomp = _has_seccomp()

    def serve(self) -> None:
        """Replies to requests until its input ends."""
        gc.freeze()
        self._reply({"ready": True, "seccomp": self.seccomp, "landlock": kernel.landlock_version()})
        with os.fdopen(self.requests, "rb", closefd=False) as requests:
            for line in requests:
                request = json.loads(line)
                program, given = requests.read(request["program"]), requests.read(request["input"])
                watched = self._start(request, program, given)
                del program, given
                self._finish(request, watched)
        self._leave()

    def _leave(self) -> NoReturn:
        """Removes the scratch folder and ends this process."""
        if self.settings["scratch"]:
            shutil.rmtree(self.settings["scratch"], ignore_errors=True)
        os._exit(0)

    def _start(self, request: dict[str, Any], program: bytes, given: bytes) -> Watched:
        source = _memory_file("input", given)
        output, errors, report, born, failed = (os.pipe() for _ in range(5))
        inside = (source, output[1], errors[1])
        self.failed = failed[1]
        child = os.fork()
        if child == 0:
            with self._exits():
                if self.settings["namespaces"]:
                    self._first_process(request, program, inside, report[1], born[1])
                self._program(request, program, inside)
        for file in (*inside, report[1], born[1], failed[1]):
            os.close(file)
        if self.settings["namespaces"]:
            os.waitpid(child, 0)
            data = os.read(born[0], 4)
            if len(data) < 4:
                raise OSError(f"no process can be made: {os.read(failed[0], STDERR).decode(errors='replace')}")
            (child,) = struct.unpack("i", data)
        os.close(born[0])
        return Watched(child, os.pidfd_open(child), output[0], errors[0], report[0], failed[0])

    def _first_process(
        self, request: dict[str, Any], program: bytes, inside: tuple[int, ...], report: int, born: int
    ) -> NoReturn:
        """In an intermediate process: makes the namespace and its first process, and writes that process's id to `born`."""
        kernel.unshare(kernel.NEWPID | kernel.NEWNS)
        first = os.fork()
        if first:
            os.write(born, struct.pack("i", first))
            os._exit(0)
        owner = self.settings["user"]
        owner_options = "" if owner is None else f",uid={owner},gid={owner}"
        options = f"mode=700,size={request['files']},nr_inodes={FILES}{owner_options}"
        kernel.mount("tmp", "/tmp", "tmpfs", kernel.NOSUID | kernel.NODEV, options)
        self._join()
        child = os.fork()
        if child == 0:
            with self._exits():
                self._program(request, program, inside)
        for file in (*inside, born, self.failed):
            os.close(file)
        while True:
            pid, status = os.wait()
            if pid == child:
                os.write(report, struct.pack("i", status))
                os._exit(0)

    def _join(self) -> None:
        for group in self.settings["cgroups"]:
            os.write(group, b"0")

    def _program(self, request: dict[str, Any], program: bytes, inside: tuple[int, ...]) -> NoReturn:
        """In the program's process: gives up privileges and runs the program."""
        isolated, native, build = self.settings["namespaces"], request["kind"] == "native", request["build"]
        if not isolated:
            self._join()
        os.setsid()
        _only_files(*inside, self.failed, *([_memory_file("program", program)] if native else []))
        self.failed = FAILED
        os.chdir("/tmp" if isolated else (self.settings["scratch"] if build else "/"))
        _limits(request, self.settings["processes"])
        kernel.drop(self.settings["user"])
        writable = ["/tmp"] if isolated else [self.settings["scratch"]] if build else []
        kernel.landlock(self.settings["readable"], [*writable, os.devnull])
        nothing = os.open(os.devnull, os.O_WRONLY)
        if native:
            for number in (signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.SIG_DFL)
        read_only, threads = not isolated and not build, self.settings["threads"]
        Filter(single=not build, read_only=read_only, threads=threads, pid=os.getpid()).install()
        if native:
            if not os.fstat(FAILED + 1).st_mode & stat.S_IXUSR:
                raise OSError("files in memory cannot be executed; set sysctl vm.memfd_noexec to 0")
            try:
                os.execve(FAILED + 1, ["program"], {"PATH": "/usr/bin:/bin", "HOME": "/tmp"})
            except OSError as error:  # an invalid executable is a fault of the program
                os.write(2, f"{error}\n".encode())
                os._exit(126)
        given = self.names if request["names"] else {}
        source = program.decode("utf-8", "surrogateescape")
        runner.run(source, request["task"], given, nothing, self._begin, compat=request["compat"])

    def _begin(self) -> None:
        """Closes the descriptor for errors: from here on, errors are the program's."""
        os.close(FAILED)
        self.failed = -1

    @contextlib.contextmanager
    def _exits(self) -> Iterator[None]:
        """Ends a process of a program, so that it never continues as the server. Reports an error before the program's
        start."""
        try:
            yield
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(self.failed, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(1)

    def _finish(self, request: dict[str, Any], watched: Watched) -> None:
        """Waits for the end of a program, or ends it, and replies."""
        killed = self._killed()
        started = time.monotonic()
        why = self._watch(request, watched, started + request["wall"])
        wall = time.monotonic() - started
        self._end(watched.pid, request["build"])
        used = self._reaped(watched.pid)
        if why is None:  # all processes that could write have ended
            why = self._rest(watched, request["output"])
        status: int | None = used[0]
        if self.settings["namespaces"]:
            data = os.read(watched.report, 4)
            status = struct.unpack("i", data)[0] if len(data) == 4 else None
        error = os.read(watched.failed, STDERR).decode("utf-8", "replace")
        for file in (watched.ended, watched.output, watched.errors, watched.report, watched.failed):
            os.close(file)
        if error:
            raise OSError(f"a program cannot be started: {error}")
        cpu = used[1].ru_utime + used[1].ru_stime
        code = -signal.SIGKILL if status is None else os.waitstatus_to_exitcode(status)
        if self._killed() > killed:
            why = "memory"
        elif why is None and (cpu > request["cpu"] or code == -signal.SIGXCPU):
            why = "timeout"
        ended = why or ("exited" if code >= 0 else "killed")
        reply = {"ended": ended, "code": code, "cpu": cpu, "wall": wall, "errors": watched.err.decode("utf-8", "replace")}
        self._reply(reply | {"output": len(watched.out)}, bytes(watched.out))

    def _watch(self, request: dict[str, Any], watched: Watched, deadline: float) -> str | None:
        """Waits until a program has ended or exceeds a limit. Returns that limit, or None."""
        poll = select.poll()
        for file in (watched.ended, watched.output, watched.errors):
            poll.register(file, select.POLLIN)
        poll.register(self.requests, select.POLLHUP)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            for file, _ in poll.poll(left * 1000 + 1):
                if file == self.requests:
                    self._end(watched.pid, request["build"])  # the client has ended
                    self._leave()
                if file == watched.ended:
                    return None
                data = os.read(file, PIECE)
                if not data:
                    poll.unregister(file)
                elif _kept(watched, file, data, request["output"]):
                    return "output"

    def _rest(self, watched: Watched, max_output: int) -> str | None:
        """Reads the remaining output of a program that has ended. Returns "output" if it exceeds the limit."""
        for file in (watched.output, watched.errors):
            os.set_blocking(file, False)
            with contextlib.suppress(BlockingIOError):
                while data := os.read(file, PIECE):
                    if _kept(watched, file, data, max_output):
                        return "output"
        return None

    def _end(self, pid: int, build: bool) -> None:
        """Ends a program and all its processes."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if self.settings["namespaces"] or not build:
            return
        while others := _descendants(os.getpid()) - {pid}:
            for other in others:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(other, signal.SIGKILL)
            time.sleep(GRACE)
            for other in others:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(other, os.WNOHANG)

    def _reaped(self, pid: int) -> tuple[int, resource.struct_rusage]:
        _, status, used = os.wait4(pid, 0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        return status, used

    def _killed(self) -> int:
        """The number of processes killed for memory so far."""
        if self.settings["kills"] is None:
            return 0
        lines = os.pread(self.settings["kills"], 4096, 0).decode().splitlines()
        return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)

    def _reply(self, reply: dict[str, Any], output: bytes = b"") -> None:
        rest = memoryview(json.dumps(reply).encode() + b"\n" + output)
        while rest:
            rest = rest[os.write(self.replies, rest) :]


def _kept(watched: Watched, file: int, data: bytes, max_output: int) -> bool:
    """Keeps output of a program. Returns whether it exceeds the limit."""
    if file == watched.errors:
        watched.err = (watched.err + data)[-STDERR:]
        return False
    watched.out += data
    too_much = len(watched.out) > max_output
    del watched.out[max_output:]
    return too_much


def _memory_file(name: str, content: bytes) -> int:
    """A file in memory with this content, positioned at its start."""
    file = os.memfd_create(name)
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
    os.lseek(file, 0, os.SEEK_SET)
    return file


def _only_files(*files: int) -> None:
    """Keeps only these files, as descriptors 0, 1, …; those from 3 on are closed on exec."""
    for number, file in enumerate([os.dup(file) for file in files]):
        os.dup2(file, number, inheritable=number < FAILED)
    os.closerange(len(files), 1 << 16)


def _limits(request: dict[str, Any], processes: int | None) -> None:
    memory = request["memory"]
    cpu = math.ceil(request["cpu"])
    limits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: (memory, memory),
        resource.RLIMIT_FSIZE: (request["files"], request["files"]),
        resource.RLIMIT_STACK: (resource.RLIM_INFINITY,) * 2,  # memory limits it; threads then have the usual size
        resource.RLIMIT_NOFILE: (OPEN_FILES, OPEN_FILES),
        resource.RLIMIT_CORE: (0, 0),
        resource.RLIMIT_MSGQUEUE: (0, 0),
    }
    if processes is not None:
        limits[resource.RLIMIT_NPROC] = (processes, processes)
    for limit, (soft, hard) in limits.items():
        current = resource.getrlimit(limit)[1]
        bounded = [current if value == resource.RLIM_INFINITY else min(value, current) for value in (soft, hard)]
        resource.setrlimit(limit, (soft, hard) if current == resource.RLIM_INFINITY else (bounded[0], bounded[1]))


def _descendants(pid: int) -> set[int]:
    """The ids of all descendants of a process, from /proc."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    descendants: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in descendants | {pid}} - descendants:
        descendants |= more
    return descendants


def _has_seccomp() -> bool:
    """Whether the kernel has seccomp filters. Tries one in a child process."""
    child = os.fork()
    if child == 0:
        try:
            kernel.prctl(kernel.NO_NEW_PRIVS, 1)
            Filter(single=True, read_only=True).install()
        except (OSError, KeyError):
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def main(settings: dict[str, Any]) -> None:
    """Enters the root of the settings, if any, and serves."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        sys.exit("the fork server is started by the evaluation of programs; see `tessy evaluate --help`")
    if settings["root"] is not None:
        _enter(settings)
    kernel.prctl(kernel.DUMPABLE, 0)
    Server(settings).serve()


def _enter(settings: dict[str, Any]) -> None:
    """Continues as the first process of new namespaces, with a private root."""
    kernel.enter_user(settings["outside"])
    kernel.unshare(kernel.NEWNS | kernel.NEWNET | kernel.NEWIPC | kernel.NEWUTS | kernel.NEWPID | kernel.NEWCGROUP)
    child = os.fork()
    if child:
        for file in (0, 1):
            os.close(file)
        os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 255)
    kernel.prctl(kernel.PDEATHSIG, signal.SIGKILL)
    kernel.enter_root(**settings["root"])
