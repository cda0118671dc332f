"""An evaluation verifies and counts every response once, also after interruptions and failures."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import nullcontext

import pytest

from tessy_jax.config.evaluation import Evaluate
from tessy_jax.errors import ConfigError
from tessy_jax.evaluate.answers import Exact
from tessy_jax.evaluate.job import TASK_KINDS, evaluate, rollouts, verdict
from tessy_jax.evaluate.tasks import Problem, TaskKind, table_problems
from tessy_jax.mini import evaluation as mini
from tessy_jax.models import hf
from tessy_jax.records import Failure, Row, Span
from tessy_jax.store import RunReader
from tests.synthesis.tiny_pair import CLOSE, build, settings

ALL = {**TASK_KINDS, **mini.TASK_KINDS}
FAMILIES = ("sums", "differences")


def quiet(text):
    """A URL without a server."""


def write_problems(file, answers=None):
    rows = [
        {"id": i, "prompt": f"add {i} and {i * i}", "answer": (answers or {}).get(str(i), "?"), "family": FAMILIES[i % 2]}
        for i in range(6)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def configured(pair, tmp_path, output, path, *, tasks=None, **changes):
    given = settings(pair, tmp_path / "unused", tmp_path / output)
    synthesis = {k: v for k, v in given["synthesis"].items() if k not in ("max_attempts", "student_step", "teacher_step")}
    raw = {k: given[k] for k in ("output", "seed", "student")}
    raw["tasks"] = tasks or [
        {"name": "sums", "path": path, "verifier": "exact", "samples": 4},
        {"name": "boxes", "path": path, "verifier": "boxed", "domain": "out", "samples": 2, "limit": 2},
        {"name": "mini", "verifier": "mini", "domain": "out", "samples": 2, "mini": {"families": ["B", "D"], "items": 2}},
    ]
    return Evaluate.model_validate(raw | {"synthesis": synthesis} | changes)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pair"))


def answers_of(run):
    """The first answer to each problem of `sums`, by the problem's own id. Answers with braces are refused as references."""
    answers = {}
    for line in (run / "verdicts.jsonl").read_text().splitlines():
        row = json.loads(line)
        if row["task"] == "sums" and row["answer"] is not None and not set(row["answer"]) & set("{}"):
            answers.setdefault(row["prompt_id"].removeprefix("sums/"), row["answer"])
    return answers


@pytest.fixture(scope="module")
def finished(pair, tmp_path_factory):
    """An evaluation in which some answers are right, because its problems were made from what the model says."""
    folder = tmp_path_factory.mktemp("finished")
    path = write_problems(folder / "problems.jsonl")
    blind = configured(
        pair, folder, "blind", path, tasks=[{"name": "sums", "path": path, "verifier": "exact", "samples": 4}]
    )
    evaluate(blind, progress=False, log=quiet)
    write_problems(folder / "problems.jsonl", answers_of(folder / "blind"))
    config = configured(pair, folder, "run", path)
    return config, folder, evaluate(config, task_kinds=ALL, progress=False, log=quiet)


def verdicts(folder):
    return [json.loads(line) for line in (folder / "run" / "verdicts.jsonl").read_text().splitlines()]


def test_every_response_has_one_verdict_in_the_order_of_tasks_problems_and_rollouts(finished):
    config, folder, _ = finished
    rows = verdicts(folder)
    expected = [f"sums/{i}/{k}" for i in range(6) for k in range(4)] + [f"boxes/{i}/{k}" for i in range(2) for k in range(2)]
    assert [row["id"] for row in rows[:28]] == expected
    assert [row["family"] for row in rows[28:]] == ["B"] * 4 + ["D"] * 4
    reader = RunReader(rollouts(config.output))
    responses, failures = {row.id: row for row in reader.rows()}, {failure.id: failure for failure in reader.failures()}
    assert {row["id"] for row in rows} == set(responses) | set(failures)
    assert failures, "nothing failed, so that nothing shows how that counts"
    for row in rows:
        if row["id"] in failures:
            assert not row["right"]
            assert row["answer"] is None
            assert row["reason"] == failures[row["id"]].reason
            assert failures[row["id"]].attempts == 1, "a response was retried"
        elif row["task"] == "sums":
            _, closed, answer_text = responses[row["id"]].content.partition(CLOSE)
            assert closed
            assert row["right"] == Exact().verify(Problem("", "", None, [], row["reference"]), answer_text).right


