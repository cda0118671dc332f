"""Rows and prompts are in the project's formats, and depend only on the arguments."""

import json
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.mini.rows import prompt, row, rows, write_prompts, write_rows
from tessy_jax.mini.styles import STYLES
from tessy_jax.mini.tasks import FAMILIES, item, item_of, items
from tessy_jax.mini.verify import is_right, spans_of
from tessy_jax.records import Row, validate
from tessy_jax.synthesis.prompts import read
from tests.mini.test_styles import SPEAKERS, any_item, speakers


@given(any_item, speakers, st.sampled_from([0.0, 0.5, 1.0]), st.sampled_from(["speaker", "kinds"]), st.integers(0, 3))
def test_a_row_is_valid_right_and_reproducible(task, speaker, mixed, writers, rollout):
    made = row(task, speaker, rollout=rollout, seed=4, mixed=mixed, writers=writers)
    validate(made)
    assert Row.from_json(json.loads(json.dumps(made.to_json()))) == made
    assert made == row(task, speaker, rollout=rollout, seed=4, mixed=mixed, writers=writers)
    assert made.messages[0] == {"role": "user", "content": task.prompt}
    assert is_right(item_of(made.prompt_id), made.content)
    assert made.id == f"{made.prompt_id}/{rollout}"


@given(any_item, speakers)
def test_spans_name_the_speaker_or_the_kinds_of_the_same_content(task, speaker):
    by_speaker, by_kind = (row(task, speaker, mixed=0.5, writers=writers) for writers in ("speaker", "kinds"))
    assert by_speaker.content == by_kind.content
    assert [(s.source, s.phase) for s in by_speaker.spans] == [
        ("template", "think"),
        (speaker, "think"),
        ("template", "think"),
        (speaker, "answer"),
    ]
    by_teacher = [by_kind.content[s.start : s.end] for s in by_kind.spans if s.source == "teacher"]
    assert by_teacher == [f" {text}" for text in (*task.steps, task.answer)]


def test_rollouts_and_seeds_change_the_words_and_order_does_not():
    task = item("A", "train", 0, 0)
    contents = {row(task, "student", rollout=r, seed=s).content for r in range(4) for s in range(4)}
    assert len(contents) > 8
    some = list(islice(items("B", "train", 0), 20))
    assert list(rows(some, "teacher", mixed=0.25))[::-1] == list(rows(some[::-1], "teacher", mixed=0.25))


@pytest.mark.parametrize("speaker", SPEAKERS)
@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_given_share_of_rows_is_mixed(speaker, share):
    made = list(rows(islice(items("C", "train", 0), 1000), speaker, mixed=share))
    mixed = [response for response in made if response.meta["mixed"]]
    assert len(mixed) / 1000 == pytest.approx(share, abs=0.05)
    for response in made:
        if not response.meta["mixed"]:
            thinking = response.content[response.spans[1].start : response.spans[1].end]
            assert spans_of(thinking, speaker) is not None


def test_prompts_are_read_by_synthesis_under_their_own_ids(tmp_path):
    tasks = [task for family in FAMILIES for task in islice(items(family, "test", 2), 10)]
    write_prompts(tmp_path / "a" / "prompts.jsonl", tasks)
    prompts = read(str(tmp_path / "a" / "prompts.jsonl")).prompts
    assert [(p.id, p.messages[0]["content"]) for p in prompts] == [(i.id, i.prompt) for i in tasks]
    assert [item_of(p.id) for p in prompts] == tasks
    assert prompt(tasks[0]) == {"id": tasks[0].id, "prompt": tasks[0].prompt}


def test_rows_are_written_one_per_line(tmp_path):
    made = [row(item("D", "train", 0, i), speaker) for i in range(5) for speaker in STYLES]
    write_rows(tmp_path / "rows.jsonl", made)
    lines = (tmp_path / "rows.jsonl").read_text("utf-8").splitlines()
    assert [Row.from_json(json.loads(line)) for line in lines] == made
