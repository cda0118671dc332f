"""Tests of planned programs: they equal those of a job, and need no weights and no devices."""

import json
import math
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from tessy_jax.backend import tracing_for
from tessy_jax.config import Pipeline, reconcile
from tessy_jax.errors import ConfigError
from tessy_jax.models import hf
from tessy_jax.pipeline import synthesis_config, training_config
from tessy_jax.plan.job import check_request, plan_job, read_any
from tessy_jax.plan.measure import measure
from tessy_jax.plan.models import PlannedModels, Published
from tessy_jax.plan.programs import planned, programs_of
from tessy_jax.plan.targets import parse_target
from tessy_jax.sharding import Partitioner, make_mesh, plan_mesh
from tessy_jax.synthesis.memory import memory
from tessy_jax.synthesis.model_set import ModelSet
from tessy_jax.train.job import parts
from tessy_jax.train.optimizer import build
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"


def mini(*changes, **options):
    return reconcile(read_any(CONFIGS / "mini.yaml", ["synthesis.lanes=8", *changes]), None, **options)


def bytes_per_device(tree):
    """Bytes of arrays; numbers of the host, such as the number of a lane, do not count."""
    arrays = [x for x in jax.tree.leaves(tree) if not isinstance(x, np.generic)]
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in arrays)


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype), getattr(x, "sharding", None)), tree)


@pytest.fixture(scope="module")
def mesh():
    return make_mesh({"data": 2, "tensor": 2})


def test_a_planned_loop_equals_the_program_of_the_engine(mesh, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = mini("mesh={data: 2, tensor: 2}")
    synthesis = synthesis_config(config, 1, config.student.model, config.boundary)
    tokens = synthesis.synthesis.max_prompt_tokens + synthesis.synthesis.max_response_tokens
    engine = ModelSet(synthesis, Partitioner(mesh)).engine()
    programs = {p.name: p for p in planned(config, ("loop", "fill"), Partitioner(mesh, absent=True), Published(None))}
    assert set(programs) == {"loop", "fill student", "fill teacher"}
    for ours, theirs in ((engine.loop(), programs["loop"]), (engine.prefill(1), programs["fill teacher"])):
        arrays = [x for x in jax.tree.leaves(theirs.program.args) if isinstance(x, jax.Array)]
        assert not arrays, "a planned program has only shapes"
        assert avals(ours.args) == avals(theirs.program.args)
        texts = [p.jitted.lower(*p.args).as_text() for p in (ours, theirs.program)]
        assert texts[0] == texts[1]
    for name in ("fill student", "fill teacher"):
        assert sum(programs[name].parts.values()) == bytes_per_device(programs[name].program.args)
    lanes = engine.lanes
    per_device = sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(lanes) if x.ndim)
    assert programs["loop"].row_bytes[tokens] == per_device // engine.size


@pytest.mark.parametrize("lora", [None, {"rank": 4}])
def test_a_planned_training_step_has_the_shapes_of_the_training(mesh, lora, monkeypatch):
    monkeypatch.chdir(ROOT)
    config = mini("mesh={data: 2, tensor: 2}", f"lora={json.dumps(lora)}")
    training = training_config(config, 1, config.student.model)
    (program,) = planned(config, ("train",), Partitioner(mesh, absent=True), Published(None))
    state, frozen, batch, weights_C = program.program.args
    _, params, real_frozen = parts(training, hf.resolve(training.student.model), Partitioner(mesh), None)
    assert avals(params) == avals(state.params)
    assert avals(real_frozen) == avals(frozen)
    optimizer = build(training.optimizer, training.training.steps)
    real = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), optimizer.init(params))
    assert real == jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), state.optimizer)
    assert batch.tokens_BT.shape == (1, 12, 224)
    program.program.jitted.lower(state, frozen, batch, weights_C)


def test_an_unreachable_model_has_its_published_shape_and_a_note_names_it(monkeypatch):
    monkeypatch.setattr("tessy_jax.models.hf.resolve", unreachable)
    config = reconcile(read_any(CONFIGS / "gpt-oss-120b_qwen3-8b.yaml", []), None)
    published = Published(CONFIGS / "models", layers=1)
    partitioner = Partitioner(make_mesh({"tensor": 8}), absent=True)
    (loop,) = planned(config, ("loop",), partitioner, published)
    assert loop.tokens >= 8192 + 32768
    assert sorted(loop.row_bytes) == [8192, loop.tokens]
    assert loop.row_bytes[8192] < loop.row_bytes[loop.tokens]
    notes = "\n".join(published.used)
    for name in ("Qwen/Qwen3-8B", "openai/gpt-oss-120b", "boundary.student", "boundary.teacher"):
        assert name in notes
    weights = loop.program.args[0].writers[1]
    assert max(x.size for x in jax.tree.leaves(weights)) == 128 * 2880 * 2880, "the experts of one layer"


@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("gpt-oss-20b_qwen3-8b_h100", {}),
        ("gpt-oss-120b_qwen3-8b", {"tensor": 8}),
        ("gpt-oss-120b_qwen3-30b-a3b", {"tensor": 4, "expert": 2}),
    ],
)
def test_a_dry_run_counts_the_bytes_of_the_compiled_program_within_3_percent(name, mesh, monkeypatch):
    monkeypatch.setattr("tessy_jax.models.hf.resolve", unreachable)
    config = reconcile(read_any(CONFIGS / f"{name}.yaml", []), None)
    partitioner = Partitioner(make_mesh(mesh or {"data": 1}), absent=True)
    (loop,) = planned(config, ("loop",), partitioner, Published(CONFIGS / "models"))
    arguments = sum(
        np.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(loop.program.args) if x.ndim
    )
    counted, _ = memory(PlannedModels(config, partitioner, Published(CONFIGS / "models")))
    assert counted == pytest.approx(arguments, rel=0.03)


