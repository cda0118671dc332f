"""Responses are verified by the right answers to their prompts, wherever these are."""

import json
from dataclasses import replace
from itertools import islice

import pytest

from tessy_jax.analyze.data import read
from tessy_jax.analyze.quality import open_verifiers, summarize
from tessy_jax.analyze.sources import Source
from tessy_jax.config import Data
from tessy_jax.config.analysis import Quality
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.evaluate.pass_at_k import Count, pass_at_1
from tessy_jax.mini.evaluation import TASK_KINDS as MINI
from tessy_jax.mini.rows import row as response
from tessy_jax.mini.tasks import items
from tessy_jax.store import RunReader

from .fake_comparison import write
from .test_data import ROWS, source_of

ALL = {**TASK_KINDS, **MINI}


def verified(source, **quality):
    with open_verifiers(Quality(**quality), ALL) as judge_of:
        return read(source, 1, judge_of(source))


def with_answers(source, folder, answers):
    file = folder / "prompts.jsonl"
    lines = [json.dumps({"id": name, "prompt": "?", "key": answer}) + "\n" for name, answer in answers.items()]
    file.write_text("".join(lines))
    return replace(source, prompts=Data(path=str(file)))


def test_the_answers_in_the_prompts_decide(tmp_path):
    source = with_answers(source_of(tmp_path / "run"), tmp_path, {"p0": 3, "p1": "5"})
    found = verified(source, verifier="exact", answer="key")
    assert found.right == {"p0": (1, 2), "p1": (0, 1)}, "'it is 3' is another text than '3'"
    summary = summarize({"tessy": [found, found]}, 0.95)
    mean, low, high = pass_at_1([Count(2, 1), Count(1, 0)] * 2, 0.95)
    assert summary["variants"]["tessy"] == {
        "pass@1": 0.25,
        "interval": [pytest.approx(low, abs=1e-6), pytest.approx(high, abs=1e-6)],
        "prompts": 4,
        "responses": 6,
        "right": 2,
        "failures": 2,
    }
    assert mean == 0.25


def test_the_miniature_knows_the_answer_by_the_id_of_the_prompt(tmp_path):
    rows = [response(item, "teacher") for item in islice(items("A", "train", 3), 6)]
    wrong = rows[0].content + " 20"  # no remainder of a division by 19
    messages = (rows[0].messages[0], {"role": "assistant", "content": wrong})
    spans = (*rows[0].spans[:-1], replace(rows[0].spans[-1], end=len(wrong)))
    write(tmp_path / "run", [replace(rows[0], messages=messages, spans=spans), *rows[1:]])
    source = Source("tessy", "here", RunReader(str(tmp_path / "run")), Data(path="p"), None, None)
    found = verified(source, verifier="mini")
    assert sum(right for right, _ in found.right.values()) == 5
    assert found.right[rows[0].prompt_id] == (0, 1)


def test_a_response_to_a_prompt_that_is_not_there_is_named(tmp_path):
    source = with_answers(source_of(tmp_path / "run"), tmp_path, {"p0": 3})
    with pytest.raises(DataError, match=r"here: has a response to 'p1', which is not in .*prompts.jsonl; restore"):
        verified(source, verifier="exact", answer="key")
    with pytest.raises(
        DataError, match=r"here: 'p\d' is not an id of a miniature task; .*quality.verifier to exact or boxed"
    ):
        verified(source, verifier="mini")
    with pytest.raises(DataError, match=r"prompts.jsonl:1: has no `answer`"):
        verified(source, verifier="exact")


def test_a_verifier_that_is_not_there_is_refused():
    with (
        pytest.raises(ConfigError, match="no verifier 'mini' here; use one of exact, boxed"),
        open_verifiers(Quality(verifier="mini"), TASK_KINDS),
    ):
        pass


def test_rows_are_those_of_the_run():
    assert [row.prompt_id for row in ROWS] == ["p0", "p0", "p1"]
