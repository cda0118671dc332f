"""Several processes write, verify and train as one process does, and continue after a crash."""

import json
import shutil
import signal
import time
from contextlib import redirect_stdout
from io import StringIO

import pytest
import yaml

from tessy_jax.cli import main
from tests.several import ended, start, tessy
from tests.synthesis.tiny_pair import CLOSE, build, settings, write_prompts

pytestmark = pytest.mark.slow
MESH = {"data": 8}
FUSED = """
import json, sys
from tessy_jax.config import Evaluate, Synthesize, Train
from tessy_jax.evaluate.job import evaluate
from tessy_jax.processes import initialize, is_primary
from tessy_jax.synthesis.job import synthesize
from tessy_jax.train.job import train

if sys.argv[2:]:
    initialize()
raw = json.loads(open(sys.argv[1]).read())
written = synthesize(Synthesize.model_validate(raw["synthesize"]), progress=False)
trained = train(Train.model_validate(raw["train"]), written.student)
evaluated = evaluate(Evaluate.model_validate(raw["evaluate"]), trained.student, progress=False)
if is_primary():
    print(json.dumps([trained.summary["loss"], evaluated.summary["tasks"], evaluated.student is not None]))
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pair"))


def written(file, raw):
    file.write_text(yaml.safe_dump(raw))
    return file


def synthesis(pair, folder, name, **changes):
    prompts = write_prompts(folder / "prompts.jsonl", 6)
    raw = settings(pair, prompts, folder / name, lanes=8)
    return raw | {"mesh": MESH, "data": raw["data"] | {"rollouts": 2}} | changes


def evaluation(pair, folder, name, **changes):
    problems = [{"id": i, "prompt": f"add {i} and {i * i}", "answer": str(i)} for i in range(4)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in problems))
    given = settings(pair, folder / "unused", folder / name, lanes=4)
    own = {k: v for k, v in given["synthesis"].items() if k not in ("max_attempts", "student_step", "teacher_step")}
    own |= {"max_response_tokens": 24, "rounds_per_dispatch": 16}
    tasks = [{"name": "sums", "path": str(folder / "problems.jsonl"), "verifier": "exact", "samples": 2}]
    return {k: given[k] for k in ("output", "seed", "student")} | {"synthesis": own, "tasks": tasks} | changes


def last(outputs):
    """The report of the first process. The transport between CPUs prints to the same stream."""
    return json.loads(outputs[0][0].splitlines()[-1])


def printed(capsys, *args):
    capsys.readouterr()
    assert main([str(a) for a in args]) == 0
    return capsys.readouterr().out


def responses(capsys, run, count):
    """Rows and failures, without times."""
    rows = [json.loads(line) for line in printed(capsys, "rows", run).splitlines()]
    for row in rows:
        row["meta"].pop("seconds")
    failures = printed(capsys, "rows", run, "--failures").splitlines()
    assert rows
    assert len(rows) + len(failures) == count
    return rows, sorted(failures)


@pytest.fixture(scope="module")
def alone(pair, tmp_path_factory):
    """A synthesis by one process on eight devices: its summary and its run folder."""
    folder = tmp_path_factory.mktemp("alone")
    file = written(folder / "one.yaml", synthesis(pair, folder, "one"))
    report = StringIO()
    with redirect_stdout(report):
        assert main(["synthesize", str(file), "--json"]) == 0
    return json.loads(report.getvalue()), folder / "one"


def test_two_processes_of_four_devices_write_the_responses_of_one_of_eight(pair, tmp_path, capsys):
    few = {"data": {"path": str(tmp_path / "prompts.jsonl"), "rollouts": 1}}
    summaries = []
    for name in ("one", "two"):
        raw = synthesis(pair, tmp_path, name, **few)
        raw["synthesis"] |= {"max_response_tokens": 24, "max_attempts": 3, "rounds_per_dispatch": 16}
        file = written(tmp_path / f"{name}.yaml", raw)
        if name == "one":
            summaries.append(json.loads(printed(capsys, "synthesize", file, "--json")))
            continue
        codes, outputs = ended(tessy("synthesize", file))
        assert codes == [0, 0], outputs
        assert "{" not in outputs[1][0], "the second process prints no report"
        assert "first prompt" not in outputs[1][1]
        summaries.append(last(outputs))
    of_one, of_two = summaries
    assert (of_one["processes"], of_two["processes"]) == (1, 2)
    for name in ("kept_tokens", "generated_tokens", "passes", "rounds", "host_syncs", "retries"):
        assert of_one[name] == of_two[name], name
    rows = responses(capsys, tmp_path / "one", 6)
    assert rows == responses(capsys, tmp_path / "two", 6)


def test_two_killed_processes_continue_as_two_or_as_one(pair, alone, tmp_path, capsys):
    summary, folder = alone
    expected = responses(capsys, folder, 12)
    run, mesh = tmp_path / "run", {"mesh": {"data": 2}}
    file = written(tmp_path / "run.yaml", synthesis(pair, tmp_path, "run", **mesh))
    running = tessy("synthesize", file, devices=1)
    while not (list(run.glob("snapshots/*.bin")) and list(run.glob("responses/*.jsonl"))):
        assert all(process.poll() is None for process in running)
        time.sleep(0.001)
    for process in running:
        process.send_signal(signal.SIGKILL)
    ended(running)
    assert not (run / "summary.json").exists(), "it ended before it was killed"
    shutil.copytree(run, tmp_path / "copy")
    codes, outputs = ended(tessy("synthesize", file, devices=1))
    assert codes == [0, 0], outputs
    assert last(outputs)["responses"] < len(expected[0])
    assert last(outputs)["generated_tokens"] != summary["generated_tokens"], "it started again from the beginning"
    assert responses(capsys, run, 12) == expected
    # the number of devices may change between starts
    copied = written(tmp_path / "copy.yaml", synthesis(pair, tmp_path, "copy"))
    printed(capsys, "synthesize", copied, "--json")
    assert responses(capsys, tmp_path / "copy", 12) == expected


@pytest.mark.parametrize("recipe", ["teacher_score", "teacher_reference"])
def test_two_processes_do_both_passes_of_a_recipe_as_one_does(pair, tmp_path, capsys, recipe):
    results = []
    for name in ("one", "two"):
        raw = synthesis(
            pair, tmp_path, name, mesh={"data": 2}, data={"path": str(tmp_path / "prompts.jsonl"), "rollouts": 1}
        )
        raw["synthesis"] |= {"recipe": recipe, "candidates": 2, "rewrite": "{prompt} {reference}", "max_prompt_tokens": 200}
        raw["synthesis"] |= {"max_response_tokens": 24, "rounds_per_dispatch": 16}
        file = written(tmp_path / f"{name}.yaml", raw)
        if name == "one":
            printed(capsys, "synthesize", file, "--json")
        else:
            codes, outputs = ended(tessy("synthesize", file, devices=1))
            assert codes == [0, 0], outputs
        rows, failures = responses(capsys, tmp_path / name, 6)
        for row in rows:
            row["meta"].pop("teacher_score", None)  # up to rounding
        results.append((rows, failures))
    assert results[0] == results[1]


def test_two_processes_evaluate_as_one_on_a_mesh_that_does_not_shard_lanes(pair, tmp_path, capsys):
    mesh = {"mesh": {"tensor": 2}}
    file_of_one = written(tmp_path / "one.yaml", evaluation(pair, tmp_path, "one", **mesh))
    alone = json.loads(printed(capsys, "evaluate", file_of_one, "--json"))
    file_of_two = written(tmp_path / "two.yaml", evaluation(pair, tmp_path, "two", **mesh))
    for again in (False, True):  # the second only reads
        codes, outputs = ended(tessy("evaluate", file_of_two, devices=1))
        assert codes == [0, 0], outputs
        assert "{" not in outputs[1][0], "the second process prints no report"
        assert {**last(outputs), "seconds": 0} == {**alone, "seconds": 0}, again
    verdicts = [(tmp_path / name / "verdicts.jsonl").read_text() for name in ("one", "two")]
    assert verdicts[0] == verdicts[1]
    assert len(verdicts[0].splitlines()) == 8


def test_two_processes_pass_the_students_arrays_on_as_one_does(pair, tmp_path):
    results = []
    for name, processes in (("one", 1), ("two", 2)):
        folder = tmp_path / name
        folder.mkdir()
        student = settings(pair, folder, folder)["student"]
        mesh = {"fsdp": 2}
        raw = {
            "synthesize": synthesis(pair, folder, "data", mesh=mesh, date="2026-01-01"),
            "train": {
                "output": str(folder / "train"),
                "mesh": mesh,
                "student": {key: student[key] for key in ("model", "dtype", "thinking")},
                "data": {"path": str(folder / "data")},
                "optimizer": {"learning_rate": 0.01},
                "training": {"steps": 3, "max_seq_len": 128, "batch_size": 8, "dtype": "float32"},
            },
            "evaluate": evaluation(pair, folder, "after", mesh=mesh),
        }
        raw["synthesize"]["data"]["rollouts"] = raw["evaluate"]["tasks"][0]["samples"] = 1
        for part in ("synthesize", "evaluate"):
            raw[part]["synthesis"] |= {
                "max_response_tokens": 12,
                "rounds_per_dispatch": 16,
                "lanes": 4,
            }  # each token crosses processes
        (folder / "raw.json").write_text(json.dumps(raw))
        options = ["join"] if processes > 1 else []
        codes, outputs = ended(
            start("-c", FUSED, folder / "raw.json", *options, devices=2 // processes, processes=processes)
        )
        assert codes == [0] * processes, outputs
        results.append(last(outputs))
    (loss, tasks, back), (other_loss, other_tasks, other_back) = results
    assert other_loss == pytest.approx(loss, rel=1e-5)
    assert back
    assert other_back
    assert [task["problems"] for task in tasks.values()] == [task["problems"] for task in other_tasks.values()]


def test_a_refusal_of_the_first_process_or_different_input_stops_all_processes(pair, tmp_path):
    file = written(tmp_path / "run.yaml", synthesis(pair, tmp_path, "run"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "letter.txt").write_text("not of a run")
    codes, outputs = ended(tessy("synthesize", file))
    assert codes == [2, 2], outputs
    assert all("holds 'letter.txt' but no run" in error for _, error in outputs)
    (tmp_path / "other").mkdir()
    other = write_prompts(tmp_path / "other" / "prompts.jsonl", 7)
    codes, outputs = ended(tessy("synthesize", file, each=((), ("--set", f"data.path={other}"))))
    assert codes == [2, 2], outputs
    assert all("process 1 reads other data than process 0" in error for _, error in outputs)
    assert CLOSE not in outputs[0][1], "it was refused only after the work"
