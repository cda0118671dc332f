"""An interrupted training ends with the same model, metrics agree with their sums, and invalid data are refused."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file
from transformers import AutoModelForCausalLM

from tessy_jax.cli import main
from tessy_jax.store import files
from tests.conftest import ROOT
from tests.synthesis.tiny_pair import CLOSE, build

OPEN = "<think>\n"
STEPS = 6


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    return build(tmp_path_factory.mktemp("pair"))["student"]


def row(number, words=3):
    rng = random.Random(number)
    text = ["".join(rng.choices("abc 12,.", k=rng.randint(3, 9 * words))) for _ in range(3)]
    pieces = [("template", OPEN), ("student", text[0]), ("teacher", text[1]), ("template", CLOSE), ("student", text[2])]
    spans, at = [], 0
    for i, (source, piece) in enumerate(pieces):
        spans.append({"source": source, "phase": "answer" if i == 4 else "think", "start": at, "end": at + len(piece)})
        at += len(piece)
    messages = [
        {"role": "user", "content": f"question {number}"},
        {"role": "assistant", "content": "".join(p for _, p in pieces)},
    ]
    return {"id": f"{number}/0", "prompt_id": str(number), "rollout": 0, "messages": messages, "spans": spans, "meta": {}}


def write(file, rows):
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return file


@pytest.fixture
def config(student, tmp_path):
    def make(output="run", rows=None, **changes):
        raw = {
            "output": str(tmp_path / output),
            "seed": 4,
            "student": {"model": student, "dtype": "float32", "thinking": {"open": OPEN, "close": CLOSE}},
            "data": {"path": str(write(tmp_path / "rows.jsonl", rows or [row(i) for i in range(40)]))},
            "optimizer": {"learning_rate": 0.01, "options": {"weight_decay": 0.1}},
            "training": {
                "steps": STEPS,
                "max_seq_len": 128,
                "batch_size": 8,
                "micro_batch_size": 8,
                "dtype": "float32",
                "save_every": 2,
            },
        }
        for key, value in changes.items():
            raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
        file = tmp_path / f"{output}.yaml"
        file.write_text(yaml.safe_dump(raw))
        return file

    return make


def train(capsys, file, *options):
    capsys.readouterr()
    code = main(["train", str(file), "--json", *options])
    out = capsys.readouterr()
    return code, json.loads(out.out) if code == 0 else out.err


def weights(folder):
    return load_file(Path(folder) / "model" / "model.safetensors")


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]


def test_a_training_writes_metrics_that_add_up_and_a_model_that_transformers_loads(config, student, tmp_path, capsys):
    code, summary = train(capsys, config(evaluation={"path": str(tmp_path / "rows.jsonl")}))
    assert code == 0, summary
    assert summary["finished"]
    metrics = lines(tmp_path / "run")
    assert [line["step"] for line in metrics] == list(range(1, STEPS + 1))
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert metrics[-1]["evaluation_loss"] < metrics[0]["loss"]
    for line in metrics:
        assert sum(line["tokens_by"].values()) == line["tokens"] > 0
        assert min(line["loss_cap"], line["loss_sty"]) > 0
        assert line["grad_norm"] > 0
    before, after = (
        AutoModelForCausalLM.from_pretrained(f, dtype=torch.float32) for f in (student, tmp_path / "run" / "model")
    )
    changed = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(changed)
    assert (tmp_path / "run" / "model" / "tokenizer.json").exists()


def test_an_interrupted_training_equals_an_uninterrupted_one(config, tmp_path, capsys, monkeypatch):
    """Interrupted by SIGTERM after a step that is not due to be saved."""
    assert train(capsys, config("uninterrupted"))[0] == 0
    from tessy_jax.train import loop

    original = loop.Trainer._line

    def line(self, number, *args):
        if number == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, number, *args)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "_line", line)
        code, summary = train(capsys, config("parts"))
    assert code == 0, summary
    assert (summary["steps"], summary["finished"]) == (3, False)
    code, summary = train(capsys, config("parts"))
    assert (summary["steps"], summary["steps_of_this_start"], summary["finished"]) == (STEPS, STEPS - 3, True)
    uninterrupted, parts = weights(tmp_path / "uninterrupted"), weights(tmp_path / "parts")
    assert all((uninterrupted[name] == parts[name]).all() for name in uninterrupted)
    untimed = [
        [{**line, "seconds": 0, "tokens_per_second": 0} for line in lines(tmp_path / name)]
        for name in ("uninterrupted", "parts")
    ]
    assert untimed[0] == untimed[1]


def test_a_training_continues_on_another_mesh(config, tmp_path, capsys):
    assert train(capsys, config("uninterrupted"))[0] == 0
    file = config("parts", mesh={"data": 2, "fsdp": 2, "tensor": 2})
    from tessy_jax.config import Train, read
    from tessy_jax.train.job import train as run

    def stop(line, steps):
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    assert run(read(Train, file), on_step=stop).summary["steps"] == 3
    code, summary = train(capsys, file, "--set", "mesh={}")
    assert code == 0, summary
    assert summary["steps_of_this_start"] == STEPS - 3
    for a, b in zip(lines(tmp_path / "uninterrupted"), lines(tmp_path / "parts"), strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)


def test_the_last_checkpoints_and_those_with_the_lowest_evaluation_loss_are_kept(config, tmp_path, capsys, monkeypatch):
    from tessy_jax.train import loop

    losses = {2: 3.0, 4: 1.0, 6: 2.0}
    monkeypatch.setattr(loop.Trainer, "evaluate", lambda self, state: {"evaluation_loss": losses[int(state.step)]})
    training = {"steps": 6, "save_every": 1, "eval_every": 2, "keep_last": 1, "keep_best": 1}
    code, summary = train(capsys, config(training=training, evaluation={"path": str(tmp_path / "rows.jsonl")}))
    assert code == 0, summary
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "6"}
    assert summary["evaluation_loss"] == 2.0


def kill_repeatedly(command, folder, times):
    """Starts a command and kills it at a random instant after its first new checkpoint, `times` times or until it ends.
    Returns the number of kills, and of kills while a checkpoint was written. folder: of the checkpoints."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    rng, killed, torn = random.Random(0), 0, 0

    def names():
        return {path.name for path in folder.glob("*")} if folder.exists() else set()

    while killed < times:
        before = names()
        process = subprocess.Popen(
            [sys.executable, "-m", "tessy_jax.cli", *command],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait = time.monotonic() + 60
        while time.monotonic() < wait and process.poll() is None and not names() - before:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.3)
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
        torn += any("tmp" in name for name in names())
    return killed, torn


