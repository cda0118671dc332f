"""The sandbox uses and reports the strongest level that works, and the weakest one only if it is allowed; control groups of
both versions work."""

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

import tessy_jax
from tessy_jax.arguments import parser
from tessy_jax.cli import task_kinds
from tessy_jax.config.evaluation import Task
from tessy_jax.config.programs import Programs
from tessy_jax.errors import ConfigError
from tessy_jax.evaluate.programs import cgroups, pool, verifier
from tessy_jax.evaluate.programs.box.seccomp import ARCHITECTURES, Filter
from tessy_jax.evaluate.programs.levels import LEVELS, Level, Start
from tessy_jax.evaluate.programs.pool import Sandbox
from tessy_jax.evaluate.programs.verifier import task_kind
from tests.evaluate.programs.conftest import MEMORY, SHORT, both_servers_work

ROW = {"prompt": "p", "tests": [{"input": "", "output": ""}]}


def only(monkeypatch, *names):
    monkeypatch.setattr(pool, "LEVELS", tuple(level for level in LEVELS if level.name in names))


def test_some_level_works_on_every_machine_that_runs_these_tests():
    with Sandbox(MEMORY, 1, unsafe=True) as opened:
        assert opened.level in LEVELS
        assert opened.describes.startswith(f"{opened.level.name} (")


def test_the_strongest_level_that_works_is_used(monkeypatch):
    working = []
    for level in LEVELS:
        try:
            Sandbox(MEMORY, 1, unsafe=True, level=level.name).__exit__()
            working.append(level.name)
        except ConfigError:
            continue
    with Sandbox(MEMORY, 1, unsafe=True) as opened:
        assert opened.level.name == working[0]


def test_the_weakest_level_is_refused_unless_it_is_allowed(monkeypatch):
    only(monkeypatch, "process")
    with pytest.raises(ConfigError, match=r"process: needs programs.unsafe or --unsafe.*install bubblewrap.*--unsafe"):
        Sandbox(MEMORY, 1)
    with Sandbox(MEMORY, 1, unsafe=True) as opened:
        assert opened.level.name == "process"


def test_without_isolation_nothing_starts_unless_the_key_or_the_flag_allows_the_weakest_level(monkeypatch, tmp_path):
    only(monkeypatch, "process")
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW) + "\n")
    task = Task(name="t", path=str(file), verifier="programs")
    with pytest.raises(ConfigError, match=r"set programs.unsafe of the task, or give --unsafe"):
        task_kind().problems(task)
    assert len(task_kind(unsafe=True).problems(task)) == 1
    for flags in ([], ["--unsafe"]):
        for name in ("evaluate", "run", "compare", "synthesize", "analyze"):
            own = task_kinds(parser().parse_args([name, "a.yaml", *flags]))["programs"]
            with nullcontext() if flags else pytest.raises(ConfigError, match="--unsafe"):
                own.problems(task)
    allowed = Task(name="t", path=str(file), verifier="programs", programs={"unsafe": True})
    assert len(task_kind().problems(allowed)) == 1
    with task_kind().verifier(allowed.running) as opened:
        assert "process (no namespaces" in opened.describes


def test_a_level_that_does_not_start_is_reported_and_the_next_one_is_tried(monkeypatch):
    broken = Level("broken", True, "", lambda: None, lambda resources: Start(["/no/such"], {}, ""))
    monkeypatch.setattr(pool, "LEVELS", (broken,))
    with pytest.raises(ConfigError, match=r"broken: .*No such file"):
        Sandbox(MEMORY, 1)
    monkeypatch.setattr(pool, "LEVELS", (broken, LEVELS[-1]))
    with Sandbox(MEMORY, 1, unsafe=True) as opened:
        assert opened.level.name == "process"


def test_a_level_that_starts_but_runs_no_program_is_skipped(monkeypatch):
    def start(resources):
        started = LEVELS[-1].start(resources)
        return started._replace(settings=started.settings | {"cgroups": [987]})

    monkeypatch.setattr(pool, "LEVELS", (Level("broken", True, "", lambda: None, start), LEVELS[-1]))
    with Sandbox(MEMORY, 1, unsafe=True) as opened:
        assert opened.level.name == "process"
    with pytest.raises(ConfigError, match=r"broken: OSError: a program cannot be started: OSError: .*Bad file descriptor"):
        Sandbox(MEMORY, 1)


@pytest.mark.parametrize("level", [level.name for level in LEVELS if level.missing() is None])
def test_without_seccomp_no_level_is_used(monkeypatch, level):
    monkeypatch.setattr(pool._Server, "_reply", lambda *_: {"ready": True, "seccomp": False, "landlock": 0})
    with pytest.raises(ConfigError, match=f"{level}: the kernel has no seccomp filters; use x86_64"):
        Sandbox(MEMORY, 1, unsafe=True, level=level)