def test_the_figures_are_those_of_a_plain_count(finished):
    _, folder, evaluated = finished
    rows = verdicts(folder)
    reader = RunReader(str(folder / "run" / "rollouts"))
    tokens = {row.id: row.meta["tokens_student"] for row in reader.rows()}
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary == evaluated.summary

    def check(figures, own):
        shares = {}
        for row in own:
            shares.setdefault(row["prompt_id"], []).append(row["right"])
        assert figures["problems"] == len(shares)
        assert figures["samples"] == len(own)
        assert figures["right"] == sum(row["right"] for row in own)
        mean = sum(sum(verdicts_of_prompt) / len(verdicts_of_prompt) for verdicts_of_prompt in shares.values()) / len(shares)
        assert figures["pass@1"] == pytest.approx(mean, abs=1e-6)
        assert figures["interval"][0] <= mean <= figures["interval"][1]
        assert figures["pass@k"]["1"] == pytest.approx(mean, abs=1e-6)
        if {len(verdicts_of_prompt) for verdicts_of_prompt in shares.values()} == {4}:
            assert figures["pass@k"]["4"] == pytest.approx(sum(map(any, shares.values())) / len(shares), abs=1e-6)
        lengths = [tokens[row["id"]] for row in own if row["id"] in tokens]
        assert figures["mean_tokens"] == pytest.approx(sum(lengths) / len(lengths), abs=0.01)
        assert sum(figures["failures"].values()) == len(own) - len(lengths)
        assert sum(figures["wrong"].values()) == len(lengths) - figures["right"]

    sums = [row for row in rows if row["task"] == "sums"]
    check(summary["tasks"]["sums"], sums)
    assert summary["tasks"]["sums"]["right"] >= 4
    assert set(summary["tasks"]["sums"]["families"]) == set(FAMILIES)
    for family in FAMILIES:
        check(summary["tasks"]["sums"]["families"][family], [row for row in sums if row["family"] == family])
    check(summary["tasks"]["mini"], [row for row in rows if row["task"] == "mini"])
    check(summary["domains"]["in"], sums)
    check(summary["domains"]["out"], [row for row in rows if row["task"] != "sums"])


def test_a_response_depends_on_seed_problem_and_rollout_alone(pair, finished, tmp_path):
    _, folder, _ = finished
    path = str(folder / "problems.jsonl")
    alone = [{"name": "sums", "path": path, "verifier": "exact", "samples": 3, "limit": 3}]
    evaluate(configured(pair, tmp_path, "run", path, tasks=alone), progress=False, log=quiet)
    before = {row["id"]: row for row in verdicts(folder)}
    rows = verdicts(tmp_path)
    assert len(rows) == 9
    assert all(before[row["id"]] == row for row in rows)


def hidden(model):
    """The model's weights, away for a while: whatever loads them fails."""

    class Hidden:
        def __enter__(self):
            os.rename(f"{model}/model.safetensors", f"{model}/hidden")

        def __exit__(self, *_):
            os.rename(f"{model}/hidden", f"{model}/model.safetensors")

    return Hidden()


def test_a_finished_evaluation_is_only_read_and_one_without_its_verdicts_is_only_verified(pair, finished):
    config, folder, evaluated = finished
    run = folder / "run"
    names = [file for file in run.rglob("*") if file.is_file() and file.suffix in (".json", ".jsonl")]
    files = {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in names}
    with hidden(pair["student"]):
        again = evaluate(config, task_kinds=ALL, progress=False, log=quiet)
        assert again == (evaluated.summary, None)
        assert {file: (file.stat().st_mtime_ns, file.read_bytes()) for file in names} == files
        kept = (run / "verdicts.jsonl").read_bytes()
        (run / "summary.json").unlink()
        (run / "verdicts.jsonl").unlink()
        verified_again = evaluate(config, task_kinds=ALL, progress=False, log=quiet)
    assert (run / "verdicts.jsonl").read_bytes() == kept
    assert {**verified_again.summary, "seconds": 0} == {**evaluated.summary, "seconds": 0}


def test_other_settings_or_other_problems_are_refused_in_its_folder(pair, finished):
    config, folder, _ = finished
    with pytest.raises(ConfigError, match=r"other settings .*seed"):
        evaluate(config.model_copy(update={"seed": 4}), task_kinds=ALL, progress=False, log=quiet)
    assert evaluate(
        config.model_copy(update={"synthesis": config.synthesis.model_copy(update={"lanes": 2})}), task_kinds=ALL
    )
    file = folder / "problems.jsonl"
    kept = file.read_text()
    file.write_text(kept.replace('"add 0', '"ADD 0'))
    try:
        with pytest.raises(ConfigError, match="other problems: the data of a task has changed since"):
            evaluate(config, task_kinds=ALL, progress=False, log=quiet)
    finally:
        file.write_text(kept)


