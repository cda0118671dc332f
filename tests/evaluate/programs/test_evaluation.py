"""An evaluation of programs records the verdicts of both graders and the sandbox; no model sees a test."""

import json

import pytest

from tessy_jax.config.evaluation import Evaluate
from tessy_jax.evaluate.job import TASK_KINDS, evaluate
from tessy_jax.evaluate.programs import verifier
from tessy_jax.evaluate.programs.verifier import task_kind
from tests.synthesis.tiny_pair import build, settings

TASK = {"name": "code", "verifier": "programs", "samples": 4, "programs": {"seconds": 2.0}}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pair"))


def test_an_evaluation_of_programs_counts_both_graders_and_logs_its_sandbox(pair, tmp_path, monkeypatch):
    rows = [{"id": f"p{i}", "prompt": f"add {i}", "tests": [{"input": "", "output": "1.0 HIDDEN"}]} for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    programs = {0: None, 1: "print('1.0  HIDDEN')", 2: "print('1.0 HIDDEN')", 3: "print(2)"}
    monkeypatch.setattr(verifier, "program", lambda answer: programs[len(answer) % 4])
    given = settings(pair, tmp_path / "unused", tmp_path / "run")
    synthesis = {k: v for k, v in given["synthesis"].items() if k not in ("max_attempts", "student_step", "teacher_step")}
    raw = {k: given[k] for k in ("output", "seed", "student")} | {"synthesis": synthesis}
    raw["tasks"] = [TASK | {"path": str(tmp_path / "rows.jsonl")}]
    messages = []
    config = Evaluate.model_validate(raw)
    summary = evaluate(
        config, task_kinds={**TASK_KINDS, "programs": task_kind(unsafe=True)}, progress=False, log=messages.append
    ).summary
    lines = [json.loads(line) for line in (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()]
    assert len(lines) == 12
    verified = [line for line in lines if line["reason"] in ("right", "wrong_answer", "no_program")]
    assert verified, "no response was finished"
    for line in verified:
        right = {"strict": "1.0" in (line["answer"] or ""), "compat": "1.0 HIDDEN" in (line["answer"] or "")}
        assert line["graders"] == right
        assert line["right"] == right["strict"]
    task = summary["tasks"]["code"]
    for grader in ("strict", "compat"):
        assert task["graders"][grader]["right"] == sum(line["graders"][grader] for line in verified)
    assert task["graders"]["strict"]["right"] == task["right"]
    assert "in the sandbox" in task["verifier_note"]
    assert any("task code: programs run in the sandbox" in text for text in messages)
    assert "HIDDEN" not in (tmp_path / "run" / "prompts.jsonl").read_text()