def test_a_plain_process_without_landlock_reports_what_programs_can_read(monkeypatch):
    with Sandbox(MEMORY, 1, unsafe=True, level="process") as opened:
        assert ("including expected outputs" in opened.describes) == ("Landlock missing" in opened.describes)


def test_a_killed_server_is_replaced_and_the_program_runs_again(sandbox):
    for child in psutil.Process().children():
        if "-S -s -P -B" in " ".join(child.cmdline()):
            child.kill()
    assert both_servers_work(sandbox)


ORPHANING = """
import psutil, sys, threading, time
from tessy_jax.evaluate.programs.pool import Limits, Sandbox
limits = Limits(cpu=100.0, wall=100.0, memory=256 << 20, output=1 << 20)
sandbox = Sandbox(256 << 20, 1, unsafe=True, level=sys.argv[1])
threading.Thread(target=sandbox.run, args=(b"import time; time.sleep(100)", b"", limits), daemon=True).start()
time.sleep(0.5)
print(*(child.pid for child in psutil.Process().children(recursive=True)), flush=True)
time.sleep(100)
"""


@pytest.mark.slow
def test_kill_9_leaves_no_process_and_no_file_behind_and_the_next_sandbox_no_group(sandbox, tmp_path):
    command = [sys.executable, "-c", ORPHANING, sandbox.level.name]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.kill()
    assert pids
    deadline = time.monotonic() + 20
    while (remaining := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not remaining
    assert not list(tmp_path.iterdir())
    with Sandbox(MEMORY, 1, unsafe=True) as opened:
        group = opened._idle[0].group
        parents = [folder.parent for folder in (group.folders if group else [])]
        assert not [stale for parent in parents for stale in parent.glob(f"*-{process.pid}-*")]


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_cpp_is_built_and_run_at_every_level(sandbox):
    source = b'#include <cstdio>\nint main() { int x; std::scanf("%d", &x); std::printf("%d", 2 * x); }'
    built = sandbox.run(verifier.BUILD.encode(), source, verifier.COMPILING, build=True)
    assert built.code == 0, built.errors
    assert sandbox.run(built.output, b"21", SHORT, native=True).output == b"42"
    assert sandbox.run(verifier.BUILD.encode(), b'#include "/etc/passwd"', verifier.COMPILING, build=True).code == 1


def test_the_compiler_has_its_own_memory_limit():
    with verifier.ProgramVerifier(Programs(memory=64), unsafe=True) as opened:
        assert opened.sandbox.memory >= verifier.COMPILING.memory
        source = b"x = bytearray(100 << 20)"
        assert opened.sandbox.run(source, b"", SHORT).code == 0
        assert "MemoryError" in opened.sandbox.run(source, b"", replace(SHORT, memory=64 << 20)).errors


def test_cpp_without_a_compiler_is_refused_before_any_work(monkeypatch, tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(ROW | {"language": "cpp"}) + "\n")
    monkeypatch.setattr(verifier, "COMPILER", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs C\+\+, and no-such-compiler is not installed; install it"):
        task_kind(unsafe=True).problems(Task(name="t", path=str(file), verifier="programs"))


def test_a_closed_sandbox_leaves_neither_folders_nor_control_groups(sandbox, tmp_path, monkeypatch):
    monkeypatch.setattr(pool.tempfile, "tempdir", str(tmp_path))
    with Sandbox(MEMORY, 1, unsafe=True, level=sandbox.level.name) as opened:
        server = opened._idle[0]
        folders = server.group.folders if server.group else []
        assert all(folder.exists() for folder in folders)
    assert server.process.poll() is not None
    assert not list(tmp_path.iterdir())
    assert not [folder for folder in folders if folder.exists()]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_filter_of_each_architecture_jumps_within_itself(architecture, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: architecture)
    code = Filter(single=True, read_only=True, pid=7).code
    assert len(code) < 4096
    for place, instruction in enumerate(code):
        operation, then, otherwise = instruction[0], instruction[2], instruction[3]
        if operation & 7 == 5:
            assert place + 1 + max(then, otherwise) < len(code)
    assert code[-1][4:] == (0x7FFF0000).to_bytes(4, "little")


def hierarchy(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")


@pytest.fixture
def kernel(monkeypatch):
    """Makes a new group's files, named as in its parent, as the kernel does."""
    original = Path.mkdir

    def mkdir(self, *arguments, **more):
        original(self, *arguments, **more)
        if self.name.startswith("tessy-"):
            for file in self.parent.glob("*.*"):
                (self / file.name).write_text("")

    def rmdir(self):
        for file in self.iterdir():
            file.unlink()
        os.rmdir(self)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    monkeypatch.setattr(Path, "rmdir", rmdir)


V2 = ("cgroup.procs", "memory.max", "memory.swap.max", "memory.events", "pids.max")
V1 = ("cgroup.procs", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control")


def test_a_group_of_cgroup_v2_is_made_in_the_nearest_folder_that_has_the_controllers(tmp_path, kernel):
    hierarchy(tmp_path, *(f"user/{name}" for name in V2), "user/app/cgroup.procs")
    group = cgroups.new_group(1000, 7, tmp_path, "0::/user/app\n")
    (folder,) = group.folders
    assert folder.parent == tmp_path / "user"
    assert [(folder / name).read_text() for name in ("memory.max", "memory.swap.max", "pids.max")] == [
        str(1000 + cgroups.SLACK),
        "0",
        "7",
    ]
    assert group.counts_processes
    assert group.kills is not None
    group.close()
    assert [place.name for place in (tmp_path / "user").iterdir() if place.is_dir()] == ["app"]


def test_with_cgroup_v1_a_process_joins_two_groups(tmp_path, kernel):
    hierarchy(tmp_path, *(f"memory/own/{name}" for name in V1), "pids/cgroup.procs", "pids/pids.max")
    group = cgroups.new_group(1000, 7, tmp_path, "3:pids:/\n4:memory:/own\n0::/\n")
    assert [folder.parent for folder in group.folders] == [tmp_path / "memory" / "own", tmp_path / "pids"]
    assert (group.folders[0] / "memory.limit_in_bytes").read_text() == str(1000 + cgroups.SLACK)
    assert len(group.joins) == 2
    assert group.counts_processes
    group.close()


def test_without_a_memory_controller_no_group_is_made(tmp_path, kernel):
    hierarchy(tmp_path, "own/cgroup.procs", "own/pids.max")
    assert cgroups.new_group(1000, 7, tmp_path, "0::/own\n") is None
    assert cgroups.new_group(1000, 7, tmp_path, "") is None
    assert [place.name for place in (tmp_path / "own").iterdir() if place.is_dir()] == []


UNPRIVILEGED = """
import json, os, sys
from tessy_jax.evaluate.programs.pool import Limits, Sandbox
short = Limits(cpu=1.0, wall=0.6, memory=256 << 20, output=1 << 20)
programs = json.loads(sys.argv[2])
with Sandbox(256 << 20, 1, unsafe=True, level=sys.argv[1]) as sandbox:
    for program in programs:
        outcome = sandbox.run(program.encode(), b"x", short)
        print(json.dumps([outcome.ended, outcome.output.decode()]))
"""


def shared_python():
    """An interpreter of this version that every user may run, or None."""
    name = f"/usr/bin/python3.{sys.version_info.minor}"
    readable = all(folder.stat().st_mode & 5 == 5 for folder in Path(tessy_jax.__file__).parents)
    return name if readable and os.path.exists(name) else None


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="not user 0: all other tests run as an unprivileged user already")
@pytest.mark.skipif(shared_python() is None, reason="no interpreter or package that every user may read")
@pytest.mark.parametrize("level", [level.name for level in LEVELS])
def test_a_user_without_privileges_has_the_same_limits(level):
    programs = [
        "print(input())",
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        "import os\nfor n in range(2, 999):\n    try: n == os.getpid() or os.kill(n, 9)\n    except OSError: pass\nprint(1)",
        "try: print(open('/etc/passwd').read())\nexcept OSError: print('none')",
        "import socket\ntry: socket.socket()\nexcept OSError: print('none')",
        "import os, threading, time\nthreading.stack_size(1 << 15)\nmade = 0\ntry:\n"
        "    for made in range(500): threading.Thread(target=time.sleep, args=(99,)).start()\n"
        "except RuntimeError: print(made <= 64, flush=True)\nos._exit(0)",
        "print(input())",
    ]
    result = subprocess.run(
        [shared_python(), "-B", "-c", UNPRIVILEGED, level, json.dumps(programs)],
        user=65534,
        group=65534,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(tessy_jax.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    if "no sandbox is available" in result.stderr:
        pytest.skip(result.stderr.strip().splitlines()[-1])
    outcomes = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(outcomes) == len(programs), result.stderr
    assert [output for _, output in outcomes] == ["x\n", "", "1\n", "none\n", "none\n", "True\n", "x\n"]
    assert outcomes[1][0] in ("timeout", "memory")
