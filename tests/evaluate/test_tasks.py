"""Tables and the miniature become problems; what is no problem is named with its place, before any work."""

import json

import pytest
import yaml

from tessy_jax.config import differences, dump, read
from tessy_jax.config.evaluation import Evaluate, Task
from tessy_jax.config.file import keys
from tessy_jax.errors import ConfigError, DataError
from tessy_jax.evaluate.job import TASK_KINDS
from tessy_jax.evaluate.tasks import problems_of, table_problems
from tessy_jax.mini import evaluation as mini
from tessy_jax.mini.tasks import item_of, split_of

SMALL = {"output": "runs/x", "student": {"model": "s"}, "tasks": [{"name": "a", "path": "p.jsonl", "verifier": "exact"}]}
MINI = {"name": "m", "verifier": "mini", "mini": {"families": ["Ae", "B"], "items": 20}}


def configured(tmp_path, content, *overrides):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(content))
    return read(Evaluate, file, overrides)


def table(tmp_path, *rows):
    file = tmp_path / "problems.jsonl"
    file.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return Task(name="a", path=str(file), verifier="exact")


def test_a_configuration_reads_back_as_it_was_written(tmp_path):
    config = configured(tmp_path, {**SMALL, "tasks": [*SMALL["tasks"], MINI]}, "synthesis.lanes=4", "confidence=0.9")
    (tmp_path / "b.yaml").write_text(dump(config))
    again = read(Evaluate, tmp_path / "b.yaml")
    assert again == config.resolved()
    assert differences(again, config) == []
    assert again.student.sampling is not None
    assert (again.synthesis.recipe, again.synthesis.max_attempts) == ("student_only", 1)


def test_every_key_is_described():
    sections = {"student", "synthesis", "student.thinking", "synthesis.repetition"}
    for key, description in keys(Evaluate):
        assert description or key in sections, key


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": []}, "tasks is .*at least 1"),
        ({"synthesis": {"max_attempts": 3}}, "synthesis.max_attempts is 3; it should be 1"),
        ({"synthesis": {"recipe": "tessy"}}, "synthesis.recipe is 'tessy'; it should be 'student_only'"),
        ({"tasks": [MINI, MINI]}, "two tasks have the name 'm'"),
        ({"tasks": [{**MINI, "name": "a/b"}]}, r"tasks.0.name is 'a/b'"),
        ({"tasks": [{**MINI, "verifier": "exact"}]}, "use verifier mini"),
        (
            {"tasks": [{"name": "a", "path": "p", "verifier": "mini"}]},
            "use verifier exact, boxed, choice, integer or programs",
        ),
        ({"tasks": [{"name": "a", "verifier": "exact"}]}, "neither path nor mini"),
        ({"tasks": [{**MINI, "path": "p"}]}, "both path and mini"),
        ({"tasks": [{**MINI, "subset": "main"}]}, "both mini and subset; subset applies only to a path: leave it out"),
        ({"tasks": [{**MINI, "sample": 3}]}, "did you mean tasks.samples"),
        ({"tasks": [{**MINI, "mini": {"families": []}}]}, "at least 1"),
        ({"tasks": [{**MINI, "mini": {"families": ["B"], "split": "train"}}]}, "'test' or 'validation'"),
        (
            {"tasks": [{**MINI, "samples": 4}], "student": {"model": "s", "sampling": {"temperature": 0}}},
            "all the same at temperature 0",
        ),
        ({"confidence": 1}, "confidence is 1"),
    ],
)
def test_a_configuration_that_cannot_run_is_refused_with_the_remedy(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, {**SMALL, **changes})


def test_rows_become_problems_in_their_order_with_families_and_answers_as_text(tmp_path):
    task = table(
        tmp_path,
        {"id": 7, "prompt": "1+1?", "answer": 2, "subject": "sums"},
        {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "x"}], "answer": "x"},
        {"id": "z", "conversations": [{"from": "human", "value": "b?"}], "answer": 0.5, "family": "f", "subject": "s"},
    )
    first, second, third = table_problems(task)
    assert (first.id, first.own_id, first.reference, first.family) == ("a/7", "7", "2", "sums")
    assert (second.messages, second.reference, second.family) == ([{"role": "user", "content": "a?"}], "x", None)
    assert (third.reference, third.family) == ("0.5", "f")
    assert len({first.id, second.id, third.id}) == 3


def test_a_problem_that_comes_again_is_another_problem(tmp_path):
    row = {"prompt": "1+1?", "answer": "2"}
    own = {"id": "x", "prompt": "1+2?", "answer": "3"}
    task = table(tmp_path, row, own, {"id": "x/2", "prompt": "c?", "answer": "3"}, row, own, own)
    ids = [problem.own_id for problem in table_problems(task)]
    assert len(set(ids)) == 6
    assert ids[1:3] + ids[4:] == ["x", "x/2", "x/3", "x/4"]
    assert ids[3] == f"{ids[0]}/2"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "b?"}, "has no `answer`, .* it holds `prompt`: set answer to one of them"),
        ({"prompt": "b?", "answer": None}, "has no `answer`"),
        ({"prompt": "b?", "answer": " "}, "answer is empty"),
        ({"prompt": "b?", "answer": ["x"]}, r"answer is \['x'\]; .* a finite number: copy the value into a column"),
        ({"prompt": "b?", "answer": True}, "answer is True"),
        ({"prompt": "b?", "answer": "x", "family": {}}, "family is {}"),
        ('{"prompt": "b?", "answer": NaN}', "answer is nan; it should be a string or a finite number"),
        ({"prompt": "b?", "answer": None, "solution": "1"}, "it holds `prompt` and `solution`: set"),
        ({"answer": "x"}, "it should hold `messages`"),
        ('{"prompt": "b?", "answer": "\\ud800"}', "half of a surrogate pair"),
        ("{torn", "is not JSON"),
    ],
)
def test_a_row_that_is_no_problem_is_named_with_its_place(tmp_path, row, message):
    task = table(tmp_path, {"prompt": "a?", "answer": "1"}, row)
    with pytest.raises(DataError, match=rf"problems.jsonl:2: .*{message}"):
        table_problems(task)
    assert len(table_problems(task.model_copy(update={"limit": 1}))) == 1


def test_the_miniature_gives_so_many_items_of_each_family_out_of_its_split():
    config = Evaluate.model_validate({**SMALL, "tasks": [MINI]})
    problems = problems_of(config.tasks, {**TASK_KINDS, **mini.TASK_KINDS})["m"]
    assert [problem.family for problem in problems] == ["Ae"] * 20 + ["B"] * 20
    for problem in problems:
        item = item_of(problem.own_id)
        assert (item.answer, item.prompt) == (problem.reference, problem.messages[0]["content"])
        assert split_of(item.prompt) == "test"
    others = Task.model_validate({**MINI, "mini": {**MINI["mini"], "seed": 1}})
    assert {p.id for p in mini.problems(others)}.isdisjoint(p.id for p in problems)


def test_families_and_verifiers_that_are_not_there_are_refused():
    with pytest.raises(ConfigError, match="'X', which is not a family; they are A, Ae"):
        mini.problems(Task.model_validate({**MINI, "mini": {"families": ["B", "X"]}}))
    with pytest.raises(ConfigError, match="no verifier 'mini' here, only exact, boxed"):
        problems_of([Task.model_validate(MINI)], TASK_KINDS)