@pytest.mark.slow
@pytest.mark.parametrize("kills", [5, 10])
def test_kill_9_at_random_instants_changes_no_bit(kills, config, tmp_path, capsys):
    steps = "training.steps=60"
    assert train(capsys, config("uninterrupted"), "--set", steps)[0] == 0
    file = config("killed")
    killed, torn = kill_repeatedly(["train", str(file), "--set", steps], tmp_path / "killed" / "checkpoints", kills)
    with capsys.disabled():
        print(f"killed {killed} times, {torn} times inside a checkpoint")
    assert killed >= kills // 2, "the run ended before enough kills"
    code, summary = train(capsys, file, "--set", steps)
    assert code == 0, summary
    uninterrupted, parts = weights(tmp_path / "uninterrupted"), weights(tmp_path / "killed")
    assert all((uninterrupted[name] == parts[name]).all() for name in uninterrupted)


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_checkpoint(config, tmp_path, capsys):
    code, output = train(
        capsys, config(optimizer={"name": "sgd", "learning_rate": 1e30, "max_grad_norm": 0, "options": {}, "warmup": 0.5})
    )
    assert code == 1
    assert "the loss is" in output
    assert "checkpoint" in output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": [{"messages": [{"role": "user", "content": "a"}]}]}, "rows.jsonl:1: the last message is of 'user'"),
        ({"rows": [{**row(0), "spans": row(0)["spans"][:-1]}]}, "the spans end at"),
        (
            {"rows": [row(0), row(1, words=40)]},
            "training.max_seq_len is 128; raise it, or set data.on_overlength to skip or cut",
        ),
        ({"rows": [{"text": "a"}]}, "`conversations`, or prompt and completion"),
        ({"mesh": {"data": 3}}, "training.batch_size"),
        ({"date": "28.6.2025"}, "YYYY-MM-DD"),
        ({"optimizer": {"name": "adamw2"}}, "optimizer.name is 'adamw2'; Optax has"),
        ({"optimizer": {"options": {"weight": 1}}}, "adamw takes no weight"),
    ],
)
def test_invalid_data_or_settings_are_refused_before_the_first_step(config, tmp_path, capsys, changes, message):
    code, output = train(capsys, config(**changes))
    assert code == 2, output
    assert message in output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_rows_that_are_too_long_are_counted(config, tmp_path, capsys):
    rows = [row(i, words=40 if i == 3 else 3) for i in range(20)]
    code, summary = train(
        capsys, config(rows=rows, data={"path": str(write(tmp_path / "r.jsonl", rows)), "on_overlength": "skip"})
    )
    assert code == 0, summary
    assert summary["skipped"] == ["3/0"]
    assert summary["examples"] == 19


