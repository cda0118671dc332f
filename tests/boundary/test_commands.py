"""The four commands make predictors: from traces to a folder that the decode loop and transformers load."""

import itertools
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from flax import nnx
from safetensors.numpy import load_file
from transformers import AutoModelForTokenClassification

from tessy_jax.boundary.examples import reader, tokens_of
from tessy_jax.boundary.labels import STYLE, UNKNOWN
from tessy_jax.boundary.segment_scorer import SegmentScorer
from tessy_jax.boundary.segments import Segment
from tessy_jax.boundary.spans import Annotation, Range
from tessy_jax.cli import main
from tessy_jax.decode.predictor_window import new_predictor_state, predict
from tessy_jax.mini import models, rows, tasks
from tessy_jax.models import hf
from tessy_jax.models.labels import CLASSES
from tessy_jax.sharding import Partitioner, make_mesh
from tests.synthesis.tiny_pair import CLOSE, build, write_prompts
from tests.train.test_job import kill_repeatedly

STEPS = 6
WINDOW = 16


@pytest.fixture(scope="module")
def backbones(tmp_path_factory):
    """Random models whose vocabularies hold only the grammar's words."""
    folder = tmp_path_factory.mktemp("blank")
    for speaker in ("student", "teacher"):
        models.blank(speaker, folder / speaker, seed=1)
    return folder


def traces(file, speaker, count):
    items = [item for family in "ABCD" for item in itertools.islice(tasks.items(family, "train", 0), count)]
    rows.write_rows(file, rows.rows(items, speaker, writers="kinds"))
    return str(file)


@pytest.fixture
def config(backbones, tmp_path):
    def make(output="run", speaker="student", count=10, **changes):
        raw = {
            "output": str(tmp_path / output),
            "traces": {speaker: traces(tmp_path / f"{speaker}.jsonl", speaker, count)},
            "annotator": {"kind": "spans"},
            "segments": {"words": 40, "per_trace": 1, "validation": 0.2},
            "predictor": {"backbone": str(backbones / speaker), "dtype": "float32", "window": WINDOW},
            "optimizer": {"learning_rate": 3.0e-3},
            "training": {
                "steps": STEPS,
                "max_seq_len": 128,
                "batch_size": 4,
                "dtype": "float32",
                "remat": "none",
                "eval_every": 2,
            },
        }
        for key, value in changes.items():
            raw[key] = {**raw.get(key, {}), **value} if isinstance(value, dict) else value
        file = tmp_path / f"{output}.yaml"
        file.write_text(yaml.safe_dump(raw))
        return file

    return make


def run(capsys, what, file, *options):
    capsys.readouterr()
    code = main(["boundary", what, str(file), "--json", *options])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if code == 0 else captured.err


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_predictor_is_made_measured_and_loads_in_transformers_with_equal_logits(config, tmp_path, capsys):
    file = config(training={"tensorboard": True})
    code, counts = run(capsys, "annotate", file)
    assert code == 0, counts
    assert counts["student"]["kept"] == counts["student"]["segments"] == 40
    code, result = run(capsys, "train", file)
    assert code == 0, result
    summary = result["student"]
    assert summary["finished"]
    metrics = lines(tmp_path / "run" / "training" / "student")
    evaluated = [line for line in metrics if "style_f1" in line]
    assert [line["step"] for line in evaluated] == [2, 4, 6]
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    assert summary["style_f1"] == max(line["style_f1"] for line in evaluated)
    assert all(set(line["tokens_by"]) == {"style", "capability"} for line in metrics)
    assert list((tmp_path / "run" / "training" / "student" / "tensorboard").glob("events*"))

    model = tmp_path / "run" / "training" / "student" / "model"
    ours = hf.load(model)
    theirs = AutoModelForTokenClassification.from_pretrained(model, dtype=torch.float32)
    assert theirs.config.id2label == {0: "capability", 1: "style"}
    tokens = np.random.default_rng(0).integers(5, 300, (2, 60))
    with torch.no_grad():
        expected = theirs.eval()(torch.tensor(tokens)).logits.numpy()
    np.testing.assert_allclose(np.asarray(ours.logits(ours(jnp.asarray(tokens))[0])), expected, rtol=0, atol=2e-4)

    code, measures = run(capsys, "eval", file)
    assert code == 0, measures
    assert measures["student"]["style"]["f1"] == pytest.approx(summary["style_f1"], abs=1e-6)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "Boundary predictors: run" in page
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == measures


