"""A job writes every response exactly once, also after crashes. Bad input is refused before any work."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import yaml

from tessy_jax.cli import main
from tessy_jax.records import Row, validate
from tessy_jax.text import bridges
from tests.synthesis.tiny_pair import CLOSE, build, sentencepiece_tokenizer, settings, write_prompts


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pair"))


@pytest.fixture
def config(pair, tmp_path):
    def write(name="config.yaml", **changes):
        raw = settings(pair, write_prompts(tmp_path / "prompts.jsonl"), tmp_path / "run", **changes.pop("synthesis", {}))
        for key, value in changes.items():
            raw[key] = {**raw[key], **value} if isinstance(value, dict) and isinstance(raw.get(key), dict) else value
        file = tmp_path / name
        file.write_text(yaml.safe_dump(raw))
        return file

    return write


def printed(capsys, *args):
    capsys.readouterr()
    code = main([str(a) for a in args])
    return code, capsys.readouterr()


def rows_of(capsys, run, *options):
    code, out = printed(capsys, "rows", run, *options)
    assert code == 0, out.err
    return [json.loads(line) for line in out.out.splitlines()]


def without_time(row):
    return {**row, "meta": {k: v for k, v in row["meta"].items() if k != "seconds"}}


def test_rows_tile_their_content_and_come_in_the_order_of_the_input(config, tmp_path, capsys):
    code, out = printed(capsys, "synthesize", config(), "--json")
    assert code == 0, out.err
    summary = json.loads(out.out)
    rows = rows_of(capsys, tmp_path / "run")
    failures = rows_of(capsys, tmp_path / "run", "--failures")
    assert len(rows) + len(failures) == 40
    assert len(rows) >= 20, summary["run"]
    assert [(int(r["prompt_id"]), r["rollout"]) for r in rows] == sorted((int(r["prompt_id"]), r["rollout"]) for r in rows)
    assert {r["prompt_id"] + f"/{r['rollout']}" for r in [*rows, *failures]} == {
        f"{i}/{k}" for i in range(10) for k in range(4)
    }
    for raw in rows:
        row = Row.from_json(raw)
        validate(row)
        content = row.content
        assert content.startswith("<think>\n")
        opening, *_ = row.spans
        assert (opening.source, opening.start) == ("template", 0)
        close = next(s for s in row.spans[1:] if s.source == "template")
        assert content[close.start : close.end] == CLOSE or content[: close.end].endswith(CLOSE)
        assert all(s.phase == ("think" if s.start < close.end else "answer") for s in row.spans)
        assert {s.source for s in row.spans if s.phase == "answer"} <= {"student"}
        assert row.meta["tokens_student"] > 0
    sources = {s["source"] for r in rows for s in r["spans"]}
    assert sources == {"student", "teacher", "template"}
    assert summary["host_syncs"] > 0
    names = {c["name"] for c in summary["compilations"]}
    assert len(names) == len(summary["compilations"])
    assert len(rows_of(capsys, tmp_path / "run", "--legacy-dialogs")) == len(rows)


@pytest.mark.slow
def test_a_run_with_automatic_lanes_gives_the_same_rows(config, tmp_path, capsys):
    expected, lanes = {}, {"4": 4, "auto": 8}
    for number, expected_lanes in lanes.items():
        run = tmp_path / number
        file = config(f"{number}.yaml", output=str(run), data={"rollouts": 1, "limit": 8})
        code, out = printed(capsys, "synthesize", file, "--json", "--set", f"synthesis.lanes={number}")
        assert code == 0, out.err
        assert json.loads(out.out)["lanes"] == expected_lanes
        rows = {row["id"]: without_time(row) for row in rows_of(capsys, run)}
        assert rows
        assert rows == (expected or rows)
        expected = rows


@pytest.mark.slow
@pytest.mark.parametrize("limit", [5, 10, 25])
def test_kill_9_at_random_instants_changes_nothing(limit, config, tmp_path, capsys):
    """40 responses; the process is started again after each kill. Time in the rows' meta aside, every byte is the same."""
    assert main(["synthesize", str(config()), "--json"]) == 0
    expected = {r["id"]: without_time(r) for r in rows_of(capsys, tmp_path / "run")}
    expected_failures = sorted(json.dumps(f) for f in rows_of(capsys, tmp_path / "run", "--failures"))
    file = config("killed.yaml", output=str(tmp_path / "killed"))
    environment = {**os.environ, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "tessy_jax.cli", "synthesize", str(file), "--json"]
    rng = random.Random(7)
    kills, started = 0, None
    longest_wait = 10.0
    while True:
        begin = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait = rng.uniform(0.2, longest_wait) if kills < limit else None
        try:
            _, error = process.communicate(timeout=wait)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            kills += 1
            continue
        assert process.returncode == 0, error
        started = time.monotonic() - begin
        if kills >= limit:
            break
        longest_wait = max(1.0, started)  # it ended before the kill: aim at an earlier instant of a new job
        os.rename(tmp_path / "killed", tmp_path / f"ended-{kills}-{time.monotonic_ns()}")
    rows = rows_of(capsys, tmp_path / "killed")
    assert len(rows) == len({r["id"] for r in rows})
    assert {r["id"]: without_time(r) for r in rows} == expected
    assert sorted(json.dumps(f) for f in rows_of(capsys, tmp_path / "killed", "--failures")) == expected_failures


