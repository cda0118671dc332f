"""Rows of every form become problems with their tests; an error names the line of an invalid test."""

import base64
import json
import os
import pickle
import zlib
from pathlib import Path

import pytest

from tessy_jax.config.evaluation import Task
from tessy_jax.errors import DataError
from tessy_jax.evaluate.programs import rows
from tessy_jax.evaluate.programs.rows import program_problems
from tessy_jax.evaluate.programs.suite import Suite


def packed(tests):
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def livecodebench(**changes):
    row = {
        "question_id": "abc",
        "question_content": "Add the numbers.",
        "difficulty": "easy",
        "starter_code": "",
        "public_test_cases": json.dumps([{"input": "1 2\n", "output": "3\n", "testtype": "stdin"}]),
        "private_test_cases": packed([{"input": "4 5\n", "output": "9\n", "testtype": "stdin"}]),
        "metadata": "{}",
    }
    return row | changes


def calling(**changes):
    case = {"input": "1", "output": "1", "testtype": "functional"} | changes
    return livecodebench(public_test_cases=json.dumps([case]), private_test_cases="[]", metadata='{"func_name": "f"}')


def read(folder, *items, **changes):
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in items))
    return program_problems(Task(name="t", path=str(file), verifier="programs", **changes))


def test_a_row_of_livecodebench_has_its_public_and_its_private_tests(tmp_path):
    (problem,) = read(tmp_path, livecodebench())
    suite = Suite.of(problem.tests)
    assert suite.tests == [{"input": "1 2\n", "output": "3\n"}, {"input": "4 5\n", "output": "9\n"}]
    assert suite.names
    assert (problem.id, problem.family) == ("t/abc", "easy")
    assert problem.messages[0]["content"].startswith("Add the numbers.")
    again = read(tmp_path, livecodebench(private_test_cases=json.dumps([{"input": "4 5\n", "output": "9\n"}])))
    assert again[0].reference == problem.reference, "the reference depends on compression"


def test_functional_tests_have_arguments_and_the_prompt_shows_the_starter_code(tmp_path):
    case = {"input": '[1, 2]\n"x"', "output": "[true, null]", "testtype": "functional"}
    row = livecodebench(
        starter_code="class Solution:\n    def f(self, a, b):\n        ",
        public_test_cases=json.dumps([case]),
        private_test_cases="[]",
        metadata=json.dumps({"func_name": "f"}),
    )
    (problem,) = read(tmp_path, row)
    assert Suite.of(problem.tests).tests == [{"function": "f", "arguments": ["[1, 2]", '"x"'], "output": "[true, null]"}]
    assert "class Solution:" in problem.messages[0]["content"]


def test_the_reference_holds_a_hash_of_the_tests_and_prompts_hold_no_tests(tmp_path):
    (problem,) = read(tmp_path, {"prompt": "p", "tests": [{"input": "SECRET", "output": "HIDDEN"}]})
    (other,) = read(tmp_path, {"prompt": "p", "tests": [{"input": "SECRET", "output": "other"}]})
    assert "SECRET" not in json.dumps(problem.to_json()) + repr(problem)
    assert problem.reference != other.reference


def test_asserts_that_compare_with_a_literal_are_compared_outside_the_sandbox(tmp_path):
    asserts = [
        "assert f(2) == (1, {2})",
        "assert [1] == f(3), 'why'",
        "assert abs(f(1) - 2) < 1",
        {"code": "x = 1\nassert x"},
    ]
    (problem,) = read(tmp_path, {"prompt": "p", "tests": asserts})
    assert Suite.of(problem.tests).tests == [
        {"expression": "f(2)", "output": ["tuple", [1, ["set", [2]]]]},
        {"expression": "f(3)", "output": ["list", [1]]},
        {"expression": "bool(abs(f(1) - 2) < 1)", "output": True},
        {"code": "x = 1\nassert x"},
    ]


def folder_of_tests(folder, init):
    folder.mkdir(parents=True)
    for name, content in {"1.in": "1\n", "1.out": "2\n", "2.in": "3\n", "2.out": "6\n"}.items():
        (folder / name).write_text(content)
    (folder / "init.yml").write_text(init)


