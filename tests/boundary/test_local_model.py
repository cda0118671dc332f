"""A model on the mesh annotates each segment independently of its batch, and unsupported input is refused."""

import pytest

from tessy_jax.boundary.annotate import LocalModel
from tessy_jax.boundary.segments import Segment
from tessy_jax.boundary.spans import Annotation
from tessy_jax.config.predictors import Annotator
from tessy_jax.errors import ConfigError, TokenizerError
from tessy_jax.sharding import Partitioner
from tests.synthesis import tiny_pair


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return tiny_pair.build(tmp_path_factory.mktemp("pair"))


def local(pair, name="student", **settings):
    model = {"model": pair[name], "dtype": "float32"}
    section = Annotator.model_validate({"kind": "model", "model": model, "max_new_tokens": 12, "batch": 4, **settings})
    return LocalModel(section, partitioner=Partitioner(), seed=3)


def test_the_annotation_of_a_segment_does_not_depend_on_its_batch(pair):
    segments = [Segment(f"r#{i}", "r", "train", i, "wait, so " + "x = 1 " * i + "y") for i in range(9)]
    annotator = local(pair, temperature=1.0)
    batched = annotator.annotate(segments)
    assert [o.segment for o in batched] == segments
    assert all(isinstance(o, Annotation) or o.outcome != "failed" for o in batched)
    alone = [outcome for s in segments for outcome in annotator.annotate([s])]
    assert alone == batched
    assert annotator.annotate(segments[::-1]) == batched[::-1]


def test_a_segment_that_is_too_long_for_the_model_fails_without_affecting_others(pair):
    long = Segment("r#0", "r", "train", 0, "x" * 3000)
    short = Segment("r#1", "r", "train", 0, "so")
    results = local(pair).annotate([long, short])
    assert results[0].outcome == "failed"
    assert "exceed the model's 2048" in results[0].detail
    assert isinstance(results[1], Annotation) or results[1].outcome != "failed"


def test_a_classifier_or_a_model_without_a_template_is_refused_as_annotator(pair, tmp_path):
    with pytest.raises(ConfigError, match=r"is a token classifier; annotator.model needs"):
        local(pair, "student-predictor")
    fast = tiny_pair.tokenizer("student")
    fast.chat_template = None
    bare = tiny_pair.build(tmp_path, student=fast)
    with pytest.raises(TokenizerError, match=r"has no chat template; .* or use an instruction-tuned model"):
        local(bare)
