"""The complete job runs each stage once, continues after any interruption, and gives the results of its stages run alone."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tessy_jax import cli
from tessy_jax.config import Pipeline, Synthesize, read
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.mini import evaluation
from tessy_jax.mini.tasks import item_of, items
from tessy_jax.mini.verify import is_right
from tessy_jax.models import hf
from tessy_jax.pipeline import run
from tessy_jax.store import RunReader
from tessy_jax.synthesis.export import rows_in_order
from tessy_jax.synthesis.job import responses
from tessy_jax.train.export import export_model
from tests import several
from tests.conftest import ROOT, compiling
from tests.small_job import MODELS, job

TASK = {"name": "sums", "mini": {"families": ["Ae"], "items": 2}, "verifier": "mini"}
STAGES = ["before", "round 1: synthesis", "round 1: training", "round 1: evaluation"]


def tessy(*arguments):
    return cli.main(["run", *map(str, arguments)])


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def results(folder, rounds=1):
    """What a person would compare: verdicts before and after, losses, responses."""
    values = {"before": (folder / "before" / "verdicts.jsonl").read_text()}
    for number in range(1, rounds + 1):
        place = folder / f"round-{number}"
        values[f"after {number}"] = (place / "evaluation" / "verdicts.jsonl").read_text()
        lines = (place / "training" / "metrics.jsonl").read_text().splitlines()
        values[f"losses {number}"] = [json.loads(line)["loss"] for line in lines]
        values[f"rows {number}"] = [(row.id, row.content, row.spans) for row in rows_in_order(str(place / "synthesis"))]
    return values


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A job that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    assert tessy(job(folder), "--json") == 0
    return folder / "job"


@pytest.mark.slow
def test_a_job_leaves_its_stages_a_summary_and_a_report(whole):
    job_summary = summary(whole)
    assert job_summary["finished"]
    assert [stage["name"] for stage in job_summary["stages"]] == STAGES
    kinds = [("evaluation", None), ("synthesis", 1), ("training", 1), ("evaluation", 1)]
    assert [(stage["kind"], stage["round"]) for stage in job_summary["stages"]] == kinds
    assert all(stage["seconds"] > 0 for stage in job_summary["stages"])
    assert job_summary["peak_memory"]["host_bytes"] > 1e8
    everything = results(whole)
    assert len(everything["losses 1"]) == 6
    assert len(everything["rows 1"]) == 12
    assert {span.source for _, _, spans in everything["rows 1"] for span in spans} == {"student", "teacher", "template"}
    page = (whole / "report.html").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_a_finished_job_is_only_read(whole, capsys):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*.json*")}
    responses = {file for file in before if "responses" in file.parts}
    assert tessy(whole.parent / "job.yaml") == 0
    said = capsys.readouterr()
    assert "report.html" in said.out
    assert "Ae" in said.out
    assert responses == {file for file in whole.rglob("*.json*") if "responses" in file.parts}
    for file, then in before.items():
        if file.parent != whole:
            assert file.stat().st_mtime_ns == then, file


@pytest.mark.slow
def test_another_configuration_in_a_run_folder_is_refused_with_the_keys(whole, capsys):
    code = tessy(whole.parent / "job.yaml", "--set", "training.steps=7", "--set", "evaluation.sampling.temperature=0.5")
    assert code == 2
    said = capsys.readouterr().err
    assert "training.steps" in said
    assert "evaluation.sampling.temperature" in said


@pytest.mark.slow
def test_the_student_is_loaded_once_and_goes_from_stage_to_stage(whole, tmp_path, monkeypatch):
    loaded = []
    load = hf.load
    monkeypatch.setattr(hf, "load", lambda folder, **options: (loaded.append(str(folder)), load(folder, **options))[1])
    config = read(Pipeline, job(tmp_path))
    job_summary = run(config, task_kinds={**TASK_KINDS, **evaluation.TASK_KINDS}, progress=False, page=False)
    assert job_summary["finished"]
    names = ("student-0", "teacher", "predictor-student", "predictor-teacher")
    assert sorted(loaded) == sorted(str(MODELS / name) for name in names)
    assert results(tmp_path / "job") == results(whole)


@pytest.mark.slow
def test_every_round_starts_from_the_student_of_the_previous_one(whole, tmp_path, capsys):
    assert tessy(job(tmp_path), "--set", "rounds=2") == 0
    two = results(tmp_path / "job", rounds=2)
    assert {key: two[key] for key in results(whole)} == results(whole)
    assert two["rows 2"] != two["rows 1"]
    assert two["losses 2"][0] < two["losses 1"][0], "the second round begins with what the first has learnt"
    config = (tmp_path / "job" / "round-2" / "synthesis" / "config.yaml").read_text()
    assert f"model: {tmp_path}/job/round-1/training/model" in config
    assert "round 2" in (tmp_path / "job" / "report.html").read_text().lower()
    assert tessy(tmp_path / "job.yaml") == 0, "fewer rounds are done already"


@pytest.mark.slow
def test_another_student_may_write_and_the_trained_one_is_evaluated_after_every_epoch(tmp_path, capsys):
    asked = yaml.safe_load((ROOT / "configs" / "mini.yaml").read_text())["evaluation"]["tasks"][0]
    asked["mini"]["items"] = 6
    writer = yaml.safe_load((ROOT / "configs" / "mini.yaml").read_text())["student"] | {"model": str(MODELS / "student-1")}
    system_message = "You are somebody else."
    changes = {
        "writer": writer,
        "synthesis": {"isolation": system_message},
        "evaluation": {"every_epochs": 1, "system": system_message, "tasks": [asked]},
        "training": {"batch_size": 2, "steps": 8, "save_every": 100},
    }
    assert tessy(job(tmp_path, "crossed", **changes)) == 0
    place = tmp_path / "crossed" / "round-1"
    config = read(Pipeline, tmp_path / "crossed.yaml")
    written = {row.id: row.content for row in rows_in_order(str(place / "synthesis"))}
    alone = Synthesize.model_validate(
        {
            **{name: getattr(config, name) for name in ("seed", "data", "teacher", "boundary", "synthesis")},
            "output": str(tmp_path / "alone"),
            "student": config.writer,
        }
    )
    assert {row.id: row.content for row in responses(alone)} == written
    assert all(
        row.messages[0] == {"role": "system", "content": system_message} for row in rows_in_order(str(place / "synthesis"))
    )
    training = summary(place / "training")
    ends = {int(epoch): step for epoch, step in training["epoch_ends"].items()}
    assert list(ends) == [1, 2]
    assert sorted(path.name for path in (place / "epochs").iterdir()) == [
        f"{epoch:03}" for epoch, step in ends.items() if step < training["steps"]
    ]
    assert not list((place / "training").glob("epoch-*"))
    epoch = min(ends)
    export_model(str(place / "training"), tmp_path / "then", ends[epoch])
    file = tmp_path / "then.yaml"
    then = {**summary(place / "epochs" / f"{epoch:03}")}
    raw = yaml.safe_load((place / "epochs" / f"{epoch:03}" / "config.yaml").read_text())
    assert raw["student"]["system"] == system_message
    assert yaml.safe_load((tmp_path / "crossed" / "before" / "config.yaml").read_text())["student"]["system"] is None
    raw |= {"output": str(tmp_path / "again"), "student": raw["student"] | {"model": str(tmp_path / "then")}}
    file.write_text(yaml.safe_dump(raw))
    capsys.readouterr()
    assert cli.main(["evaluate", str(file)]) == 0
    again = summary(tmp_path / "again")
    assert {name: again[name] for name in ("tasks", "domains")} == {name: then[name] for name in ("tasks", "domains")}


def test_a_writer_that_marks_thinking_otherwise_is_refused(tmp_path, capsys):
    writer = yaml.safe_load((ROOT / "configs" / "mini.yaml").read_text())["student"]
    writer |= {"model": str(MODELS / "student-1"), "thinking": {"open": "<t>", "close": "</t>"}}
    assert tessy(job(tmp_path, writer=writer)) == 2
    assert "writer opens and closes thinking with '<t>' and '</t>'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_job_trains_on_right_answers_to_prompts_that_its_evaluation_does_not_contain(tmp_path):
    file, item = job(tmp_path), next(items("Ae", "test", 0))
    with (tmp_path / "prompts.jsonl").open("a") as out:
        out.write(json.dumps({"id": item.id, "prompt": item.prompt}) + "\n")
    choices = ["data.decontaminate={}", "synthesis.verification={verifier: mini}", "synthesis.recipe=student_only"]
    assert tessy(file, *(part for choice in choices for part in ("--set", choice))) == 0
    data = RunReader(str(tmp_path / "job" / "round-1" / "synthesis"))
    rows, failures = list(data.rows()), list(data.failures())
    assert all(is_right(item_of(row.prompt_id), row.content) for row in rows)
    assert len(rows) + len(failures) == 13
    (left_out,) = [failure for failure in failures if failure.reason == "contaminated"]
    assert (left_out.prompt_id, left_out.detail) == (item.id, f"sums/{item.id}: is the same text")
    assert {failure.attempts for failure in failures if failure.reason == "wrong_answer"} <= {3}
    assert "wrong answer" in (tmp_path / "job" / "report.html").read_text()


@pytest.mark.slow
def test_a_job_killed_in_every_stage_gives_the_results_of_an_uninterrupted_one(whole, tmp_path):
    file = job(tmp_path)
    command = [sys.executable, "-m", "tessy_jax.cli", "run", str(file), "--json", "--set", "synthesis.snapshot_seconds=0"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["XLA_FLAGS"] = compiling()
    rng, folder = random.Random(0), tmp_path / "job"
    marks = ["before/config.yaml", "round-1/synthesis/config.yaml", "round-1/training/config.yaml"]
    marks += ["round-1/training/metrics.jsonl", "round-1/evaluation/config.yaml", "round-1/evaluation/rollouts/config.yaml"]
    killed = 0
    for mark in marks:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not (folder / mark).exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 1.5))
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed >= 4, "the job ended before it was killed often"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ours, theirs = results(folder), results(whole)
    assert ours.pop("losses 1") == pytest.approx(theirs.pop("losses 1"), rel=1e-5)  # one device, eight devices' thread pool
    assert ours == theirs


@pytest.mark.slow
def test_two_processes_run_the_job_of_one(tmp_path):
    """One device each: synthesis on two processes of four devices has a test in tests/synthesis/test_processes.py."""
    changes = {"mesh": {"data": 2}, "data": {"limit": 8}, "items_each": 2}  # collectives across processes are slow
    assert tessy(job(tmp_path, "one", **changes), "--json") == 0
    codes, said = several.ended(several.tessy("run", job(tmp_path, "two", **changes), devices=1))
    assert codes == [0, 0], said
    job_summary = summary(tmp_path / "two")
    assert (job_summary["processes"], job_summary["devices"][1]) == (2, "2 in all")
    ours, theirs = results(tmp_path / "two"), results(tmp_path / "one")
    assert ours.pop("losses 1") == pytest.approx(theirs.pop("losses 1"), rel=1e-5)
    assert ours == theirs
    assert (tmp_path / "two" / "report.html").exists()


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_run_continues_afterwards(whole, tmp_path):
    """Files of a checkpoint do not fit, those of the responses do."""
    file, limit = job(tmp_path), 1_100_000
    code = f"import resource, sys\nresource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
    code += "from tessy_jax.cli import main\nsys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "1e9"  # read, not written: entries exceed the limit
    command = [sys.executable, "-c", code, "run", str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    # not the last line always: threads of Orbax may still be speaking
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("tessy run:")]
    assert "round-1/training" in said
    assert "cannot be written" in said
    assert "_SignalingThread" not in done.stderr
    assert tessy(file, "--json") == 0
    assert results(tmp_path / "job") == results(whole)


@pytest.mark.parametrize("folder", ["/proc/self/job", "/dev/null/job"])
def test_an_output_that_cannot_be_written_is_named_before_any_work(tmp_path, capsys, folder):
    assert tessy(job(tmp_path), "--set", f"output={folder}") == 2
    assert folder in capsys.readouterr().err.splitlines()[-1]


def test_ctrl_c_is_reported_and_the_run_continues_afterwards(tmp_path):
    # what shells start in the background ignores the signal, and so would this
    code = "import signal, sys\nfrom tessy_jax.cli import main\n"
    code += "signal.signal(signal.SIGINT, signal.default_int_handler)\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "run", str(job(tmp_path))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not (tmp_path / "job" / "before" / "config.yaml").exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "interrupted; the same command resumes it" in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"boundary": {"student": None}}, "boundary.student"),
        ({"teacher": None}, "teacher"),
        ({"training": {"max_seq_len": 100}}, "training.max_seq_len"),
        ({"training": {"step": 1}}, "training.steps"),
        ({"synthesis": {"lanes": "many"}}, "synthesis.lanes"),
        ({"evaluation": {"tasks": []}}, "evaluation.tasks"),
        ({"evaluation": {"tasks": [TASK, TASK]}}, "two tasks have the name 'sums'"),
        ({"evaluation": {"tasks": [TASK | {"samples": 2}], "sampling": {"temperature": 0}}}, "temperature 0"),
        ({"rounds": 0}, "rounds"),
        ({"data": {"path": "nowhere.jsonl"}}, "nowhere.jsonl"),
        ({"output": "gs://bucket/job"}, "gs://bucket/job"),
    ],
)
def test_a_job_that_cannot_work_is_refused_before_any_stage(tmp_path, capsys, changes, said):
    assert tessy(job(tmp_path, **changes)) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert said in lines[-1]
    assert not (tmp_path / "job" / "before" / "rollouts").exists()
    assert not (tmp_path / "job" / "config.yaml").exists(), "what is put right would be refused as another job"