def test_a_checkpoint_that_is_truncated_or_of_another_model_is_refused_before_the_first_step(config, tmp_path, capsys):
    file = config(training={"steps": 2})
    assert train(capsys, file)[0] == 0
    newest = tmp_path / "run" / "checkpoints" / "2"
    for part in newest.rglob("*"):
        if part.is_file() and part.stat().st_size > 2000:
            part.write_bytes(part.read_bytes()[:1000])
    code, output = train(capsys, file)
    assert code == 2, output
    assert "checkpoints/2: cannot be restored into this model and optimizer" in output

    other = config("other", training={"steps": 2})
    assert train(capsys, config("sgd", optimizer={"name": "sgd", "options": {}}, training={"steps": 2}))[0] == 0
    assert train(capsys, other)[0] == 0
    shutil.rmtree(tmp_path / "other" / "checkpoints")
    shutil.copytree(tmp_path / "sgd" / "checkpoints", tmp_path / "other" / "checkpoints")
    code, output = train(capsys, other)
    assert code == 2, output
    assert "other/checkpoints/2: cannot be restored into this model and optimizer" in output


def test_the_best_checkpoint_is_kept_across_restarts_and_is_the_first_of_equals(tmp_path):
    from tessy_jax.train.checkpoint import Checkpoints

    def save(scores):
        with Checkpoints(str(tmp_path), last=1, best=1) as checkpoints:
            for step, score in scores.items():
                checkpoints.save(step, {"x": np.arange(4)}, {}, score)
                checkpoints.wait()
            return checkpoints.steps()

    assert save({1: 0.5, 2: 0.1, 3: 0.1}) == [2, 3]
    assert save({4: 0.8, 5: 0.9}) == [2, 5]
    assert save({6: 0.1}) == [2, 6]


def test_data_that_have_changed_since_a_run_began_are_refused(config, tmp_path, capsys):
    assert train(capsys, config())[0] == 0
    write(tmp_path / "rows.jsonl", [row(i) for i in range(39)])
    code, output = train(capsys, tmp_path / "run.yaml")
    assert code == 2
    assert "checkpoints/6: was trained on other data" in output


def test_a_continued_training_needs_no_more_memory_than_an_uninterrupted_one(config, tmp_path):
    import gc

    import jax

    from tessy_jax.config import Train, read
    from tessy_jax.train.job import train as run

    live_bytes = {}

    def measure(name, at):
        def on_step(line, steps):
            gc.collect()
            live_bytes[name, line["step"]] = sum(x.nbytes for x in jax.live_arrays())
            if line["step"] == at:
                os.kill(os.getpid(), signal.SIGTERM)

        return on_step

    gc.collect()
    before = sum(x.nbytes for x in jax.live_arrays())
    file = config()
    run(read(Train, file), on_step=measure("first", 3))
    gc.collect()
    between = sum(x.nbytes for x in jax.live_arrays())
    run(read(Train, file), on_step=measure("again", STEPS))
    # at steps before any save in the background
    first, again = live_bytes["first", 2] - before, live_bytes["again", 4] - between
    assert first > 1 << 18
    assert again < 1.1 * first


def test_weights_that_leave_no_target_are_refused(config, capsys):
    code, output = train(capsys, config(weights={"student": 0, "teacher": 0, "template": 0}))
    assert code == 2
    assert "`weights` gives them 0" in output


def test_an_infinite_gradient_stops_before_its_weights_are_saved(config, tmp_path, capsys, monkeypatch):
    from tessy_jax.train import loop

    original = loop.Trainer._line

    def line(self, number, sums, norm, *rest):
        return original(self, number, sums, float("inf") if number == 4 else norm, *rest)

    monkeypatch.setattr(loop.Trainer, "_line", line)
    code, output = train(capsys, config())
    assert code == 1
    assert "the norm of its gradient inf; the last good checkpoint is" in output
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["2"]
    assert [line["step"] for line in lines(tmp_path / "run")] == [1, 2, 3, 4], "the metrics hold the failed step"


def test_a_full_temporary_folder_is_reported(config, capsys, monkeypatch):
    from tessy_jax.train import data

    monkeypatch.setattr(data.tempfile, "TemporaryFile", lambda **options: Path("/dev/full").open("wb", **options))  # noqa: SIM115
    code, output = train(capsys, config())
    assert code == 2
    assert "No space left on device); free space, or set TMPDIR to another folder" in output


def test_a_checkpoint_that_cannot_be_written_is_reported_and_the_training_continues_later(
    config, tmp_path, capsys, monkeypatch
):
    assert train(capsys, config("uninterrupted"))[0] == 0
    file = config()
    monkeypatch.setattr(files, "PROBE", b"\0")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        code, output = train(capsys, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert code == 2
    assert f"{tmp_path}/run/checkpoints: a checkpoint cannot be written" in output
    assert "free space" in output
    assert train(capsys, file)[0] == 0
    assert [line["loss"] for line in lines(tmp_path / "run")] == [line["loss"] for line in lines(tmp_path / "uninterrupted")]


def test_another_kind_of_run_and_other_settings_are_refused(config, tmp_path, capsys):
    assert train(capsys, config())[0] == 0
    code, output = train(capsys, config(seed=5))
    assert code == 2
    assert "other settings (seed)" in output