KILLED_WHILE_PARKED = """
import os, signal, sys
from tessy_jax.cli import main
from tessy_jax.decode.engine import Engine

run, dispatches = Engine.run, []

def counted(self, **options):
    status = run(self, **options)
    dispatches.append(bool(self._parked))
    if sum(dispatches) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return status

Engine.run = counted
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_run_killed_while_lanes_are_parked_continues_on_another_mesh_with_another_pool(config, tmp_path, capsys):
    prompts = tmp_path / "long.jsonl"
    lines = [{"id": i, "prompt": f"add {i} and {i * i}" + " please let me check it again" * 12} for i in range(6)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))

    def file(name):
        sizes = {"max_prompt_tokens": 384, "cache_tokens": 896}
        return config(
            f"{name}.yaml", output=str(tmp_path / name), data={"path": str(prompts), "rollouts": 2}, synthesis=sizes
        )

    assert main(["synthesize", str(file("whole")), "--json", "--set", "synthesis.cache_tokens=null"]) == 0
    command = [sys.executable, "-c", KILLED_WHILE_PARKED, "synthesize", str(file("killed")), "--json"]
    assert subprocess.run(command, check=False, capture_output=True).returncode == -signal.SIGKILL
    assert len(rows_of(capsys, tmp_path / "killed")) < len(rows_of(capsys, tmp_path / "whole"))
    changed = ("mesh=data=2", "synthesis.cache_tokens=2560", "synthesis.lanes=6")
    options = [part for change in changed for part in ("--set", change)]
    assert main(["synthesize", str(file("killed")), "--json", *options]) == 0
    for kind in ((), ("--failures",)):
        whole, killed = (rows_of(capsys, tmp_path / name, *kind) for name in ("whole", "killed"))
        if not kind:
            whole, killed = ({row["id"]: without_time(row) for row in rows} for rows in (whole, killed))
            assert whole
        assert killed == whole


def test_a_finished_run_started_again_does_nothing_and_one_with_other_settings_is_refused(config, tmp_path, capsys):
    file = config(data={"rollouts": 1, "limit": 2})
    assert main(["synthesize", str(file), "--json"]) == 0
    before = rows_of(capsys, tmp_path / "run")
    assert main(["synthesize", str(file), "--json", "--set", "synthesis.lanes=2"]) == 0
    assert rows_of(capsys, tmp_path / "run") == before
    code, out = printed(capsys, "synthesize", file, "--set", "seed=9")
    assert code == 2
    assert "seed" in out.err


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["student_only", "teacher_only"])
def test_one_model_alone_writes_through_the_same_engine(config, tmp_path, capsys, recipe):
    code, out = printed(capsys, "synthesize", config(synthesis={"recipe": recipe}, data={"limit": 5}), "--json")
    assert code == 0, out.err
    rows = rows_of(capsys, tmp_path / "run")
    assert rows
    name = recipe.removesuffix("_only")
    assert {s["source"] for r in rows for s in r["spans"]} == {name, "template"}
    assert json.loads(out.out)["discarded_tokens"] == {name: 0}


def test_traces_cut_inside_thinking_or_answer_record_their_finish_reason(pair, tmp_path, capsys):
    from tessy_jax.config import Synthesize
    from tessy_jax.synthesis.job import synthesize

    prompts = write_prompts(tmp_path / "prompts.jsonl")
    raw = settings(pair, prompts, tmp_path / "run", recipe="student_only", max_response_tokens=8, max_attempts=1)
    summary = synthesize(Synthesize.model_validate(raw), unfinished=True, progress=False).summary
    rows = rows_of(capsys, tmp_path / "run")
    assert len(rows) + sum(summary["failures"].values()) == 40
    ends, cut = {"stop": 0, "length": 0, "early_end": 0}, {False: 0, True: 0}
    for row in map(Row.from_json, rows):
        end = row.meta["finish_reason"]
        ends[end] += 1
        assert row.content.startswith("<think>\n")
        answers = bool(row.content.partition(CLOSE)[2])
        assert {span.phase for span in row.spans} == {"think", *(["answer"] if answers else [])}
        assert (CLOSE in row.content) >= (end == "stop")
        assert (CLOSE in row.content) <= (end != "early_end")
        if end == "length":
            cut[CLOSE in row.content] += 1
        if end == "length" and CLOSE not in row.content:
            assert row.meta["tokens_student"] == 8
    assert min(ends["length"], ends["early_end"], *cut.values()) > 0, (ends, cut)


@pytest.mark.slow
def test_a_sentencepiece_vocabulary_gives_the_same_responses_on_the_device_and_on_the_host(
    tmp_path, capsys, caplog, monkeypatch
):
    pair = build(tmp_path, teacher=sentencepiece_tokenizer(tmp_path, byte_fallback=True))
    responses, summaries = {}, {}
    for place in ("device", "host"):
        if place == "host":
            monkeypatch.setattr(bridges, "sentencepiece_bridge", lambda content: None)
        file, run = tmp_path / f"{place}.yaml", tmp_path / place
        file.write_text(yaml.safe_dump(settings(pair, write_prompts(tmp_path / "prompts.jsonl", 3), run)))
        code, out = printed(capsys, "synthesize", file, "--json")
        assert code == 0, out.err
        assert ("on the host only" in out.err + caplog.text) == (place == "host")
        summaries[place] = json.loads(out.out)
        rows = [without_time(row) for row in rows_of(capsys, run)]
        responses[place] = rows, [without_time(row) for row in rows_of(capsys, run, "--failures")]
    rows, failures = responses["device"]
    assert responses["host"] == (rows, failures)
    assert summaries["host"]["host_syncs"] > max(summaries["host"]["rounds"], summaries["device"]["host_syncs"])
    assert len(rows) + len(failures) == 12
    written = [(span.source, span.phase) for row in rows for span in Row.from_json(row).spans]
    assert set(written) >= {("student", "think"), ("teacher", "think")}


def test_a_prompt_that_is_too_long_is_a_recorded_failure(config, tmp_path, capsys):
    code, out = printed(capsys, "synthesize", config(synthesis={"max_prompt_tokens": 20}, data={"rollouts": 1}), "--json")
    assert code == 2
    assert "every response failed; `tessy rows --failures` gives the reasons" in out.err
    assert json.loads(out.out)["run"]["failures"] == {"prompt_too_long": 10}
    failures = rows_of(capsys, tmp_path / "run", "--failures")
    assert {f["reason"] for f in failures} == {"prompt_too_long"}
    assert len(failures) == 10


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"student": {"thinking": {"open": None, "close": None}}}, "thinking.open"),
        ({"synthesis": {"lane": 3}}, "synthesis.lanes"),
        ({"boundary": {"student": "{student}"}}, "2 labels"),
        ({"student": {"model": "{student-predictor}"}}, "token classifier"),
        ({"synthesis": {"max_response_tokens": 4000}}, "positions"),
        ({"data": {"path": "nowhere.jsonl"}}, "nowhere.jsonl"),
    ],
)
def test_bad_configurations_are_refused_before_any_work(config, pair, tmp_path, capsys, changes, says):
    filled = json.loads(json.dumps(changes))
    for part in filled.values():
        for key, value in part.items():
            if isinstance(value, str) and value.startswith("{"):
                part[key] = pair[value.strip("{}")]
    code, out = printed(capsys, "synthesize", config(**filled))
    assert code == 2
    assert says in out.err
    assert not (tmp_path / "run" / "responses").exists() or not list((tmp_path / "run" / "responses").iterdir())


def test_a_predictor_whose_vocabulary_fits_neither_model_is_refused(config, pair, tmp_path, capsys):
    import shutil

    strange = tmp_path / "strange"
    shutil.copytree(pair["student-predictor"], strange)
    content = json.loads((strange / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    vocab["Q"], vocab["Z"] = vocab["Z"], vocab["Q"]
    (strange / "tokenizer.json").write_text(json.dumps(content))
    code, out = printed(capsys, "synthesize", config(boundary={"student": str(strange)}))
    assert code == 2
    assert "vocabulary" in out.err


def test_bad_rows_stop_the_job_or_are_recorded(config, tmp_path, capsys):
    file = config(data={"rollouts": 1, "limit": 3})
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(prompts.read_text().split("\n")[0] + "\n{torn\n" + '{"id": 0, "prompt": "another"}\n')
    code, out = printed(capsys, "synthesize", file)
    assert code == 2
    assert "prompts.jsonl:2" in out.err
    code, out = printed(capsys, "synthesize", file, "--json", "--set", "data.skip_invalid=true")
    assert code == 0, out.err
    assert [f["reason"] for f in rows_of(capsys, tmp_path / "run", "--failures") if f["attempts"] == 0] == [
        "invalid_row"
    ] * 2


def test_a_dry_run_needs_no_weights_and_writes_nothing(config, pair, tmp_path, capsys):
    for name in ("student", "teacher"):
        os.rename(f"{pair[name]}/model.safetensors", f"{pair[name]}/hidden")
    try:
        code, out = printed(capsys, "synthesize", config(), "--dry-run")
    finally:
        for name in ("student", "teacher"):
            os.rename(f"{pair[name]}/hidden", f"{pair[name]}/model.safetensors")
    assert code == 0, out.err
    for text in ("40 responses to 10 prompts", "first prompt of the teacher", "total  ", "prefill 0", "(gpt2)", "(qwen2)"):
        assert text in out.out
    assert not (tmp_path / "run").exists()