PLAIN = "test_cases:\n- {in: 1.in, out: 1.out, points: 50}\n- points: 50\n  batched:\n  - {in: 2.in, out: 2.out}\n"


def test_a_row_of_ojbench_has_the_tests_of_its_folder(tmp_path):
    folder_of_tests(tmp_path / "NOI" / "loj-7", PLAIN + "checker: {name: floats, args: {precision: 4}}\n")
    folder_of_tests(tmp_path / "own", PLAIN)
    row = {"id": 7, "prompt": "p", "dataset": "NOI", "language": "cpp", "difficulty": "hard"}
    published, python, named = read(tmp_path, row, {**row, "language": "python"}, {**row, "tests": "own"})
    assert [problem.own_id for problem in (published, python, named)] == ["NOI-7-cpp", "NOI-7-python", "NOI-7-cpp/2"]
    assert [Suite.of(problem.tests).language for problem in (published, python, named)] == ["cpp", "python", "cpp"]
    assert published.family == "hard"
    first, second = Suite.of(published.tests).tests
    assert first == {
        "input_file": str(tmp_path / "NOI" / "loj-7" / "1.in"),
        "output_file": str(tmp_path / "NOI" / "loj-7" / "1.out"),
        "checker": "floats:4",
    }
    assert second["input_file"].endswith("2.in")
    assert [test["checker"] for test in Suite.of(named.tests).tests] == ["standard", "standard"]


@pytest.mark.parametrize(
    ("value", "checker"),
    [
        ("floats", "floats:6"),
        ("floatsabs", "floatsabs:6"),
        ("{name: floatsrel, args: {precision: 3}}", "floatsrel:3"),
        ("{name: floats, args: {error_mode: absolute, precision: 3}}", "floatsabs:3"),
        ("{name: floats, args: {error_mode: relative}}", "floatsrel:6"),
        ("{name: floats, args: {error_mode: default}}", "floats:6"),
        ("identical", "identical"),
    ],
)
def test_a_checker_keeps_its_tolerance(tmp_path, value, checker):
    folder_of_tests(tmp_path / "own", PLAIN + f"checker: {value}\n")
    (problem,) = read(tmp_path, {"prompt": "p", "tests": "own"})
    assert [test["checker"] for test in Suite.of(problem.tests).tests] == [checker, checker]


def test_published_rows_of_ojbench_are_read_and_missing_tests_are_named(tmp_path, shared):
    published = [json.loads(line) for line in (shared / "data" / "ojbench-examples.jsonl").read_text().splitlines()]
    with pytest.raises(DataError, match=r"rows.jsonl:1: .*loj-\d+/init.yml is missing"):
        read(tmp_path, *published)
    for row in published:
        if not (tmp_path / row["dataset"] / f"loj-{row['id']}").exists():
            folder_of_tests(tmp_path / row["dataset"] / f"loj-{row['id']}", PLAIN)
    assert len(read(tmp_path, *published)) == len(published)


def test_the_language_of_the_task_overrides_that_of_rows(tmp_path):
    row = {"prompt": "p", "tests": [{"input": "", "output": ""}], "language": "Fortran"}
    assert Suite.of(read(tmp_path, row, programs={"language": "cpp"})[0].tests).language == "cpp"


class Harmful:
    def __reduce__(self):
        return os.system, ("touch /tmp/harm",)


