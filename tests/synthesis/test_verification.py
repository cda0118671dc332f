"""A finished response is verified once. A wrong one is kept with its verdict, recorded as a failure, or written again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import nullcontext
from itertools import islice

import pytest
import yaml

from tessy_jax.cli import main
from tessy_jax.config import Comparison, Predictors, Synthesize, read
from tessy_jax.config.evaluation import Evaluate
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.evaluate.verification import response_verifiers
from tessy_jax.mini import evaluation as mini
from tessy_jax.mini.tasks import item_of, items
from tessy_jax.mini.verify import is_right
from tessy_jax.records import Failure
from tessy_jax.store import RunReader
from tessy_jax.synthesis.job import responses, synthesize
from tests import several
from tests.conftest import ROOT
from tests.small_job import MODELS

ATTEMPTS = 3


def written(folder, name, verification, *, prompts=16, **changes):
    """A configuration file: the miniature's student alone, on sums of which it solves about half."""
    rows = [
        {"id": item.id, "prompt": item.prompt}
        for family in ("Ae", "Ah")
        for item in islice(items(family, "train", 1), prompts // 2)
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = {
        "output": str(folder / name),
        "date": "2026-01-01",
        "data": {"path": str(folder / "prompts.jsonl")},
        "student": {
            "model": str(MODELS / "student-0"),
            "dtype": "float32",
            "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0},
        },
        "synthesis": {
            "recipe": "student_only",
            "max_prompt_tokens": 40,
            "max_response_tokens": 168,
            "max_attempts": ATTEMPTS,
            "lanes": 8,
            "verification": verification,
        },
    }
    for key, value in changes.items():
        raw[key] = raw[key] | value if isinstance(value, dict) and key in raw else value
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(raw))
    return file


def rows_and_failures(folder):
    """Rows and failures by id, without times."""
    reader = RunReader(str(folder))
    rows = {row.id: row for row in reader.rows()}
    for row in rows.values():
        row.meta.pop("seconds")
    return rows, {failure.id: failure for failure in reader.failures()}


def right(row):
    return is_right(item_of(row.prompt_id), row.content)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Run folders of the same job, with each treatment of wrong responses and without verification."""
    folder = tmp_path_factory.mktemp("verified")
    for wrong in ("keep", "drop", "resample", "unverified"):
        verification = None if wrong == "unverified" else {"verifier": "mini", "wrong": wrong}
        assert main(["synthesize", str(written(folder, wrong, verification)), "--json"]) == 0
    return folder


def test_kept_responses_carry_their_verdict_and_otherwise_equal_those_of_an_unverified_run(folder):
    rows, failures = rows_and_failures(folder / "keep")
    plain, same = rows_and_failures(folder / "unverified")
    assert {row.meta["verified"] for row in rows.values()} == {True, False}, "the job has to have both"
    for row in rows.values():
        assert row.meta["verified"] == right(row) == (row.meta["verdict"] == "right")
        others = {key: value for key, value in row.meta.items() if key not in ("verified", "verdict")}
        assert (others, row.content) == (plain[row.id].meta, plain[row.id].content)
    assert rows.keys() == plain.keys()
    assert failures == same
    summary = json.loads((folder / "keep" / "summary.json").read_text())
    assert summary["verdicts"] == summary["run"]["verdicts"] == Counter(row.meta["verdict"] for row in rows.values())


def test_dropped_responses_are_recorded_and_right_ones_are_unchanged(folder):
    kept, others = rows_and_failures(folder / "keep")
    rows, failures = rows_and_failures(folder / "drop")
    assert {name: row.content for name, row in rows.items()} == {n: row.content for n, row in kept.items() if right(row)}
    dropped = {name: failure for name, failure in failures.items() if failure.reason == "wrong_answer"}
    assert dropped.keys() == {name for name, row in kept.items() if not right(row)}
    assert all(failure.attempts == kept[name].meta["attempt"] + 1 for name, failure in dropped.items())
    assert failures.keys() - dropped.keys() == others.keys()
    summary = json.loads((folder / "drop" / "summary.json").read_text())
    assert summary["failures"]["wrong_answer"] == summary["run"]["failures"]["wrong_answer"] == len(dropped)
    assert "wrong_answer" not in summary["retries"]


def test_a_resampled_response_becomes_right_or_fails_after_its_attempts(folder, capsys):
    kept, _ = rows_and_failures(folder / "keep")
    rows, failures = rows_and_failures(folder / "resample")
    assert len(rows) + len(failures) == len(kept) + len(rows_and_failures(folder / "keep")[1])
    assert all(map(right, rows.values()))
    assert all(rows[name].content == row.content for name, row in kept.items() if right(row))
    again = [name for name in rows if name in kept and not right(kept[name])]
    assert again, "the job has to have some that become right later"
    assert all(rows[name].meta["attempt"] > kept[name].meta["attempt"] for name in again)
    assert {failure.attempts for failure in failures.values()} == {ATTEMPTS}
    summary = json.loads((folder / "resample" / "summary.json").read_text())
    assert summary["verdicts"]["right"] == len(rows)
    assert summary["verdicts"]["wrong_answer"] == summary["retries"]["wrong_answer"] + summary["failures"]["wrong_answer"]
    tokens = {name: summary[f"{name}_tokens"]["student"] for name in ("generated", "kept", "discarded", "failed")}
    assert tokens["generated"] == tokens["kept"] + tokens["discarded"] + tokens["failed"]
    assert tokens["failed"] > 0
    capsys.readouterr()
    assert main(["rows", str(folder / "resample"), "--failures"]) == 0
    shown = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["id"]: line["reason"] for line in shown} == {name: failure.reason for name, failure in failures.items()}
    assert "synthesis.verification" in next(line["detail"] for line in shown if line["reason"] == "wrong_answer")


def test_streamed_responses_get_the_same_verdicts(folder):
    config = read(Synthesize, folder / "drop.yaml")
    results = list(responses(config, verifiers=response_verifiers(mini.TASK_KINDS)))
    rows, failures = rows_and_failures(folder / "drop")
    assert {result.id: result.reason for result in results if isinstance(result, Failure)} == {
        name: failure.reason for name, failure in failures.items()
    }
    finished = {result.id: result.content for result in results if not isinstance(result, Failure)}
    assert finished == {name: row.content for name, row in rows.items()}


def broken(*_):
    pytest.fail("the models were loaded")


@pytest.mark.parametrize(
    ("verification", "row", "says"),
    [
        ({"verifier": "exact"}, {"prompt": "b?"}, r"prompts\.jsonl:2: has no `answer`"),
        ({"verifier": "exact", "answer": "solution"}, {"prompt": "b?", "answer": "x"}, r":2: has no `solution`"),
        ({"verifier": "integer"}, {"prompt": "b?", "answer": "1000"}, r":2: answer is '1000'; it should be a whole number"),
        (
            {"verifier": "choice"},
            {"prompt": "b?", "answer": "E", "choices": ["x", "y"]},
            r":2: answer is 'E'; it should be one",
        ),
        ({"verifier": "mini"}, {"prompt": "b?", "id": "x"}, r":1: .* is not an id of a miniature task"),
    ],
)
def test_a_prompt_without_a_right_answer_is_named_before_any_work_or_recorded(
    tmp_path, monkeypatch, verification, row, says
):
    config = read(Synthesize, written(tmp_path, "run", {**verification, "wrong": "drop"}))
    lines = [{"prompt": "a?", "answer": "1", "solution": "1"}, row]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setattr("tessy_jax.synthesis.job.ModelSet", broken)
    with pytest.raises(DataError, match=says):
        synthesize(config, verifiers=response_verifiers({**TASK_KINDS, **mini.TASK_KINDS}))
    assert not (tmp_path / "run").exists()


def test_a_row_without_a_right_answer_is_skipped_with_skip_invalid(folder, tmp_path):
    file = written(tmp_path, "run", {"verifier": "mini", "wrong": "drop"}, data={"skip_invalid": True})
    prompts = tmp_path / "prompts.jsonl"
    lines = prompts.read_text().splitlines()[:2]
    prompts.write_text("\n".join([lines[0], '{"id": "x", "prompt": "A 1 + 1"}', lines[1]]) + "\n")
    assert main(["synthesize", str(file), "--json"]) == 0
    rows, failures = rows_and_failures(tmp_path / "run")
    (skipped,) = [failure for failure in failures.values() if failure.reason == "invalid_row"]
    assert "is not an id of a miniature task" in skipped.detail
    assert len(rows) + len(failures) == 3


def test_a_missing_verifier_is_refused_before_any_work(tmp_path):
    config = read(Synthesize, written(tmp_path, "run", {"verifier": "mini"}))
    with pytest.raises(ConfigError, match="no verifiers were given"):
        synthesize(config)
    with pytest.raises(ConfigError, match="no verifier 'mini' here, only exact, boxed"):
        synthesize(config, verifiers=response_verifiers())
    with pytest.raises(ConfigError, match="no verifier 'mini' here"):
        next(
            responses(
                config, verifiers=response_verifiers({"exact": mini.TASK_KINDS["mini"]._replace(verifier=nullcontext)})
            )
        )


def test_unusable_verification_settings_are_refused_with_the_remedy(tmp_path):
    with pytest.raises(ConfigError, match=r"max_attempts 1, which leaves no second attempt; set max_attempts to 2"):
        read(Synthesize, written(tmp_path, "run", {"verifier": "mini"}), ["synthesis.max_attempts=1"])
    with pytest.raises(ConfigError, match=r"synthesis.verification.verifier is 'maths'"):
        read(Synthesize, written(tmp_path, "run", {"verifier": "maths"}))
    own = {"verifier": "exact"}
    task = {"name": "a", "path": "p.jsonl", "verifier": "exact"}
    raw = {"output": "x", "student": {"model": "s"}, "tasks": [task], "synthesis": {"verification": own}}
    (tmp_path / "evaluate.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"synthesis.verification is .*it should be None"):
        read(Evaluate, tmp_path / "evaluate.yaml")
    raw = {"output": "x", "student": {"model": "s"}, "data": {"path": "p"}, "synthesis": {"verification": own}}
    (tmp_path / "predictors.yaml").write_text(yaml.safe_dump(raw))
    with pytest.raises(ConfigError, match=r"synthesis.verification is set, but traces .* leave it null"):
        read(Predictors, tmp_path / "predictors.yaml")


def test_a_variant_of_a_comparison_may_verify():
    overrides = [
        f"variants.{name}={{synthesis.verification: {{verifier: mini, wrong: {name}}}}}" for name in ("keep", "drop")
    ]
    config = read(Comparison, ROOT / "configs" / "mini_table.yaml", overrides)
    sections = {cell.variant: cell.config.synthesis.verification for cell in config.cells()}
    verifications = {name: section and (section.verifier, section.wrong) for name, section in sections.items()}
    assert verifications == dict.fromkeys(config.variants) | {name: ("mini", name) for name in ("keep", "drop")}
    single = read(
        Comparison, ROOT / "configs" / "mini_table.yaml", ["variants.tessy={synthesis.verification.verifier: mini}"]
    )
    assert next(single.cells()).config.synthesis.verification.wrong == "resample"


@pytest.mark.slow
def test_a_killed_resampling_continues_to_the_same_responses(folder, tmp_path):
    expected = rows_and_failures(folder / "resample")
    quick = {"synthesis": {"snapshot_seconds": 0, "rounds_per_dispatch": 8}}
    file = written(tmp_path, "run", {"verifier": "mini"}, **quick)
    command = [sys.executable, "-m", "tessy_jax.cli", "synthesize", str(file), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for snapshots in (1, 4):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list((tmp_path / "run").glob("snapshots/*.bin"))) < 1:
            time.sleep(0.01)
        time.sleep(0.1 * snapshots)
        assert process.poll() is None, "it ended before it was killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    assert rows_and_failures(tmp_path / "run") == expected


@pytest.mark.slow
def test_two_processes_resample_as_one_does(folder, tmp_path):
    file = written(tmp_path, "run", {"verifier": "mini"}, mesh={"data": 2})
    codes, outputs = several.ended(several.tessy("synthesize", file, devices=1))
    assert codes == [0, 0], outputs
    assert rows_and_failures(tmp_path / "run") == rows_and_failures(folder / "resample")