def test_weights_in_memory_are_used_and_returned(pair, finished, tmp_path):
    _, folder, _ = finished
    student = hf.load(hf.resolve(pair["student"]), dtype="float32")
    path = str(folder / "problems.jsonl")
    tasks = [{"name": "sums", "path": path, "verifier": "exact", "limit": 2}]
    with hidden(pair["student"]):
        for name in ("run", "again"):
            student = evaluate(
                configured(pair, tmp_path, name, path, tasks=tasks), student, progress=False, log=quiet
            ).student
            assert student is not None
    both = [(tmp_path / name / "verdicts.jsonl").read_bytes() for name in ("run", "again")]
    assert both[0] == both[1]
    before = {row["id"]: row for row in verdicts(folder)}
    assert all(before[row["id"]] == row for row in verdicts(tmp_path))


def test_an_evaluation_interrupted_during_verification_continues_to_the_same_verdicts(pair, finished, tmp_path):
    _, folder, _ = finished

    class Interrupted(Exact):
        calls = 0

        def verify(self, problem, answer):
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return super().verify(problem, answer)

    path = str(folder / "problems.jsonl")
    tasks = [{"name": "sums", "path": path, "verifier": "exact", "samples": 4}]
    config = configured(pair, tmp_path, "run", path, tasks=tasks)
    task_kinds = {"exact": TaskKind(table_problems, lambda task: nullcontext(Interrupted()))}
    with pytest.raises(KeyboardInterrupt):
        evaluate(config, task_kinds=task_kinds, progress=False, log=quiet)
    assert not (tmp_path / "run" / "summary.json").exists()
    with hidden(pair["student"]):
        evaluate(config, progress=False, log=quiet)
    assert verdicts(tmp_path) == [row for row in verdicts(folder) if row["task"] == "sums"]


@pytest.mark.slow
def test_kill_9_changes_nothing(pair, finished, tmp_path):
    """The process is ended 4 times: while it starts, writes, and verifies."""
    config, folder, _ = finished
    own = config.model_copy(update={"output": str(tmp_path / "run")})
    (tmp_path / "config.json").write_text(own.model_dump_json())
    code = (
        "import sys, json; from tessy_jax.config.evaluation import Evaluate\n"
        "from tessy_jax.evaluate.job import TASK_KINDS, evaluate; from tessy_jax.mini import evaluation as mini\n"
        "evaluate(Evaluate.model_validate_json(open(sys.argv[1]).read()), task_kinds={**TASK_KINDS, **mini.TASK_KINDS})\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "config.json")]
    run = tmp_path / "run"
    stages = [
        (run / "config.yaml").exists,
        lambda: list(run.glob("*/snapshots/*.bin")),
        lambda: list(run.glob("*/responses/*.jsonl")),
        (run / "rollouts" / "summary.json").exists,
    ]
    for ready in stages:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while not ready() and process.poll() is None:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    assert verdicts(tmp_path) == verdicts(folder)


def test_only_the_text_after_the_thinking_counts():
    problem = Problem("t/1", "t", None, [{"role": "user", "content": "?"}], "7")

    def verified(thought, answer):
        parts = [("template", "think", "<think>\n"), ("student", "think", thought), ("template", "think", CLOSE)]
        spans, content = [], ""
        for source, phase, text in [*parts, *([("student", "answer", answer)] if answer else [])]:
            spans.append(Span(source, phase, len(content), len(content) + len(text)))
            content += text
        messages = ({"role": "user", "content": "?"}, {"role": "assistant", "content": content})
        return verdict(Exact(), problem, Row("t/1/0", "t/1", 0, messages, tuple(spans), {}))

    assert verified("the answer is 8", "the answer is 7").right
    assert verified("the answer is 7", "the answer is 8").why == "wrong_answer"
    assert verified("the answer is 7", "").why == "no_answer"
    assert verified("\\boxed{7}", "\n").why == "no_answer"
    for reason in ("early_end", "length", "repetition"):
        failed = verdict(Exact(), problem, Failure("t/1/0", "t/1", 0, reason, 1, "the answer is 7"))
        assert (failed.right, failed.answer, failed.why) == (False, None, reason)