def host_tokenized(folder):
    """A copy of the miniature's student with a normalizer that the device does not support."""
    shutil.copytree(ROOT / "tessy_jax" / "mini" / "checkpoints" / "student-0", folder)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "qzq"}, "content": "zqz"}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("recipe", "writers"),
    [("tessy", ("student", "teacher")), ("teacher_only", ("teacher",)), ("student_only", ("student",))],
)
def test_a_planned_loop_names_the_writer_of_each_side(recipe, writers, monkeypatch):
    monkeypatch.chdir(ROOT)
    partitioner = Partitioner(make_mesh({"data": 1}), absent=True)
    (loop,) = planned(mini(f"synthesis.recipe={recipe}"), ("loop",), partitioner, Published(None))
    assert loop.writers == writers


@pytest.mark.parametrize(("target", "refused"), [("h100:1", True), ("cpu", False)])
def test_a_tokenizer_in_a_host_callback_is_refused_for_gpus_before_compilation(target, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("tessy_jax.plan.measure._measured", lambda *_: {"fits": True})
    config = mini(f"student.model={host_tokenized(tmp_path / 'model')}")
    partitioner = Partitioner(make_mesh({"data": 1}), absent=True)
    with tracing_for(parse_target(target).backend):
        loop, fill, _ = planned(config, ("loop", "fill"), partitioner, Published(None))
        error = measure(loop, parse_target(target), partitioner.mesh).get("error", "")
        assert (
            error.startswith("the tokenizer of the student runs in a host callback, because the device does not") == refused
        )
        assert "error" not in measure(fill, parse_target(target), partitioner.mesh)


def unreachable(model, *_, **__):
    if Path(model).is_dir():
        return Path(model)
    raise ConfigError(f"{model}: not reachable")


@pytest.mark.parametrize(
    ("file", "programs"),
    [
        ("mini.yaml", ["loop", "fill", "train", "evaluate"]),
        ("mini_table.yaml", ["loop", "fill", "train", "evaluate"]),
        ("small_pair.yaml", ["loop", "fill"]),
        ("small_train.yaml", ["train"]),
    ],
)
def test_a_configuration_has_the_programs_of_its_kind(file, programs):
    targets, names = check_request(read_any(CONFIGS / file, []), ["cpu"], [])
    assert names == programs
    assert [target.devices for target in targets] == [1]


@pytest.mark.parametrize("file", sorted(file.name for file in CONFIGS.glob("*.yaml")))
def test_every_shipped_configuration_is_planned_without_network(file, monkeypatch):
    monkeypatch.setattr("tessy_jax.models.hf.resolve", unreachable)
    monkeypatch.chdir(ROOT)
    config = reconcile(read_any(CONFIGS / file, []), None)
    names = programs_of(config)
    if file == "small_predictors.yaml":
        with pytest.raises(ConfigError, match="a Predictors configuration has no programs to plan; give a configuration of"):
            check_request(config, ["cpu"], [])
        return
    sizes = dict(config.mesh) or {"data": 1}
    partitioner = Partitioner(plan_mesh(sizes), absent=True)
    programs = list(planned(config, names, partitioner, Published(CONFIGS / "models", layers=1)))
    assert len(programs) >= len(names)
    assert {program.name.split()[0] for program in programs} == set(names)
    of_job = "evaluation.synthesis.lanes" if isinstance(config, Pipeline) else "synthesis.lanes"
    for program in programs:
        assert program.lanes_key == {"train": "", "evaluate": of_job}.get(program.name, "synthesis.lanes")


def test_a_program_that_a_configuration_lacks_is_refused_and_the_error_names_its_programs():
    config = read_any(CONFIGS / "small_pair.yaml", [])
    with pytest.raises(ConfigError, match="has no program 'train'; it has loop, fill"):
        check_request(config, ["cpu"], ["train"])
    with pytest.raises(ConfigError, match="'lop' is unknown; the programs are loop, fill, train, evaluate"):
        check_request(config, ["cpu"], ["lop"])


def test_each_target_has_its_own_process_and_an_error_of_one_does_not_affect_the_others(monkeypatch):
    monkeypatch.chdir(ROOT)
    config = mini("mesh={tensor: 2}")
    lines = []
    result = plan_job(config, ["cpu:1", "cpu:2"], ["fill"], layers=1, log=lines.append)
    small, right = result["targets"]
    assert "target cpu:1: has 1 of the 2 devices of the mesh {tensor: 2}" in small["error"]
    assert small["programs"] == []
    assert "error" not in right
    assert [p["program"] for p in right["programs"]] == ["fill student", "fill teacher"]
    for program in right["programs"]:
        assert program["devices"] == 2
        assert program["bytes"]["arguments"] > 0
        assert program["kernels"] > 10
        assert {move["operation"] for move in program["collectives"]} == {"all-reduce"}
    assert lines == ["cpu:2: fill student: compiled", "cpu:2: fill teacher: compiled"]


def test_a_target_that_exceeds_its_time_limit_is_stopped_and_its_error_says_so(monkeypatch):
    monkeypatch.chdir(ROOT)
    (target,) = plan_job(mini(), ["cpu"], ["loop"], timeout=1)["targets"]
    assert target["error"] == "stopped after 1 seconds; increase --timeout"
    assert target["seconds"] < 20
