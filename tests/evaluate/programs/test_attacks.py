"""Attacks on the sandbox, at every level: no program exceeds its limits, leaves a process or a file, reads files of the
host, or changes a verdict."""

import json
import os
import secrets
import socket
import sys
import threading
from pathlib import Path

import pytest

from tests.evaluate.programs.conftest import SHORT, both_servers_work, run

MARKER = f"tessy-marker-{secrets.token_hex(8)}"
PLACES = [
    "/tmp",
    "/var/tmp",
    "/dev/shm",
    "/dev",
    "/run",
    "/",
    "/usr/lib",
    str(Path(sys.prefix)),
    str(Path.home()),
    os.getcwd(),
]

pytestmark = pytest.mark.usefixtures("nothing_left")

STUBBORN = {
    "sleeps": "import time\ntime.sleep(1000)",
    "spins": "while True: pass",
    "ignores signals": """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: time.sleep(1)""",
    "ignores signals and spins": """
import signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass""",
    "swallows exceptions": """
while True:
    try:
        while True: pass
    except BaseException: pass""",
    "stops itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
    "leaves its session": """
import os, time
try:
    if os.fork(): os._exit(0)
    os.setsid()
    if os.fork(): os._exit(0)
except OSError: pass
while True: time.sleep(1)""",
    "forks without end": """
import os
while True:
    try: os.fork()
    except OSError: pass""",
    "makes threads without end": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(1000,)).start()
    except (RuntimeError, MemoryError): pass""",
    "waits at its end": "import atexit, time\natexit.register(time.sleep, 1000)",
}


@pytest.mark.parametrize("name", STUBBORN)
def test_a_program_that_does_not_end_is_ended(sandbox, name):
    outcome = run(sandbox, STUBBORN[name], wall=0.2)
    assert outcome.ended in ("timeout", "memory") or name == "leaves its session"
    assert outcome.output == b""


def test_a_background_process_neither_outlives_its_program_nor_adds_to_its_output(sandbox):
    program = """
import os, time
print("before", flush=True)
try:
    if os.fork() == 0:
        os.setsid()
        if os.fork(): os._exit(0)
        while True:
            time.sleep(0.2)
            os.write(1, b"after")
except OSError: pass
"""
    outcome = run(sandbox, program)
    assert (outcome.ended, outcome.code, outcome.output) == ("exited", 0, b"before\n")


def test_a_concurrent_fork_bomb_changes_no_verdict(sandbox):
    bombs = [threading.Thread(target=run, args=(sandbox, STUBBORN["forks without end"]), kwargs={"wall": 0.6})]
    bombs[0].start()
    while bombs[0].is_alive():
        outcome = run(sandbox, "import threading\nt = threading.Thread(target=print, args=(1,))\nt.start()", wall=20.0)
        assert outcome.output == b"1\n", outcome
    bombs[0].join()


def test_an_invalid_executable_fails_with_exit_code_126(sandbox):
    for program in (b"", b"\x7fELF" + bytes(60), b"#!/no/such\n"):
        outcome = sandbox.run(program, b"", SHORT, native=True)
        assert (outcome.ended, outcome.code, outcome.output) == ("exited", 126, b"")
        assert outcome.errors
    assert both_servers_work(sandbox)


WRITING = """
import os, sys
marker, places = input().split("|", 1)
for place in places.split("|"):
    for act in (
        lambda path: open(path, "w").write("x" * 100),
        lambda path: os.mkdir(path),
        lambda path: os.symlink("/etc", path),
        lambda path: os.link("/etc/passwd", path),
        lambda path: os.mkfifo(path),
        lambda path: os.open(path, os.O_TMPFILE | os.O_RDWR),
    ):
        try: act(os.path.join(place, marker))
        except OSError: pass
