"""The sandbox: runs programs and returns their outcomes. Each program runs in a fork server; a server runs one program at a
time, and several servers run in parallel."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import tempfile
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, Self

from tessy_jax.errors import ConfigError
from tessy_jax.evaluate.programs import cgroups
from tessy_jax.evaluate.programs.levels import ENVIRONMENT, LEVELS, PROCESSES, Level, Resources, command

Ended = Literal["exited", "killed", "timeout", "output", "memory"]
STARTING, LATE = 30.0, 60.0
"""Maximum time in seconds for a server to start, and for a reply after a program's wall-clock limit."""
MANY_USERS, FEW_USERS = 1_000_000_000, 60_000
"""The first user id for programs: if the user namespace maps that many, and if it maps 65,536."""
_numbers = itertools.count()


@dataclass(frozen=True)
class Limits:
    """Limits of a program. cpu, wall: seconds. memory: bytes. output: bytes of standard output; a longer output ends the
    program. files: bytes of all its files."""

    cpu: float
    wall: float
    memory: int
    output: int
    files: int = 64 << 20


@dataclass(frozen=True)
class Outcome:
    """The outcome of a program. ended: it exited, a signal killed it, or the limit that it exceeded. code: exit code, or the
    negative signal. cpu, wall: seconds. errors: the end of its standard error."""

    ended: Ended
    code: int
    cpu: float
    wall: float
    errors: str
    output: bytes