def pickled(value):
    return base64.b64encode(zlib.compress(pickle.dumps(value))).decode()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p"}, "has no tests; it should hold `tests`.* it holds `prompt`"),
        ({"prompt": "p", "tests": []}, "has no tests: tests is empty"),
        ({"prompt": "p", "tests": {"input": "1"}}, "tests is .* it should be a list"),
        ({"prompt": "p", "tests": [{"input": "1"}]}, r"tests\[0\].output is None; it should be a string"),
        ({"prompt": "p", "tests": [{"input": 1, "output": "1"}]}, r"tests\[0\].input is 1; it should be a string"),
        ({"prompt": "p", "tests": ["assert f(("]}, r"tests\[0\] is no Python"),
        ({"prompt": "p", "tests": ["assert (f(1) == 2, 'why')"]}, r"tests\[0\] is always true, so every program"),
        ({"prompt": "p", "tests": ["assert True"]}, r"tests\[0\] is always true"),
        ({"prompt": "p", "tests": [{"code": "# assert f(1) == 2"}]}, r"tests\[0\] is always true"),
        ({"prompt": "p", "tests": [{"code": "assert f()", "input": "1"}]}, r"tests\[0\] holds 'input' .'1'.*remove it if"),
        ({"prompt": "p", "tests": [{"input": "", "output": "", "checker": "x"}]}, r"tests\[0\] holds 'checker' .'x'."),
        ({"prompt": "p", "tests": [{"input": "", "output": "", "fn_name": "f"}]}, r"tests\[0\] holds 'fn_name' .'f'."),
        ({"prompt": "p", "tests": [{"input": "", "output": "", "type": "functional"}]}, r"write an assert, such as"),
        ({"prompt": "p", "tests": [{"input": "", "output": "", "type": "tree"}]}, "the testtype 'tree'; it should be stdin"),
        ({"prompt": "p", "tests": [{"input": "", "output": "\ud800"}]}, r"tests\[0\].output holds half of a surrogate pair"),
        (livecodebench(public_test_cases='[{"input": "1", "output": "1", "testtype": "file"}]'), "the testtype 'file'"),
        (livecodebench(public_test_cases='[{"input": "1", "output": "1", "time": 3}]'), "holds 'time' .3."),
        ({"prompt": "p", "tests": [3]}, r"tests\[0\] is 3; it should be an assert"),
        ({"prompt": "p", "tests": "[1"}, "tests is not JSON"),
        ({"prompt": "p", "tests": "nowhere"}, "nowhere/init.yml is missing"),
        ({"prompt": "p", "tests": ["assert f()"], "language": "cpp"}, "its language is cpp; give tests with input"),
        ({"prompt": "p", "tests": ["assert f()"], "language": "Rust"}, "language is 'Rust'; it should be python or cpp"),
        ({"tests": ["assert f()"]}, "it should hold `messages`"),
        (livecodebench(private_test_cases="%%%"), "private_test_cases is neither JSON nor compressed tests"),
        (livecodebench(private_test_cases=packed([])[:-9]), "private_test_cases is (neither|cut off)"),
        (
            livecodebench(private_test_cases=pickled(7)),
            "no pickled string .it has the operation BININT1; it should hold",
        ),
        (
            livecodebench(private_test_cases=pickled(Harmful())),
            "no pickled string .it has the operation STACK_GLOBAL; it should hold",
        ),
        (livecodebench(public_test_cases="{}"), "public_test_cases is {}; it should be a list"),
        (
            livecodebench(public_test_cases='[{"input": "1", "output": "1", "testtype": "functional"}]'),
            "names none in func_name",
        ),
        (
            livecodebench(public_test_cases='[{"input": "x", "output": "1"}]', metadata='{"func_name": "f"}'),
            r"public_test_cases\[0\].input, line 1 is not JSON",
        ),
        (calling(output="[1, NaN]"), r"public_test_cases\[0\].output holds NaN, which equals no value"),
        (calling(output='{"a": NaN}'), "holds NaN.*leave this test out"),
        (calling(output="1e999"), "is not JSON .it holds the number 1e999, which exceeds the range"),
        (calling(output="[" * 101 + "]" * 101), "is nested more than 100 levels deep"),
        (calling(output="[" * 5000 + "]" * 5000), r"public_test_cases\[0\].output is (not JSON|nested more)"),  # by version
        (calling(output="1" * 100_001), "it holds an integer of 100,001 digits; at most 100,000"),
        (calling(input="1" * 100_001), r"public_test_cases\[0\].input, line 1 is not JSON .it holds an integer of 100,001"),
        ({"prompt": "p", "tests": ["assert f() == " + "1" * 5000]}, r"tests\[0\] is no Python .*hexadecimal"),
        ({"id": True, "prompt": "p", "tests": ["assert f()"]}, "id is True; it should be a string"),
        (livecodebench(private_test_cases=None), "has no `private_test_cases`; a program needs all of its tests"),
    ],
)
def test_an_invalid_row_is_refused_with_its_line(tmp_path, row, message):
    good = {"prompt": "p", "tests": [{"input": "", "output": ""}]}
    with pytest.raises(DataError, match=rf"rows.jsonl:2: .*{message}"):
        read(tmp_path, good, row)
    assert not Path("/tmp/harm").exists()
    assert len(read(tmp_path, good, row, limit=1)) == 1


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_tests_may_be_pickled_with_any_protocol(tmp_path, protocol):
    for text in ("short", "é\n\\" * 1000):
        data = pickle.dumps(json.dumps([{"input": text, "output": ""}], ensure_ascii=False), protocol)
        row = livecodebench(private_test_cases=base64.b64encode(zlib.compress(data)).decode())
        assert Suite.of(read(tmp_path, row)[0].tests).tests[1]["input"] == text


