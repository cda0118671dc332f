"""The configuration of predictors: missing keys are named, and setting one key keeps the other defaults."""

import pytest
import yaml

from tessy_jax.config import differences, dump, read
from tessy_jax.config.file import keys
from tessy_jax.config.predictors import Predictors
from tessy_jax.errors import ConfigError

SMALL = {"output": "runs/x", "data": {"path": "prompts.jsonl"}, "student": {"model": "s"}, "teacher": {"model": "t"}}


def configured(tmp_path, content, *overrides):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(content))
    return read(Predictors, file, overrides)


def test_setting_one_key_of_a_section_leaves_the_others_at_the_predictors_defaults(tmp_path):
    config = configured(tmp_path, SMALL, "optimizer.schedule=linear", "training.batch_size=16")
    assert (config.optimizer.schedule, config.optimizer.learning_rate) == ("linear", 1e-5)
    assert (config.training.batch_size, config.training.epochs, config.training.max_seq_len) == (16, 3.0, 256)
    assert (config.segments.words, config.annotator.kind, config.predictor.window) == (60, "rules", 200)


def test_a_configuration_reads_back_as_it_was_written(tmp_path):
    config = configured(tmp_path, SMALL, "annotator={kind: endpoint, url: 'http://a/v1', name: m, request: {seed: 1}}")
    (tmp_path / "b.yaml").write_text(dump(config))
    again = read(Predictors, tmp_path / "b.yaml")
    assert again == config
    assert differences(again, config) == []


def test_every_key_is_described_and_every_section_has_a_docstring(tmp_path):
    sections = {name for name, field in Predictors.model_fields.items() if hasattr(field.annotation, "model_fields")}
    for key, description in keys(Predictors):
        assert description or key in sections, key


def test_a_speaker_needs_a_model_and_prompts_or_existing_traces(tmp_path):
    given = configured(tmp_path, {"output": "x", "traces": {"teacher": "t.jsonl"}})
    assert given.data is None
    teacher = {"path": "t.jsonl", "split": "train", "subset": None}
    assert given == configured(tmp_path, {"output": "x", "traces": {"teacher": teacher}})
    assert configured(tmp_path, {"output": "x", "traces": {"teacher": "t.jsonl"}, "student": {"model": "s"}} | SMALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"output": "x"}, "neither student nor teacher is set"),
        ({"output": "x", "student": {"model": "s"}}, r"no traces of the student; set data.path .* or traces.student"),
        (SMALL | {"annotator": {"kind": "model"}}, "annotator: kind 'model' needs model; set it, or use another kind"),
        (SMALL | {"annotator": {"kind": "endpoint"}}, "needs url and name; set it, .*rules, spans, model"),
        (SMALL | {"annotator": {"url": "localhost:80"}}, "should begin with http:// or https://"),
        (SMALL | {"annotator": {"kind": "llm"}}, "annotator.kind is 'llm'; "),
        (SMALL | {"annotator": {"model": {"model": "m", "sampling": {"top_k": 3}}}}, "set annotator.temperature"),
        (SMALL | {"predictor": {"window": 201}}, "predictor.window is 201"),
        (SMALL | {"segments": {"validation": 1.0}}, "segments.validation is 1.0"),
        (SMALL | {"segments": {"word": 3}}, "did you mean segments.words"),
        (SMALL | {"weights": {"style": 0.0, "capability": 0.0}}, "set at least one of them above 0"),
        (SMALL | {"training": {"max_seq_len": 100}}, "set training.max_seq_len to at least 201"),
    ],
)
def test_an_invalid_configuration_is_refused_with_the_remedy(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, content)