print("done")
"""


def test_no_file_is_left_anywhere(sandbox):
    outcome = run(sandbox, WRITING, "|".join([MARKER, *PLACES]).encode())
    assert outcome.output == b"done\n", outcome
    assert not [place for place in PLACES if os.path.lexists(os.path.join(place, MARKER))]
    listing = (
        "import os\nprint([n for p in ('/tmp', '.', '/dev/shm') for n in (os.listdir(p) if os.access(p, os.R_OK) else [])])"
    )
    assert MARKER.encode() not in run(sandbox, listing).output, "a program can list the files of another"


READING = """
import glob, os
found = []
paths = ["/etc/passwd", "/etc/shadow", "/proc/self/environ", "/proc/1/environ", "/proc/meminfo", "/proc/self/maps"]
paths += input().split("|") + glob.glob("/proc/*/environ") + glob.glob("/proc/*/cmdline") + glob.glob("/proc/*/mem")
for path in paths:
    try:
        with open(path, "rb") as file: found.append((path, file.read(1 << 16)))
    except OSError: pass
for start, name in (("/", "link"), ("/etc", "link2")):
    try:
        os.symlink(start, f"/tmp/{name}")
        with open(f"/tmp/{name}/etc/passwd" if start == "/" else f"/tmp/{name}/passwd", "rb") as file:
            found.append((name, file.read()))
    except OSError: pass
found += [("environment", repr(os.environ).encode())]
print(found)
"""


def test_neither_files_of_the_host_nor_environments_can_be_read(sandbox, tmp_path, monkeypatch):
    secret = secrets.token_hex(16)
    monkeypatch.setenv("TESSY_SECRET", secret)
    (tmp_path / "expected.out").write_text(secret)
    tmp_path.chmod(0o755)
    outcome = run(sandbox, READING, str(tmp_path / "expected.out").encode())
    assert outcome.ended == "exited", outcome
    assert outcome.code == 0, outcome
    assert secret.encode() not in outcome.output
    if "Landlock missing" not in sandbox.describes or sandbox.level.isolated:
        assert b"root:" not in outcome.output
        assert outcome.output.startswith(b"[('environment'"), outcome.output


def test_the_expected_answer_is_not_accessible(sandbox, tmp_path):
    (tmp_path / f"{MARKER}.out").write_text("4")
    search = f"""
import os
print([name for top in ("/tmp", "/work", "/root", "/home", "/var", ".") for _, _, names in os.walk(top) for name in names
    if name == "{MARKER}.out"], [key for key in vars(__import__("sys").modules["__main__"]) if "expect" in key])
"""
    assert run(sandbox, search, cpu=5.0, wall=16.0).output == b"[] []\n"


def test_sockets_cannot_connect(sandbox):
    server = socket.create_server(("127.0.0.1", 0))
    server.settimeout(0.2)
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0" + MARKER)
    abstract.listen()
    abstract.settimeout(0.2)
    program = f"""
import socket
for family, address in ((socket.AF_INET, ("127.0.0.1", {server.getsockname()[1]})), (socket.AF_UNIX, "\\0{MARKER}")):
    try:
        socket.socket(family).connect(address)
        print("connected")
    except OSError: pass
try: print(socket.gethostbyname("localhost.localdomain"))
except OSError: pass
print("done")
"""
    with server, abstract:
        assert run(sandbox, program).output == b"done\n"
        for listener in (server, abstract):
            with pytest.raises(TimeoutError):
                listener.accept()


KILLING = """
import os, signal
for number in (9, 15, 19):
    for pid in (-1, 0 if number == 18 else -os.getppid(), os.getppid(), 1, *range(2, 5000)):
        if pid != os.getpid():
            try: os.kill(pid, number)
            except OSError: pass
print("alive", flush=True)
"""


def test_no_other_process_can_be_signalled(sandbox):
    outputs = []
    slow = "import time\nfor _ in range(4): time.sleep(0.1)\nprint(input())"
    other = threading.Thread(target=lambda: outputs.append(run(sandbox, slow, b"other", wall=20.0).output))
    other.start()
    run(sandbox, KILLING)
    other.join()
    assert outputs == [b"other\n"]
    assert both_servers_work(sandbox)


def test_only_the_standard_files_are_inherited(sandbox):
    program = """
import os
found = []
for number in range(3, 4096):
    try: os.fstat(number)
    except OSError: continue
    found.append(number)
    try: os.write(number, b'{"ready": true, "ended": "exited", "code": 0, "output": 0}\\n' * 9)
    except OSError: pass