@pytest.mark.parametrize(
    "data", [b"\x8c\x02[]r\xff\xff\xff\x7f0.", b"\x8c\x02[]\x8c\x02[].", b".", b"\x8c\x02[]", b"", b"\x8c\xff["]
)
def test_a_pickle_of_anything_but_one_string_is_refused(tmp_path, data):
    row = livecodebench(private_test_cases=base64.b64encode(zlib.compress(data)).decode())
    with pytest.raises(DataError, match=r"private_test_cases is no pickled string .*use the files that LiveCodeBench"):
        read(tmp_path, row)


@pytest.mark.parametrize(
    ("init", "message"),
    [
        ("test_cases: [{in: 1.in}]", "it should name its files, in and out"),
        ("test_cases: [{in: 1.in, out: 9.out}]", "'9.out', which is no file in its folder"),
        ("test_cases: [{in: ../rows.jsonl, out: 1.out}]", "'../rows.jsonl', which is no file in its folder"),
        ("test_cases: []", "test_cases is empty"),
        ("{", "cannot be read"),
        ("archive: a.zip\ntest_cases: []", "has archive, which is not supported"),
        (
            PLAIN + "checker: bridged\n",
            "has the checker 'bridged'; only standard, identical, floats, floatsabs and floatsrel",
        ),
        (
            PLAIN + "checker: {name: floats, args: {error_mode: other}}\n",
            "has the checker .*'other'.*leave this problem out",
        ),
        (PLAIN + "checker: {name: floats, args: {eps: 3}}\n", "has the checker .*'eps'.*leave this problem out"),
        (PLAIN + "checker: {name: floats, args: {precision: 16}}\n", "has the checker .*16.*leave this problem out"),
        (PLAIN + "checker: {name: floatsabs, args: {error_mode: relative}}\n", "has the checker .*leave this problem out"),
        (PLAIN + "checker: {name: standard, args: [1]}\n", "has the checker .*leave this problem out"),
    ],
)
def test_an_invalid_folder_of_tests_is_refused_with_its_row(tmp_path, init, message):
    folder_of_tests(tmp_path / "own", init)
    with pytest.raises(DataError, match=rf"rows.jsonl:1: .*{message}"):
        read(tmp_path, {"prompt": "p", "tests": "own"})


def test_tests_that_decompress_to_more_than_the_limit_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(rows, "LARGEST", 1000)
    with pytest.raises(DataError, match="holds more than 1,000 bytes"):
        read(tmp_path, livecodebench(private_test_cases=packed([{"input": "1" * 2000, "output": ""}])))


def test_an_expected_output_that_exceeds_the_limit_of_the_output_is_refused_with_its_row_and_the_remedy(tmp_path):
    long = {"prompt": "p", "tests": [{"input": "", "output": "1"}, {"input": "", "output": "é" * (1 << 19) + "1"}]}
    folder_of_tests(tmp_path / "own", PLAIN)
    (tmp_path / "own" / "2.out").write_text("1" * ((1 << 20) + 1))
    for row in (long, {"prompt": "p", "tests": "own"}):
        with pytest.raises(DataError, match=r"rows.jsonl:1: test 1 expects an output of 1,048,577 bytes.* at least 2$"):
            read(tmp_path, row, programs={"output": 1})
        assert read(tmp_path, row, programs={"output": 2})
