"""The sandbox as the rest sees it: programs go in, and what became of them comes out. Several run at once, each by a fork
server of its own; a server runs one after another."""

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
from tessy_jax.evaluate.programs.levels import ENVIRONMENT, LEVELS, PROCESSES, Level, Place, command

Ended = Literal["exited", "killed", "timeout", "output", "memory"]
STARTING, LATE = 30.0, 60.0
"""Seconds in which a server is there; that it may be late with a reply."""
MANY_USERS, FEW_USERS = 1_000_000_000, 60_000
"""The first user that programs are, where there are as many as that, and where there are 65,536."""
_numbers = itertools.count()


@dataclass(frozen=True)
class Limits:
    """cpu, wall: seconds. memory, output, files: bytes; of output at most so many are looked at, and all files together are
    no larger."""

    cpu: float
    wall: float
    memory: int
    output: int
    files: int = 64 << 20


@dataclass(frozen=True)
class Outcome:
    """What became of a program. ended: by itself (exited), by a signal (killed), or for a limit. code: exit code, or the
    negative signal. errors: the end of its standard error."""

    ended: Ended
    code: int
    cpu: float
    wall: float
    errors: str
    output: bytes


def processors() -> int:
    """How many of the machine's this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class ServerError(Exception):
    """A fork server that does not do its work: what it said."""


class Sandbox:
    """Runs programs; a context manager. level: the strongest that there is, or that of this name.

    memory: bytes that a build and all that it starts may have together, where control groups can be had; a program has no
    more than its own limit. workers: programs at once. unsafe: whether the weakest level will do.

    Raises:
        ConfigError: there is no level, or none but the weakest; names the remedy.
    """

    def __init__(self, memory: int, workers: int, *, unsafe: bool = False, level: str | None = None) -> None:
        self.memory = memory
        self._free = threading.Semaphore(workers)
        self._idle: list[_Server] = []
        self._lock = threading.Lock()
        self._closed = False
        reasons = []
        for one in LEVELS:
            if level is not None and one.name != level:
                continue
            why = one.missing()
            if why is None and not one.apart and not unsafe:
                why = "is refused unless it is asked for"
            if why is None:
                try:
                    self._first = _proven(one, memory)
                except ServerError as error:
                    why = str(error)
                else:
                    self._idle.append(self._first)
                    self.level = one
                    return
            reasons.append(f"{one.name}: {why}")
        raise ConfigError(
            f"programs: there is no sandbox here to run them in ({'; '.join(reasons)}); install bubblewrap, allow user "
            "namespaces (sysctl user.max_user_namespaces and kernel.unprivileged_userns_clone), or run in a container that "
            "may make them; in a machine that holds nothing of value, set programs.unsafe of the task, or give --unsafe"
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
        known = self._first
        parts = [self.level.says, "seccomp on"]
        seen = "" if self.level.apart else ", so that programs can read what files they find, expected outputs among them"
        parts.append(f"Landlock {known.landlock}" if known.landlock else f"Landlock missing{seen}")
        parts.append("control groups" if known.group else "no control groups")
        if not known.threads:
            parts.append("no threads, which nothing would limit")
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
        build: bool = False,
    ) -> Outcome:
        """Runs one program. native: it is an executable, and else Python. task, names: see `box.runner.run`. build: it is
        ours, and may write files where no other may.

        Raises:
            ServerError: it could not be run, though a second server was asked, too.
        """
        kind = "native" if native else "python"
        request = _request(limits, kind=kind, task=task or {}, names=names, build=build)
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
    """A fork server, and what was made for it."""

    def __init__(self, level: Level, memory: int) -> None:
        number = next(_numbers)
        self.group = cgroups.made(memory, PROCESSES)
        self.scratch = "" if level.apart else tempfile.mkdtemp(prefix="tessy-programs-")
        self.words = tempfile.TemporaryFile()  # noqa: SIM115
        joins = [] if self.group is None else self.group.joins
        kills = None if self.group is None else self.group.kills
        counted = self.group is not None and self.group.counts_processes
        start = level.start(Place(_user(number), joins, kills, counted, self.scratch))
        if not level.apart and start.settings["user"] is not None:
            os.chown(self.scratch, start.settings["user"], -1)
        try:
            self.process = subprocess.Popen(
                command(start),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.words,
                env=ENVIRONMENT,
                cwd="/",
                pass_fds=(*joins, *([] if kills is None else [kills])),
                start_new_session=True,
            )
        except OSError as error:
            self._tidy()
            raise ServerError(str(error)) from None
        try:
            ready = self._reply(STARTING)
        except ServerError:
            self.close()
            raise
        self.landlock, self.threads = int(ready["landlock"]), bool(start.settings["threads"])
        if not ready["seccomp"]:
            self.close()
            raise ServerError("there are no seccomp filters; use x86_64 or aarch64, and a kernel with CONFIG_SECCOMP_FILTER")

    def run(self, request: dict[str, Any], program: bytes, given: bytes) -> Outcome:
        """See `Sandbox.run`."""
        assert self.process.stdin is not None
        header = {**request, "program": len(program), "input": len(given)}
        try:
            self.process.stdin.write(json.dumps(header).encode() + b"\n" + program + given)
            self.process.stdin.flush()
        except OSError:
            raise ServerError(self._said()) from None
        reply = self._reply(request["wall"] + LATE)
        output = self._pipe.read(reply["output"])
        if len(output) < reply["output"]:
            raise ServerError(self._said())
        if request["build"] and self.scratch:
            for left in Path(self.scratch).iterdir():
                shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
        return Outcome(output=output, **{name: reply[name] for name in ("ended", "code", "cpu", "wall", "errors")})

    def close(self) -> None:
        """Ends it and all that it started."""
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._tidy()

    def _tidy(self) -> None:
        self.words.close()
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
            raise ServerError(f"a fork server said nothing for {seconds:.0f} s")
        line = self._pipe.readline()
        if not line:
            raise ServerError(self._said())
        return dict(json.loads(line))

    def _said(self) -> str:
        """Why it ended."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)
        self.words.seek(0)
        lines = self.words.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else f"a fork server ended with {self.process.returncode}"


def _proven(level: Level, memory: int) -> _Server:
    """A server of a level that runs programs: tried with one."""
    server = _Server(level, memory)
    limits = Limits(cpu=10.0, wall=STARTING, memory=memory, output=100)
    try:
        outcome = server.run(_request(limits), b"print(input())", b"works")
        if outcome.output != b"works\n":
            raise ServerError(f"a program that should work does not ({outcome})")
    except ServerError:
        server.close()
        raise
    return server


def _request(limits: Limits, **more: Any) -> dict[str, Any]:
    """See `box.server.Server`."""
    return {"kind": "python", "task": {}, "names": False, "build": False, **asdict(limits), **more}


def _user(number: int) -> int | None:
    """A user that nobody else is, for the programs of a server; None where this process cannot become another."""
    if os.geteuid() != 0:
        return None
    try:
        ids = [int(line.split()[0]) + int(line.split()[2]) for line in Path("/proc/self/uid_map").read_text().splitlines()]
    except OSError:
        return None
    if max(ids, default=0) > 2 * MANY_USERS:
        return MANY_USERS + (os.getpid() % (1 << 19)) * 1024 + number % 1024
    return FEW_USERS + number % 5000
