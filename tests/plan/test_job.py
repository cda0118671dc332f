"""Tests of `tessy plan`: the protocol and lifetime of its compiling processes, run folders and exit codes."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tessy_jax import cli
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.plan import job
from tessy_jax.plan.job import check_request, complete, plan_job, read_any
from tessy_jax.store import RunStore
from tests.conftest import ROOT

PAIR = ROOT / "configs" / "small_pair.yaml"
WORK = """
import os, subprocess, sys
from tessy_jax.plan import worker
def compile_all(request):
    {}
worker.compile_all = compile_all
sys.exit(worker.main())
"""
FIT = {"program": "loop", "fits": True}


def planned_by(code, monkeypatch):
    """The result for a target whose process runs this code."""
    monkeypatch.setattr(job, "WORKER", (sys.executable, "-c", code))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (target,) = plan_job(read_any(PAIR, []), ["cpu"], ["loop"])["targets"]
    return target


def ended(pid):
    """Whether a process ends within 10 seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_compiling_process_and_its_children_end_when_their_parent_is_killed():
    work = WORK.format("print(subprocess.Popen(['sleep', '60']).pid, flush=True); subprocess.run(['sleep', '60']); yield {}")
    parent = f"""
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", {work!r}], stdin=subprocess.PIPE, start_new_session=True, stderr=1)
worker.stdin.write(b"{{}}\\n")
worker.stdin.flush()
print(worker.pid, flush=True)
time.sleep(60)
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env=environment)
    worker, child = (int(process.stdout.readline()) for _ in range(2))
    try:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert ended(worker)
        assert ended(child)
    finally:
        process.stdout.close()


def test_the_input_of_a_compiling_process_stays_open_while_it_works(monkeypatch):
    code = "import json, select, sys; sys.stdin.readline(); ended = select.select([0], [], [], 0.5)[0]"
    assert planned_by(f"{code}; print(json.dumps({{'notes': ended}}))", monkeypatch)["notes"] == []


def test_output_of_libraries_in_any_encoding_does_not_disturb_the_records(monkeypatch):
    work = r"print('hello'); os.write(1, b'\xff\n'); os.write(2, b'\xff\n'); yield {'program': 'loop', 'fits': True}"
    target = planned_by(WORK.format(work), monkeypatch)
    assert target["programs"] == [FIT]
    assert "error" not in target


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "import os; os.write(2, b'ValueError: broken \\xff\\nWARNING: All log messages before absl::InitializeLog()\\n"
            "I0000 00:00:1795.156   30417 cudart_stub.cc:31] Could not find cuda drivers\\n'); os._exit(3)",
            "ended with exit code 3 (ValueError: broken \ufffd)",
        ),
        ('import os; os.write(1, b\'{"program": "lo\'); os.kill(os.getpid(), 9)', "ended with exit code -9 (no message)"),
    ],
)
def test_the_error_of_a_failed_process_is_its_last_line_that_is_not_a_startup_message(code, reason, monkeypatch):
    target = planned_by(code, monkeypatch)
    assert target["error"] == f"the compiling process {reason}"
    assert target["programs"] == []


RESULTS = [
    ([FIT], {}, 0),
    ([{"program": "loop"}], {}, 0),
    ([FIT, FIT | {"fits": False}], {}, 1),
    ([{"program": "loop", "error": "INTERNAL"}], {}, 1),
    ([FIT], {"error": "stopped"}, 1),
]


def planning(monkeypatch, tmp_path, outcome, *options):
    """The exit code of `tessy plan` where the compilation has this outcome: a result, or an error to raise."""

    def compiled(*_, **__):
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(job, "plan_job", compiled)
    return cli.main(["plan", str(PAIR), "--json", "--set", f"output={tmp_path / 'run'}", *options])


def outcome(programs, target):
    facts = {"target": "cpu", "devices": 1, "memory": None, "seconds": 1, "notes": [], "programs": programs}
    return {"mesh": {}, "targets": [facts | target]}


@pytest.mark.parametrize(("programs", "target", "code"), RESULTS)
def test_the_exit_code_is_1_if_a_program_or_target_has_an_error_or_a_program_does_not_fit(
    programs, target, code, monkeypatch, tmp_path
):
    found = outcome(programs, target)
    assert planning(monkeypatch, tmp_path, found) == code
    assert complete(found) == (code == 0)


def test_an_interrupted_plan_does_not_promise_to_resume(monkeypatch, tmp_path, capsys):
    assert planning(monkeypatch, tmp_path, KeyboardInterrupt()) == 1
    assert capsys.readouterr().err == "tessy plan: interrupted\n"


def test_a_saved_plan_is_also_printed(monkeypatch, tmp_path, capsys):
    found = outcome([FIT], {})
    assert planning(monkeypatch, tmp_path, found, "--save") == 0
    assert json.loads((tmp_path / "run" / "plan.json").read_text()) == found
    assert json.loads(capsys.readouterr().out) == found


def test_a_plan_that_cannot_be_saved_is_printed(monkeypatch, tmp_path, capsys):
    def full(*_):
        raise DataError("no space")

    monkeypatch.setattr(job, "save_plan", full)
    found = outcome([FIT], {})
    assert planning(monkeypatch, tmp_path, found, "--save") == 2
    assert json.loads(capsys.readouterr().out) == found


def test_a_run_folder_in_use_is_refused_before_compilation(monkeypatch, tmp_path, capsys):
    with RunStore(str(tmp_path / "run")):
        assert planning(monkeypatch, tmp_path, AssertionError("compiled"), "--save") == 2
    assert "run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options", [["--programs", ""], ["--programs", "loop,"], ["--target", "tpu"], ["--set", "mesh={data: 4}"]]
)
def test_a_refused_request_ends_with_2_and_creates_no_run_folder(options, monkeypatch, tmp_path):
    options = [*options, "--target", "cpu:2"]
    assert planning(monkeypatch, tmp_path, AssertionError("compiled"), "--save", *options) == 2
    assert not (tmp_path / "run").exists()


def test_programs_and_targets_are_planned_once_and_spaces_around_names_are_ignored():
    targets, programs = check_request(read_any(PAIR, []), ["cpu", " cpu:2", "cpu"], ["fill", " loop", "fill "])
    assert [target.text for target in targets] == ["cpu", "cpu:2"]
    assert programs == ["fill", "loop"]


def test_a_mesh_too_large_for_every_target_is_refused_and_one_that_fits_some_targets_is_planned():
    config = read_any(PAIR, ["mesh={tensor: 4}"])
    assert len(check_request(config, ["cpu:2", "cpu:4"], [])[0]) == 2
    with pytest.raises(ConfigError, match=r"target cpu:2: has 2 of the 4 devices of the mesh {tensor: 4}"):
        check_request(config, ["cpu:2", "cpu"], [])