print(found)
"""
    assert run(sandbox, program).output == b"[]\n"
    assert both_servers_work(sandbox)


CALLS = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
refused = []
def tried(name, result): refused.append((name, result < 0))
tried("ptrace", libc.ptrace(16, os.getppid(), 0, 0))
tried("ptrace 1", libc.ptrace(16, 1, 0, 0))
tried("unshare", libc.unshare(0x10000000))
tried("unshare files", libc.unshare(0x00020000))
tried("mount", libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
tried("remount", libc.mount(b"", b"/", b"", 4096 | 32, None))
tried("umount", libc.umount2(b"/tmp", 2))
tried("chroot", libc.chroot(b"/"))
tried("setns", libc.setns(0, 0))
tried("setuid", libc.setresuid(0, 0, 0) if os.getuid() else -1)
tried("setgroups", libc.setgroups(0, None))
tried("shmget", libc.shmget(7, 4096, 0o1666))
tried("keyctl", libc.syscall({"x86_64": 250, "aarch64": 219}[platform.machine()], 0, -3))
tried("reboot", libc.reboot(0))
tried("fcntl F_SETOWN", libc.fcntl(0, 8, 1))
tried("fcntl F_SETOWN_EX", libc.fcntl(0, 15, (ctypes.c_int * 2)(1, 1)))
pair = (ctypes.c_int * 2)()
assert libc.socketpair(1, 1, 0, pair) == 0
for command in (0x8901, 0x8902): tried(f"ioctl {command}", libc.ioctl(pair[0], command, ctypes.byref(ctypes.c_int(1))))
for kind in (2, 3, 2 | 0x80000): tried(f"socketpair {kind}", libc.socketpair(1, kind, 0, pair))
tried("bind", libc.bind(pair[0], b"\\1\\0\\0a", 4))
tried("setpriority", libc.setpriority(0, os.getppid(), 19))
tried("setpriority of all", libc.setpriority(2, 0, 19))
tried("sched_setaffinity", libc.sched_setaffinity(os.getppid(), 8, b"\\1" + bytes(7)))
tried("sched_setscheduler", libc.sched_setscheduler(os.getppid(), 5, bytes(4)))
tried("ioprio_set", libc.syscall({"x86_64": 251, "aarch64": 30}[platform.machine()], 1, os.getppid(), 3 << 13))
tried("kill", libc.kill(0, 0))
tried("fork", libc.fork())
import resource
for limit in (resource.RLIMIT_CPU, resource.RLIMIT_AS, resource.RLIMIT_NOFILE):
    try:
        resource.setrlimit(limit, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        tried(f"limit {limit}", 0)
    except (OSError, ValueError): tried(f"limit {limit}", -1)
print([name for name, was in refused if not was])
"""


def test_privileges_cannot_be_regained(sandbox):
    outcome = run(sandbox, CALLS)
    assert outcome.output == b"[]\n", outcome


def test_changes_to_the_interpreter_do_not_affect_later_programs(sandbox):
    program = """
import builtins, json, os, sys
builtins.print = lambda *a: None
json.dumps = lambda *a: "{}"
os.fork = os.write = None
sys.stdout.close()
for module in list(sys.modules): sys.modules.pop(module, None)
"""
    for _ in range(3):
        run(sandbox, program)
    assert both_servers_work(sandbox)


def test_a_forged_reply_of_the_server_is_only_output(sandbox):
    reply = json.dumps({"ended": "exited", "code": 0, "cpu": 0, "wall": 0, "errors": "", "output": 2})
    outcome = run(sandbox, f"print({reply!r})\nprint(1)\nraise SystemExit(7)")
    assert (outcome.ended, outcome.code) == ("exited", 7)
    assert outcome.output == f"{reply}\n1\n".encode()


def test_a_program_without_output_has_empty_output(sandbox):
    for program in ("import os\nos.close(1)\nos._exit(0)", "import sys\nsys.exit(0)", "pass"):
        outcome = run(sandbox, program)
        assert (outcome.code, outcome.output) == (0, b"")
