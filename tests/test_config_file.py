"""The run configuration: read completely, refused in one line with key and remedy, and written so that it reads back."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from tessy_jax import sharding
from tessy_jax.config import (
    MAY_CHANGE,
    MESH_AXES,
    Comparison,
    Pipeline,
    Predictors,
    Sampling,
    Section,
    Synthesize,
    Train,
    differences,
    dump,
    load,
    read,
)
from tessy_jax.config.evaluation import Evaluate
from tessy_jax.config.file import from_values, keys, reconcile
from tessy_jax.config.recipes import BOTH, RECIPES, STUDENT, FirstPass, Recipe, Roles, check_first_passes
from tessy_jax.config.renamed import RENAMED, new_name
from tessy_jax.decode.generate import CHUNK
from tessy_jax.errors import ConfigError
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.plan import plan

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SMALL = {
    "output": "runs/x",
    "data": {"path": "prompts.jsonl"},
    "student": {"model": "s"},
    "teacher": {"model": "t"},
    "boundary": {"student": "bs", "teacher": "bt"},
}
# hub name → folder of its published shapes, and GB of one device that each configuration is written for
SHAPES = {
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "openai/gpt-oss-20b": "gpt-oss-20b",
    "deepseek-ai/DeepSeek-R1-0528": "deepseek-r1",
    "Qwen/Qwen3-235B-A22B-Thinking-2507": "qwen3-235b-a22b-thinking",
    "Qwen/Qwen3-30B-A3B": "qwen3-30b-a3b",
    "Qwen/Qwen3-8B": "qwen3-8b",
}
MEMORY = {
    "gpt-oss-120b_qwen3-8b": 80,
    "deepseek-r1_qwen3-8b": 80,
    "qwen3-235b_qwen3-8b": 95,
    "gpt-oss-120b_qwen3-30b-a3b": 80,
    "gpt-oss-20b_qwen3-8b_h100": 80,
}


@pytest.fixture
def small(tmp_path):
    """Loads the small configuration with other text or overrides."""

    def read(*overrides, text=None):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(SMALL) if text is None else text, "utf-8")
        return load(path, overrides)

    return read


OTHERS = {
    "small_train": Train,
    "small_predictors": Predictors,
    "mini": Pipeline,
    "mini_table": Comparison,
    "mini_compare": Comparison,
    "mini_ablations": Comparison,
    "mini_predictor_size": Comparison,
    "small_run": Pipeline,
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_shipped_run_of_another_kind_loads_and_reads_back_unchanged(name, tmp_path):
    config = read(OTHERS[name], CONFIGS / f"{name}.yaml")
    assert config.output == f"runs/{name}"
    (tmp_path / "again.yaml").write_text(dump(config))
    assert read(OTHERS[name], tmp_path / "again.yaml") == config.resolved()


@pytest.mark.parametrize("file", [f for f in sorted(CONFIGS.glob("*.yaml")) if f.stem not in OTHERS], ids=lambda f: f.stem)
def test_a_shipped_configuration_loads_and_its_mesh_holds_its_models(file):
    config = load(file)
    assert config.output == f"runs/{file.stem}"
    assert config.synthesis.recipe == "tessy"
    if file.stem not in MEMORY:
        assert file.stem == "small_pair"
        return
    synthesis = config.synthesis
    length = synthesis.max_prompt_tokens + synthesis.max_response_tokens
    shapes = [(SHAPES[model.model], length, model.dtype) for model in (config.student, config.teacher)]
    shapes += [("qwen3-0.6b-base", config.boundary.window, config.boundary.dtype)] * 2
    need = 0
    for name, context, dtype in shapes:
        shape = read_config(CONFIGS / "models" / name)
        need += plan(shape, dtype=dtype, mesh=config.mesh, lanes=synthesis.lanes, context=context, slack=CHUNK)[
            "bytes_per_device"
        ]
    assert need < 0.9 * MEMORY[file.stem] * 1e9


def test_there_is_a_shipped_configuration_for_each_pair():
    assert {file.stem for file in CONFIGS.glob("*.yaml")} == {*MEMORY, *OTHERS, "small_pair"}


def test_the_axes_are_those_of_the_mesh():
    assert MESH_AXES == sharding.MESH_AXES


def test_every_key_outside_a_section_is_described():
    sections = {key.rpartition(".")[0] for key, _ in keys(Synthesize)}
    assert [key for key, text in keys(Synthesize) if not text and key not in sections] == []


def test_keys_that_may_change_exist():
    assert set(MAY_CHANGE) <= {key for kind in (Synthesize, Train, Predictors, Comparison) for key, _ in keys(kind)}


@pytest.mark.parametrize("overrides", [[], ["synthesis.preset=reference", "student.sampling={temperature: 1e-4}"]])
def test_a_written_configuration_reads_back_as_resolved(small, overrides):
    config = small(*overrides)
    again = small(text=dump(config))
    assert again == config.resolved() == again.resolved()
    assert dump(again) == dump(config)


def test_markers_are_written_on_one_line():
    assert 'close: "\\n```\\n\\n"' in dump(load(CONFIGS / "small_pair.yaml"))


def test_a_run_fills_every_none_from_its_preset_and_keeps_set_values(small):
    paper, reference = small().resolved(), small("synthesis.preset=reference", "synthesis.teacher_step=7").resolved()
    assert (paper.synthesis.student_step, paper.synthesis.teacher_step, paper.synthesis.word_rule) == (20, 20, "discard")
    synthesis = reference.synthesis
    assert (synthesis.student_step, synthesis.teacher_step, synthesis.word_rule) == (5, 7, "extend")
    assert paper.student.sampling == paper.teacher.sampling == reference.student.sampling == Sampling()
    assert (Sampling().temperature, Sampling().top_p, Sampling().top_k, Sampling().min_p) == (0.7, 0.8, 20, 0)
    greedy = small("student.sampling={temperature: 0, top_k: 0}").resolved()
    assert (greedy.student.sampling.temperature, greedy.teacher.sampling.temperature) == (0, 0.7)


def test_a_configuration_is_frozen(small):
    with pytest.raises(ValidationError):
        small().synthesis.lanes = 3


@pytest.mark.parametrize("value", ["'tensor=8, data=2'", "{tensor: 8, data: 2}"])
def test_a_mesh_is_read_from_text_and_from_a_mapping(small, value):
    assert small(f"mesh={value}").mesh == {"tensor": 8, "data": 2}


@pytest.mark.parametrize("number", ["1e-4", "0.0001", "1.0e-4"])
def test_numbers_are_read_in_every_spelling_of_yaml(small, number):
    assert small(f"boundary.threshold={number}").boundary.threshold == 1e-4


@pytest.mark.parametrize("day", ["2025-06-28", "'2025-06-28'"])
def test_a_date_is_read_with_and_without_quotes(small, day):
    assert small(f"date={day}").date == "2025-06-28"


def test_overrides_reach_sections_that_the_file_leaves_out_and_win_in_order(small):
    config = small("synthesis.repetition.window=0", "synthesis.lanes=4", "synthesis.lanes=5", "data.limit=null")
    assert (config.synthesis.repetition.window, config.synthesis.lanes, config.data.limit) == (0, 5, None)


def test_an_override_changes_one_of_two_sections_that_share_a_yaml_alias(small):
    text = "output: o\ndata: {path: p}\nstudent: &m {model: m}\nteacher: *m\nboundary: {student: a, teacher: b}\n"
    config = small("student.model=other", text=text)
    assert (config.student.model, config.teacher.model) == ("other", "m")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["synthesis.lane=4"], ["synthesis.lane is unknown", "did you mean synthesis.lanes?"]),
        (["lanes=4"], ["lanes is unknown", "did you mean synthesis.lanes?"]),
        (["student.modle=x"], ["student.modle is unknown", "did you mean student.model?"]),
        (["data.zzz=x"], ["data.zzz is unknown", "the keys here are path, split, subset, limit"]),
        (["synthesis.lanes=0"], ["synthesis.lanes is 0", "greater than or equal to 1"]),
        (["synthesis.lanes=true"], ["synthesis.lanes is True", "valid integer"]),
        (["synthesis.lanes=most"], ["synthesis.lanes is 'most'", "or auto"]),
        (["synthesis.lanes=8.5"], ["synthesis.lanes is 8.5", "valid integer"]),
        (["data.skip_invalid=1"], ["data.skip_invalid is 1", "valid boolean"]),
        (["seed=4294967296"], ["seed is 4294967296", "less than 4294967296"]),
        (["boundary.window=201"], ["boundary.window is 201", "multiple of 2"]),
        (["boundary.threshold=half"], ["boundary.threshold is 'half'", "valid number"]),
        (["boundary.threshold=1"], ["boundary.threshold is 1", "less than 1"]),
        (["boundary.mode=onlin"], ["boundary.mode is 'onlin'", "'online' or 'rollback'"]),
        (["student.sampling={temperature: .inf}"], ["student.sampling.temperature is inf", "finite"]),
        (["student.dtype=float16"], ["student.dtype is 'float16'", "'float32' or 'bfloat16'"]),
        (["student.thinking.open=<think>"], ["student.thinking: open is set without close, or close without open"]),
        (["synthesis.repetition.period=150"], ["synthesis.repetition: window is 200", "at least 300"]),
        (["synthesis.recipe=tesy"], ["synthesis.recipe is 'tesy'", "the recipes are tessy, teacher_only, student_only"]),
        (["boundary.teacher=null", "teacher=null"], ["'tessy' needs teacher and boundary.teacher", "student_only"]),
        (["synthesis.recipe=teacher_only", "teacher=null"], ["'teacher_only' needs teacher"]),
        (["synthesis.recipe=student_only", "student=null"], ["'student_only' needs student"]),
        (["student=Qwen/Qwen3-8B"], ["student is 'Qwen/Qwen3-8B'", "section of keys"]),
        (["data.path=null"], ["data.path is None", "valid string"]),
        (["output=''"], ["output is ''", "at least 1 character"]),
        (["mesh=tensr=8"], ["mesh is 'tensr=8'", "axis 'tensr' is unknown; the axes are data, fsdp, tensor, expert"]),
        (["mesh={tensor: 0}"], ["mesh: axis 'tensor' has size 0", "tensor=8"]),
        (["mesh='tensor=2,tensor=4'"], ["twice"]),
        (["date=28.6.2025"], ["date is '28.6.2025'", "YYYY-MM-DD"]),
        (["date=20250628"], ["date is 20250628", "YYYY-MM-DD"]),
        (["synthesis.lanes"], ["--set synthesis.lanes: is not an override", "synthesis.lanes=16"]),
        (["output.a=1"], ["--set output.a=1: output is 'runs/x', which has no keys"]),
        (["data.path=[1"], ["--set data.path=[1: is not valid YAML"]),
        (["synthesis.lanes=0", "synthesis.rounds_per_dispatch=0"], ["(and 1 more)"]),
    ],
)
def test_an_error_is_one_line_with_the_key_the_value_and_the_correction(small, overrides, expected):
    with pytest.raises(ConfigError) as caught:
        small(*overrides)
    message = str(caught.value)
    assert [part for part in expected if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("output: a\noutput: b\n", "(line 2, column 1): the key 'output' occurs twice"),
        ("data: {path: a, path: b}\n", "the key 'path' occurs twice"),
        ("output: [\n", "is not valid YAML"),
        ("- a\n", "holds ['a']; it should hold keys and values"),
        ("", "output is missing; set it (Run folder"),
        ("output: a\ndata: {}\n", "data.path is missing; set it (JSONL"),
        ("output: a\ndata: {path: p}\n1: 2\n", "Keys should be strings"),
        ("? [a, b]\n: 1\n", "is not valid YAML"),
    ],
)
def test_an_invalid_configuration_file_is_refused_with_its_name(small, text, expected):
    with pytest.raises(ConfigError) as caught:
        small(text=text)
    assert "run.yaml: " in str(caught.value)
    assert expected in str(caught.value)


def test_an_absent_file_is_refused_with_its_name(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read \(No such file"):
        load(tmp_path / "absent.yaml")


def test_an_error_names_its_source_the_override_or_the_file(small):
    with pytest.raises(ConfigError, match=r"^--set: synthesis\.lanes is 0"):
        small("synthesis.lanes=0")
    with pytest.raises(ConfigError, match=r"run\.yaml: seed is -1"):
        small("synthesis.lanes=2", text=yaml.safe_dump({**SMALL, "seed": -1}))


@pytest.mark.parametrize(("section", "old"), RENAMED)
def test_a_renamed_key_is_refused_with_its_new_name_and_the_new_name_exists(section, old):
    new = RENAMED[section, old]
    kinds = (Synthesize, Train, Evaluate, Predictors, Pipeline)
    known = {key for kind in kinds for key, _ in keys(kind)}
    places = {key.removesuffix(new) for key in known if f".{key}".endswith(f".{section}.{new}" if section else f".{new}")}
    assert places
    assert not {place + old for place in places} & known
    for place in places:
        assert new_name(place + old) == place + new
    kind = next(kind for kind in kinds for key, _ in keys(kind) if key == f"{sorted(places)[0]}{new}")
    with pytest.raises(ConfigError, match=re.escape(f"{sorted(places)[0]}{old} is now called {sorted(places)[0]}{new}")):
        from_values(kind, {}, [f"{sorted(places)[0]}{old}=1"], "test")


def test_a_folder_of_an_earlier_version_is_refused_with_the_renamed_keys(small):
    earlier = yaml.safe_dump({**SMALL, "synthesis": {"rounds": 8}})
    with pytest.raises(ConfigError, match=r"earlier version \(synthesis\.rounds is now synthesis\.rounds_per_dispatch\)"):
        reconcile(small(), earlier)


def test_the_other_recipes_load_with_one_model(small):
    assert small("synthesis.recipe=teacher_only", "student=null", "boundary={}").teacher.model == "t"
    assert small("synthesis.recipe=student_only", "teacher=null", "boundary={}").student.model == "s"


def test_two_runs_differ_only_in_keys_that_their_responses_depend_on(small):
    base = small("date=2025-06-28")
    free = ["mesh=tensor=2", "synthesis.lanes=7", "synthesis.rounds_per_dispatch=7", "synthesis.snapshot_seconds=7"]
    free += ["synthesis.handover=1", "output=elsewhere", "boundary.mode=rollback", "date=null"]
    assert differences(base, small("date=2025-06-28", *free)) == []
    assert differences(base, small("synthesis.student_step=20")) == []  # the value of the preset
    assert differences(base, small("seed=1", "synthesis.student_step=5", "student.sampling={top_k: 1}")) == [
        "seed",
        "student.sampling.top_k",
        "synthesis.student_step",
    ]
    assert differences(base, small("date=2025-06-29", "teacher.template={reasoning_effort: high}")) == [
        "date",
        "teacher.template",
    ]
    assert differences(base, small("synthesis.recipe=student_only", "teacher=null")) == ["teacher", "synthesis.recipe"]


def test_sections_refuse_unknown_keys_and_other_types_by_default():
    assert Section.model_config["extra"] == "forbid"
    assert Section.model_config["strict"]


ONE = {"writers": ("student",), "roles": (STUDENT,)}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"writers": BOTH, "roles": (Roles(BOTH, "student"),)}, "interleaved=True"),
        ({"writers": ("teacher",), "roles": (Roles(("teacher",), "student"),)}, "student has a role"),
        ({"writers": ("critic",), "roles": (Roles(("critic",)),)}, "critic is not a model"),
        ({"writers": ("student",), "roles": (STUDENT,), "scorer": "teacher"}, "first_pass"),
        ({"writers": ("student",), "roles": ()}, "has roles"),
        ({"writers": ("student",), "roles": (Roles((), "student"),)}, "one thinker or two different ones"),
        ({"writers": BOTH, "roles": (Roles(("student", "student")),), "interleaved": True}, "one thinker or two different"),
        ({"writers": BOTH[::-1], "roles": (Roles(BOTH),), "interleaved": True}, "the student before the teacher"),
        ({"writers": ("student", "student"), "roles": (STUDENT,)}, "list each once"),
        ({"writers": BOTH, "roles": (STUDENT,)}, "teacher is a writer without a role"),
        ({"writers": ("student",), "roles": (STUDENT,), "interleaved": True}, "needs two thinkers"),
        (ONE | {"first_pass": FirstPass("student_only", "first")}, "a scorer or a reference; set one"),
        (ONE | {"first_pass": FirstPass("student_only", "first"), "scorer": "teacher"}, "set candidates=True"),
        (ONE | {"first_pass": FirstPass("teacher_only", ""), "reference": "teacher"}, "has no folder"),
    ],
)
def test_a_recipe_whose_parts_contradict_each_other_is_refused(parts, expected):
    with pytest.raises(ValueError, match=expected):
        Recipe(**parts)


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("nope", "its first pass nope is not a recipe of one pass"),
        ("teacher_score", "its first pass teacher_score is not a recipe of one pass"),
        ("student_only", "teacher does not write in its first pass student_only"),
    ],
)
def test_a_recipe_whose_first_pass_cannot_serve_it_is_refused(first, expected):
    recipe = Recipe(**ONE, first_pass=FirstPass(first, "first"), reference="teacher")
    with pytest.raises(ValueError, match=expected):
        check_first_passes(RECIPES | {"new": recipe})


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("noise=0.1", "did you mean boundary.label_flip_prob?"),
        ("synthesis.noise=0.1", "did you mean boundary.label_flip_prob?"),
        ("data.rounds=3", "did you mean synthesis.rounds_per_dispatch?"),
    ],
)
def test_an_old_key_in_another_place_gets_the_key_that_replaced_it(small, override, expected):
    with pytest.raises(ConfigError, match=re.escape(expected)):
        small(override)


def test_the_advice_for_an_old_key_names_only_keys_that_the_command_has(small):
    with pytest.raises(ConfigError, match=r"data\.too_long is unknown") as refused:
        small("data.too_long=skip")
    assert "on_overlength" not in str(refused.value)