def processors() -> int:
    """The number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ServerError(Exception):
    """A fork server failed; the message is its last line of standard error, if it wrote any."""


class Sandbox:
    """Runs programs; a context manager.

    memory: limit in bytes for a build and all its processes, if control groups are available; a program has its own limit.
    workers: maximum number of programs at the same time. unsafe: whether the weakest level may be used. level: the name of
    a level; None uses the strongest one that works.

    Raises:
        ConfigError: no level works, or only the weakest one, and `unsafe` is false.
    """

    def __init__(self, memory: int, workers: int, *, unsafe: bool = False, level: str | None = None) -> None:
        self.memory = memory
        self._free = threading.Semaphore(workers)
        self._idle: list[_Server] = []
        self._lock = threading.Lock()
        self._closed = False
        reasons = []
        for candidate in LEVELS:
            if level is not None and candidate.name != level:
                continue
            reason = candidate.missing()
            if reason is None and not candidate.isolated and not unsafe:
                reason = "needs programs.unsafe or --unsafe"
            if reason is None:
                try:
                    self._first = _tested_server(candidate, memory)
                except ServerError as error:
                    reason = str(error)
                else:
                    self._idle.append(self._first)
                    self.level = candidate
                    return
            reasons.append(f"{candidate.name}: {reason}")
        raise ConfigError(
            f"programs: no sandbox is available to run them ({'; '.join(reasons)}); install bubblewrap, allow user "
            "namespaces (sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone), or run in a container that "
            "may make them; on a machine that holds nothing of value, set programs.unsafe of the task, or give --unsafe"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        with self._lock:
            servers, self._idle = self._idle, []
        for server in servers:
            server.close()

    @property
    def describes(self) -> str:
        """The level in use, in words."""
        server = self._first
        parts = [self.level.description, "seccomp on"]
        risk = "" if self.level.isolated else ", so that programs can read readable files, including expected outputs"
        parts.append(f"Landlock {server.landlock}" if server.landlock else f"Landlock missing{risk}")
        parts.append("control groups" if server.group else "no control groups")
        if not server.threads:
            parts.append("no threads, because their number cannot be limited")
        return f"{self.level.name} ({', '.join(parts)})"

    def run(
        self,
        program: bytes,
        given: bytes,
        limits: Limits,
        *,
        native: bool = False,
        task: dict[str, Any] | None = None,
        names: bool = False,
        compat: bool = False,
        build: bool = False,
    ) -> Outcome:
        """Runs a program. given: its standard input. native: the program is an executable, otherwise Python source. task,
        names, compat: see `box.server.Server`. build: the program is a trusted build, which may write files and start
        processes.

        Raises:
            ServerError: two servers in a row failed to run it.
        """
        kind = "native" if native else "python"
        request = _request(limits, kind=kind, task=task or {}, names=names, compat=compat, build=build)
        with self._free:
            for attempt in (1, 2):
                with self._lock:
                    server = self._idle.pop() if self._idle and attempt == 1 else None
                try:
                    server = server or _Server(self.level, self.memory)
                    outcome = server.run(request, program, given)
                except ServerError:
                    if server is not None:
                        server.close()
                    if attempt == 2:
                        raise
                else:
                    with self._lock:
                        if not self._closed:
                            self._idle.append(server)
                            return outcome
                    server.close()
                    return outcome
        raise AssertionError("unreachable")


class _Server:
    """A fork server with its control group and scratch folder."""

    def __init__(self, level: Level, memory: int) -> None:
        number = next(_numbers)
        self.group = cgroups.new_group(memory, PROCESSES)
        self.scratch = "" if level.isolated else tempfile.mkdtemp(prefix="tessy-programs-")
        self.stderr = tempfile.TemporaryFile()  # noqa: SIM115
        joins = [] if self.group is None else self.group.joins
        kills = None if self.group is None else self.group.kills
        counted = self.group is not None and self.group.counts_processes
        start = level.start(Resources(_user(number), joins, kills, counted, self.scratch))
        if not level.isolated and start.settings["user"] is not None:
            os.chown(self.scratch, start.settings["user"], -1)
        try:
            self.process = subprocess.Popen(
                command(start),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.stderr,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=(*joins, *([] if kills is None else [kills])),
                start_new_session=True,
            )
        except OSError as error:
            self._release()
            raise ServerError(str(error)) from None
        try:
            ready = self._reply(STARTING)
        except ServerError:
            self.close()
            raise
        self.landlock, self.threads = int(ready["landlock"]), bool(start.settings["threads"])
        if not ready["seccomp"]:
            self.close()
            raise ServerError("the kernel has no seccomp filters; use x86_64 or aarch64, with CONFIG_SECCOMP_FILTER")

    def run(self, request: dict[str, Any], program: bytes, given: bytes) -> Outcome:
        """See `Sandbox.run`."""
        assert self.process.stdin is not None
        header = {**request, "program": len(program), "input": len(given)}
        try:
            self.process.stdin.write(json.dumps(header).encode() + b"\n" + program + given)
            self.process.stdin.flush()
        except OSError:
            raise ServerError(self._failure()) from None
        reply = self._reply(request["wall"] + LATE)
        output = self._pipe.read(reply["output"])
        if len(output) < reply["output"]:
            raise ServerError(self._failure())
        if request["build"] and self.scratch:
            for entry in Path(self.scratch).iterdir():
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        return Outcome(output=output, **{name: reply[name] for name in ("ended", "code", "cpu", "wall", "errors")})

    def close(self) -> None:
        """Ends the server and all its processes."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._release()

    def _release(self) -> None:
        self.stderr.close()
        if self.scratch:
            shutil.rmtree(self.scratch, ignore_errors=True)
        if self.group is not None:
            self.group.close()

    @property
    def _pipe(self) -> IO[bytes]:
        assert self.process.stdout is not None
        return self.process.stdout

    def _reply(self, seconds: float) -> dict[str, Any]:
        if not select.select([self._pipe], [], [], seconds)[0]:
            raise ServerError(f"a fork server did not reply within {seconds:.0f} s")
        line = self._pipe.readline()
        if not line:
            raise ServerError(self._failure())
        return dict(json.loads(line))

    def _failure(self) -> str:
        """The reason why the server ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        self.stderr.seek(0)
        lines = self.stderr.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"a fork server ended with {self.process.returncode}"


def _tested_server(level: Level, memory: int) -> _Server:
    """Starts a server and runs a small program in it.

    Raises:
        ServerError: the server does not start, or the program does not give its output.
    """
    server = _Server(level, memory)
    limits = Limits(cpu=10.0, wall=STARTING, memory=memory, output=100)
    try:
        outcome = server.run(_request(limits), b"print(input())", b"works")
        if outcome.output != b"works\n":
            raise ServerError(f"a test program failed ({outcome})")
    except ServerError:
        server.close()
        raise
    return server


def _request(limits: Limits, **more: Any) -> dict[str, Any]:
    """A request with default values; see `box.server.Server`."""
    return {"kind": "python", "task": {}, "names": False, "compat": False, "build": False, **asdict(limits), **more}


def _user(number: int) -> int | None:
    """A user id for the programs of one server; None if this process cannot change its user."""
    if os.geteuid() != 0:
        return None
    try:
        ids = [int(line.split()[0]) + int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return None
    if max(ids, default=0) > 2 * MANY_USERS:
        return MANY_USERS + (os.getpid() % (1 << 19)) * 1024 + number % 1024
    return FEW_USERS + number % 5000
