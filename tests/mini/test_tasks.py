"""Tasks are right and determined by their ids, and no prompt is in two splits."""

import subprocess
import sys
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessy_jax.errors import ConfigError, DataError
from tessy_jax.mini import tasks
from tessy_jax.mini.tasks import ANSWER, FAMILIES, HARD, MODULUS, SPLITS, STEP, item, item_of, items, split_of

ARITHMETIC = ("A", "Ae", "Ah")
families, splits = st.sampled_from(FAMILIES), st.sampled_from(SPLITS)
any_item = st.builds(item, families, splits, st.integers(-5, 2**40), st.integers(0, 2**40))
arithmetic_item = st.builds(item, st.sampled_from(ARITHMETIC), splits, st.integers(0, 9), st.integers(0, 2**40))


def operations(prompt):
    words = prompt.split()[2:]
    return list(zip(words[::2], map(int, words[1::2]), strict=True))


@given(arithmetic_item)
def test_arithmetic_agrees_with_python(task):
    formula = task.prompt.split()[1]
    for operator, d in operations(task.prompt):
        formula = f"({formula}) {operator} {d}"
    assert int(task.answer) == eval(formula) % MODULUS
    before = task.prompt.split()[1]
    for step, (operator, d) in zip(task.steps, operations(task.prompt), strict=True):
        left, right = step.removeprefix("we get ").removesuffix(" ;").removesuffix(" now").split(" = ")
        assert left == f"{before} {operator} {d}"
        assert eval(left) % MODULUS == int(right)
        before = right
    assert before == task.answer


@given(arithmetic_item)
def test_only_the_last_step_begins_with_we_get(task):
    assert [step.startswith("we get ") for step in task.steps] == [False] * (len(task.steps) - 1) + [True]
    assert [step.endswith(" now ;") for step in task.steps] == [True] * (len(task.steps) - 1) + [False]
    assert 2 <= len(task.steps) <= 6
    assert all(2 <= d <= 9 for _, d in operations(task.prompt))


def hard(prompt):
    return [operator == "*" and d in HARD for operator, d in operations(prompt)]


@given(splits, st.integers(0, 9), st.integers(0, 2**40))
def test_ae_has_no_hard_multiplier_and_ah_at_least_one(split, seed, index):
    assert not any(hard(item("Ae", split, seed, index).prompt))
    assert any(hard(item("Ah", split, seed, index).prompt))


def test_about_half_of_the_steps_of_ah_are_hard_and_a_has_some_of_both():
    hard_steps = [flag for i in range(2000) for flag in hard(item("Ah", "train", 0, i).prompt)]
    assert 0.45 < sum(hard_steps) / len(hard_steps) < 0.6
    hard_items = [any(hard(item("A", "train", 0, i).prompt)) for i in range(2000)]
    assert 0.3 < sum(hard_items) / len(hard_items) < 0.7


@given(splits, st.integers(0, 9), st.integers(0, 2**40))
def test_letters_are_reversed(split, seed, index):
    task = item("B", split, seed, index)
    letters = task.prompt.split()[1:]
    assert 3 <= len(letters) <= 6
    assert task.answer.split() == letters[::-1]
    assert task.steps == tuple(f"at {i + 1} we put {letters[-1 - i]} ;" for i in range(len(letters)))


@given(splits, st.integers(0, 9), st.integers(0, 2**40))
def test_a_letter_is_counted_in_every_prefix_and_in_total(split, seed, index):
    task = item("C", split, seed, index)
    _, key, colon, *letters = task.prompt.split()
    assert colon == ":"
    assert 3 <= len(letters) <= 7
    assert task.answer == str(letters.count(key))
    for i, letter in enumerate(letters):
        so_far = letters[: i + 1].count(key)
        assert task.steps[i] == f"{letter} {'yes' if letter == key else 'no'} so {so_far} ;"


@given(splits, st.integers(0, 9), st.integers(0, 2**40))
def test_the_largest_number_is_kept(split, seed, index):
    task = item("D", split, seed, index)
    numbers = [int(number) for number in task.prompt.split()[1:]]
    assert 3 <= len(numbers) <= 6
    assert task.answer == str(max(numbers))
    assert task.steps == tuple(f"{n} then best {max(numbers[: i + 1])} ;" for i, n in enumerate(numbers))


@given(any_item)
def test_an_id_determines_its_item_and_the_item_is_in_its_split(task):
    assert item_of(task.id) == task
    assert split_of(task.prompt) == task.id.split("-")[1]
    assert all(STEP.fullmatch(step) for step in task.steps)
    assert ANSWER.fullmatch(task.answer)


@pytest.mark.parametrize(
    "name", ["", "A", "E-test-0-1", "A-test-0", "A-exam-0-1", "A-test-0-01", "A-test-0-" + "9" * 6000, "٣"]
)
def test_an_id_of_another_form_is_refused(name):
    with pytest.raises(DataError, match="not an id of a miniature task; write it like Ah-test-0-12"):
        item_of(name)


@given(st.text(), st.text())
def test_every_text_has_one_split(prompt, other):
    assert split_of(prompt) in SPLITS
    assert prompt != other or split_of(prompt) == split_of(other)


def test_no_prompt_of_thousands_is_in_two_splits_for_any_families_and_seeds():
    prompts = {
        split: {item(family, split, seed, i).prompt for family in FAMILIES for seed in (0, 1) for i in range(1000)}
        for split in SPLITS
    }
    assert sum(map(len, prompts.values())) > 30_000
    for split, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not prompts[split] & prompts[other]


def test_splits_have_about_the_declared_shares_of_prompts():
    splits = [split_of(f"A {i}") for i in range(10_000)]
    assert 0.68 < splits.count("train") / 10_000 < 0.72
    assert 0.18 < splits.count("test") / 10_000 < 0.22


@pytest.mark.parametrize("family", FAMILIES)
def test_items_of_a_split_have_distinct_prompts_and_fewer_items_are_a_prefix_of_more(family):
    many = list(islice(items(family, "test", 3), 600))
    assert len({task.prompt for task in many}) == 600
    assert list(islice(items(family, "test", 3), 100)) == many[:100]
    assert [task.prompt for task in islice(items(family, "test", 4), 100)] != [task.prompt for task in many[:100]]


def test_the_error_of_an_exhausted_family_gives_its_number_of_prompts(monkeypatch):
    monkeypatch.setitem(tasks._MAKERS, "B", lambda rng: (f"B {'a ' * rng.randint(1, 9)}".strip(), ("at 1 we put a ;",), "a"))
    monkeypatch.setattr(tasks, "_REPEATS", 100)
    with pytest.raises(ConfigError, match=r"family B, train: hardly has more than [1-9] prompts; ask for fewer"):
        list(items("B", "train", 0))


def test_items_are_the_same_in_another_process():
    code = "from tessy_jax.mini.tasks import FAMILIES, item\nprint([item(f, 'test', 7, 12) for f in FAMILIES])"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "4", "PATH": ""}
    )
    assert process.stdout.strip() == repr([item(family, "test", 7, 12) for family in FAMILIES])
    assert item("Ah", "test", 7, 12).prompt == "A 10 * 4 * 6 * 8"