def test_an_interrupted_training_of_a_predictor_equals_an_uninterrupted_one(config, tmp_path, capsys):
    from tessy_jax.boundary.train import train_predictor
    from tessy_jax.config import Predictors, read

    for name in ("uninterrupted", "parts"):
        assert run(capsys, "annotate", config(name, predictor={"layers": 1}))[0] == 0
    assert run(capsys, "train", tmp_path / "uninterrupted.yaml")[0] == 0
    assert hf.read_config(tmp_path / "uninterrupted" / "training" / "student" / "model").layers == 1

    def stop(line, steps):
        if line["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    summary = train_predictor(read(Predictors, tmp_path / "parts.yaml"), "student", on_step=stop)
    assert (summary["steps"], summary["finished"]) == (3, False)
    code, result = run(capsys, "train", tmp_path / "parts.yaml")
    assert code == 0, result
    assert result["student"]["steps_of_this_start"] == STEPS - 3
    expected, actual = (
        load_file(tmp_path / name / "training" / "student" / "model" / "model.safetensors")
        for name in ("uninterrupted", "parts")
    )
    assert all((expected[name] == actual[name]).all() for name in expected)


def test_training_stops_when_evaluations_do_not_improve_and_keeps_the_best(config, tmp_path, capsys, monkeypatch):
    from tessy_jax.boundary import train

    scores = iter([0.2, 0.7, 0.5, 0.6, 0.9])

    class Scores:
        def classes(self, threshold):
            assert threshold == 0.25
            return {"style": {"f1": next(scores)}, "capability": {"f1": 0.5}, "accuracy": 0.5}

    monkeypatch.setattr(train.SegmentScorer, "__call__", lambda *_: Scores())
    file = config(patience=2, training={"steps": 20, "save_every": 100}, predictor={"threshold": 0.25})
    assert run(capsys, "annotate", file)[0] == 0
    code, result = run(capsys, "train", file)
    assert code == 0, result
    assert result["student"]["steps"] == 8, "two evaluations after the best, at step 4"
    assert result["student"]["finished"]
    assert (result["student"]["best_step"], result["student"]["style_f1"]) == (4, 0.7)
    assert {path.name for path in (tmp_path / "run" / "training" / "student" / "checkpoints").iterdir()} >= {"4", "8"}
    assert run(capsys, "train", file)[1]["student"]["steps_of_this_start"] == 0


@pytest.mark.parametrize("mesh", [{}, {"data": 2, "tensor": 2}])
def test_a_decision_on_a_long_trace_equals_that_on_its_window_and_that_of_the_decode_loop(backbones, mesh):
    partitioner = Partitioner(make_mesh(mesh)) if mesh else Partitioner()
    half = WINDOW // 2
    folder = backbones / "student"
    text = " ".join(rows.row(item, "student").content[8:] for item in itertools.islice(tasks.items("A", "train", 0), 4))
    segment = Segment("a#0", "a", "validation", 0, text)
    tokens = tokens_of(Annotation(segment, (Range(0, 5),), "test"), reader(folder))
    count = len(tokens.ids)
    assert count > 8 * WINDOW

    predictor = hf.load(folder, partitioner=partitioner, stacked=True, classes=CLASSES, seed=3)
    scorer = SegmentScorer(
        *[nnx.split(predictor)[0], [tokens]], window=WINDOW, size=64, rows=4, dtype="float32", partitioner=partitioner
    )
    (probabilities,) = scorer(nnx.state(predictor)).probabilities
    assert np.isnan(probabilities[-1])

    alone = hf.load(folder, classes=CLASSES, seed=3)
    graph, params = nnx.split(alone)
    style = jax.jit(lambda ids: jax.nn.softmax(alone.logits(alone(ids[None])[0]), axis=-1)[0, :, 1])
    for t in range(count - 1):
        anchor = max(0, (t // half - 1) * half)
        read = np.zeros(WINDOW, np.int32)
        read[: t + 1 - anchor] = tokens.ids[anchor : t + 1]
        np.testing.assert_allclose(probabilities[t], style(jnp.asarray(read))[t - anchor], atol=1e-5)

    state = new_predictor_state(alone.config, 1, WINDOW, half, jnp.float32, Partitioner())
    step = jax.jit(lambda state, ids: predict(graph, params, state, ids, jnp.full(1, half), half, jnp.float32(0)))
    for block in range(count // half):
        state, predicted = step(state, jnp.asarray(tokens.ids[None, block * half : (block + 1) * half]))
        part = probabilities[block * half : (block + 1) * half][: count - 1 - block * half]
        clear = np.abs(part - 0.5) > 1e-4
        assert (np.asarray(predicted)[0, : len(part)][clear] == (part > 0.5)[clear]).all()


def test_every_decision_is_a_target_once_and_labels_the_next_token(backbones):
    from tessy_jax.boundary.examples import examples
    from tessy_jax.train.data import BatchPlan

    made = [rows.row(item, "student", writers="kinds") for item in itertools.islice(tasks.items("B", "train", 0), 5)]
    segments, tokenizer = [], reader(backbones / "student")
    for row in made:
        own = [span for span in row.spans if span.phase == "think" and span.source != "template"]
        first = own[0].start
        text = row.content[first : own[-1].end]
        style = tuple(Range(span.start - first, span.end - first) for span in own if span.source == "student")
        segments.append(tokens_of(Annotation(Segment("a#0", "a", "train", 0, text), style, "t"), tokenizer))
    plan = BatchPlan(examples(segments, WINDOW), 64, 4, seed=0)
    batches = [plan.assembled(rows) for rows in plan.epoch(0)]
    targets = sum((batch.kinds_BT != 0).sum() for batch in batches)
    assert (
        targets
        == sum(len(tokens.ids) - 1 for tokens in segments)
        == sum((tokens.labels != UNKNOWN).sum() for tokens in segments)
    )
    styles = sum(batch.targets_BT[batch.kinds_BT != 0].sum() for batch in batches)
    assert styles == sum((tokens.labels == STYLE).sum() for tokens in segments)
    for batch in batches:
        assert ((batch.kinds_BT == 1) == (batch.targets_BT == 1))[batch.kinds_BT != 0].all()


@pytest.mark.slow
def test_each_speaker_samples_its_traces_once_and_rules_annotate_them(tmp_path, capsys):
    paths = build(tmp_path / "pair")
    thinking = {"open": "<think>\n", "close": CLOSE}
    writer = {"dtype": "float32", "thinking": thinking, "sampling": {"temperature": 1.0, "top_p": 1.0, "top_k": 0}}
    (tmp_path / "words.json").write_text(json.dumps({"anywhere": ["a", "e", "t"]}))
    raw = {
        "output": str(tmp_path / "run"),
        "data": {"path": str(write_prompts(tmp_path / "prompts.jsonl", 8)), "rollouts": 2},
        "student": {"model": paths["student"], **writer},
        "teacher": {"model": paths["teacher"], **writer},
        "synthesis": {
            "max_prompt_tokens": 64,
            "max_response_tokens": 48,
            "max_attempts": 8,
            "lanes": 4,
            "rounds_per_dispatch": 4,
        },
        "segments": {"words": 5, "validation": 0.3},
        "annotator": {"lexicon": str(tmp_path / "words.json"), "min_share": 0.1},
        "predictor": {"backbone": paths["student"], "dtype": "float32", "window": 16},
        "training": {"steps": 2, "max_seq_len": 64, "batch_size": 2, "dtype": "float32"},
    }
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(raw))
    assert "no traces of the student yet" in run(capsys, "annotate", file)[1]
    code, result = run(capsys, "sample", file)
    assert code == 0, result
    assert result["student"]["run"]["tokens_teacher"] == result["teacher"]["run"]["tokens_student"] == 0
    assert result["teacher"]["run"]["responses"] > 4
    again = run(capsys, "sample", file)[1]
    assert again["student"]["responses"] == 0, "existing traces are not sampled again"
    code, counts = run(capsys, "annotate", file)
    assert code == 0, counts
    assert counts["student"]["traces"] == result["student"]["run"]["responses"]
    assert "has no trained predictor" in run(capsys, "eval", file)[1]
    code, output = run(capsys, "train", file, "--speaker", "teacher")
    assert code == 0, output
    assert list(output) == ["teacher"]
    assert run(capsys, "eval", file, "--speaker", "teacher")[0] == 0


@pytest.mark.parametrize(
    ("what", "changes", "options", "message"),
    [
        ("train", {}, [], "run `tessy boundary annotate` first"),
        ("train", {"predictor": {"layers": 40}}, [], "set it to at most 3, or to null"),
        ("annotate", {}, ["--speaker", "teacher"], "neither teacher nor traces.teacher"),
        ("annotate", {"traces": {"student": "absent.jsonl"}}, [], "absent.jsonl: "),
    ],
)
def test_a_command_that_cannot_run_yet_names_the_missing_step(config, capsys, tmp_path, what, changes, options, message):
    file = config(**changes)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("# A run folder of tessy_jax\n") if what == "train" else None
    code, output = run(capsys, what, file, *options)
    assert code == 2, output
    assert message in output


def test_an_invalid_annotation_is_refused_with_its_line_or_skipped(config, tmp_path, capsys):
    file = config()
    assert run(capsys, "annotate", file)[0] == 0
    path = tmp_path / "run" / "annotations" / "student.jsonl"
    annotations = [json.loads(line) for line in path.read_text().splitlines()]
    annotations[2]["spans"][0]["text"] += "x"
    path.write_text("".join(json.dumps(annotation) + "\n" for annotation in annotations))
    code, output = run(capsys, "train", file)
    assert code == 2
    assert "student.jsonl:3: " in output
    code, result = run(capsys, "train", file, "--skip-invalid")
    assert code == 0, result
    assert result["student"]["segments"]["skipped"] == 1


@pytest.mark.slow
def test_kill_9_at_random_instants_changes_no_bit_of_a_predictor(config, tmp_path, capsys):
    training = {"steps": 40, "save_every": 2, "eval_every": 5}
    for name in ("uninterrupted", "killed"):
        assert run(capsys, "annotate", config(name, training=training))[0] == 0
    assert run(capsys, "train", tmp_path / "uninterrupted.yaml")[0] == 0
    file = tmp_path / "killed.yaml"
    folder = tmp_path / "killed" / "training" / "student" / "checkpoints"
    killed, _ = kill_repeatedly(["boundary", "train", str(file)], folder, 5)
    assert killed >= 3, "the run ended before it was killed often"
    code, output = run(capsys, "train", file)
    assert code == 0, output
    expected, actual = (
        load_file(tmp_path / name / "training" / "student" / "model" / "model.safetensors")
        for name in ("uninterrupted", "killed")
    )
    assert all((expected[name] == actual[name]).all() for name in expected)


@pytest.mark.slow
@pytest.mark.heavy
@pytest.mark.parametrize("speaker", ["student", "teacher"])
def test_a_predictor_trained_from_scratch_knows_the_boundaries_of_the_grammar(config, capsys, speaker):
    file = config(
        speaker=speaker,
        count=400,
        segments={"words": 200, "validation": 0.1},
        predictor={"window": 200},
        training={"steps": 100, "max_seq_len": 512, "batch_size": 8, "eval_every": 25},
    )
    for what in ("annotate", "train"):
        code, output = run(capsys, what, file)
        assert code == 0, output
    code, measures = run(capsys, "eval", file)
    assert code == 0, measures
    metrics = measures[speaker]
    assert metrics["style"]["f1"] >= 0.98
    assert metrics["cuts"]["exact_share"] >= 0.95
    print(f"{speaker}: style F1 {metrics['style']['f1']:.4f}, exact cuts {metrics['cuts']['exact_share']:.4f}")
