"""Known programs get the right verdicts, at the strongest level of the sandbox."""

import json
import shutil
import time

import pytest

from tessy_jax.config.programs import Programs
from tessy_jax.evaluate.programs.verifier import ProgramVerifier
from tests.evaluate.programs.conftest import problem_of

DOUBLE = {"prompt": "p", "tests": [{"input": "2\n", "output": "4\n"}, {"input": "3\n1 1\n", "output": "6\n"}]}
READING = {
    "input": "print(int(input()) * 2)",
    "readline": "import sys\nprint(int(sys.stdin.readline()) * 2)",
    "read": "import sys\nprint(int(sys.stdin.read().split()[0]) * 2)",
    "lines of stdin": "import sys\nfor line in sys.stdin:\n    print(int(line) * 2)\n    break",
    "buffered": "import sys\ninput = sys.stdin.buffer.readline\nprint(int(input()) * 2)",
    "buffer of all": "import sys\nx, *_ = sys.stdin.buffer.read().split()\nsys.stdout.buffer.write(b'%d' % (2 * int(x)))",
    "buffer wrapped": "import io, os\nread = io.BytesIO(os.read(0, 99)).readline\nprint(int(read()) * 2)",
    "file 0": "print(int(open(0).readline()) * 2)",
    "main guard": "def main():\n    print(int(input()) * 2)\nif __name__ == '__main__':\n    main()",
    "thread": "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(1 << 26)\n"
    "def work():\n    print(int(input()) * 2)\nthread = threading.Thread(target=work)\nthread.start()",
    "exit 0": "print(int(input()) * 2)\nexit(0)",
    "at exit": "import atexit\nx = int(input())\natexit.register(lambda: print(x * 2))",
    "module": "import numbers, bisect, zoneinfo, sqlite3\nprint(int(input()) * 2)",
    "recursion": "import sys\nsys.setrecursionlimit(10**5)\nf = lambda n: n and f(n - 1)\nf(50000)\nprint(int(input()) * 2)",
    "spaces": "print('  ', int(input()) * 2, '   ')\nprint()",
    "files of its own": "open('x', 'w').write(input())\nprint(int(open('x').read()) * 2)",
    "annotations": "class A:\n    x: int\nprint(A.__annotations__['x'](input()) * 2)",
    "dataclass": "from dataclasses import dataclass\n@dataclass\nclass A:\n    x: 'int'\nprint(A(int(input())).x * 2)",
}


@pytest.mark.parametrize("name", READING)
def test_a_right_program_may_read_and_write_in_any_way(verify, name):
    verdict = verify(DOUBLE, READING[name])
    assert (verdict.why, verdict.graders) == ("right", {"strict": True, "compat": True})


@pytest.mark.parametrize(
    ("program", "why", "test"),
    [
        ("print(4)", "wrong_answer", 1),
        ("print(int(input()) * 3)", "wrong_answer", 0),
        ("print('4 ' * 2)", "wrong_answer", 0),
        ("pass", "wrong_answer", 0),
        ("import os\nprint(int(input()) * 2, flush=True)\nos._exit(0)", "right", None),
        ("import os\nprint(int(input()) * 2)\nos._exit(0)", "wrong_answer", 0),
        ("print(int(input()) * 2)\n1 / 0", "runtime_error", 0),
        ("print(int(input()) * 2)\nexit(3)", "runtime_error", 0),
        ("import os\nos.abort()", "runtime_error", 0),
        ("import ctypes\nctypes.string_at(0)", "runtime_error", 0),
        ("def f(:", "runtime_error", 0),
        ("input(); input(); input()", "runtime_error", 0),
        ("import numpy_that_is_not_there", "runtime_error", 0),
        ("while True: pass", "timeout", 0),
        ("import time\ntime.sleep(60)", "timeout", 0),
        ("print('x' * (1 << 21))", "output_limit", 0),
        ("import os\nos.write(1, b'\\xff\\xfe')", "wrong_answer", 0),
    ],
)
def test_a_wrong_program_has_its_reason_and_its_first_failed_test(verify, program, why, test):
    verdict = verify(DOUBLE, program)
    assert (verdict.why, verdict.test, verdict.right) == (why, test, why == "right")


def test_the_graders_differ_in_floats_and_spaces_and_the_configured_one_decides(tmp_path):
    row = {"prompt": "p", "tests": [{"input": "", "output": "a b 0.333333333"}]}
    problem = problem_of(row, tmp_path)
    for grader, right in (("strict", True), ("compat", False)):
        with ProgramVerifier(Programs(grader=grader), unsafe=True) as verifier:
            verdict = verifier.verify(problem, "```python\nprint('a  b', 1 / 3)\n```")
        assert verdict.graders == {"strict": True, "compat": False}
        assert verdict.right == right
        assert verdict.test == (None if right else 0)


def test_an_answer_without_a_block_has_no_program(tmp_path, verify):
    with ProgramVerifier(Programs(), unsafe=True) as verifier:
        verdict = verifier.verify(problem_of(DOUBLE, tmp_path), "print(4)")
    assert (verdict.right, verdict.answer, verdict.why) == (False, None, "no_program")
    assert verdict.graders == {"strict": False, "compat": False}


def functional(function, *cases):
    tests = [{"input": given, "output": output, "testtype": "functional"} for given, output in cases]
    about = {"question_content": "q", "starter_code": "class Solution: ...", "metadata": json.dumps({"func_name": function})}
    return {**about, "public_test_cases": json.dumps(tests), "private_test_cases": "[]"}


def test_an_integer_beyond_the_range_of_floats_is_a_wrong_answer(verify):
    assert verify(functional("f", ("1", "0.5")), "def f(x):\n    return 10**400").why == "wrong_answer"


CALLED = functional("twice", ("[1, 2]", "[1, 2, 1, 2]"), ("[]", "[]"))


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("class Solution:\n    def twice(self, a: List[int]) -> List[int]:\n        return a + a", "right"),
        ("class Solution:\n    def twice(self, a):\n        print('noise')\n        return (*a, *a)", "right"),
        ("def twice(a):\n    return list(chain(a, a))", "right"),
        ("def twice(a):\n    datetime.datetime, copy.copy, random.random, pow(2, 3, 5)\n    return a * 2", "right"),
        ("class Solution:\n    def twice(self, a):\n        return a", "wrong_answer"),
        ("class Solution:\n    def twice(self, a):\n        return None", "wrong_answer"),
        ("class Solution:\n    def twice(self, a):\n        return object()", "runtime_error"),
        ("class Solution:\n    def other(self, a):\n        return a", "runtime_error"),
        ("class Solution:\n    def twice(self, a):\n        exit(0)", "wrong_answer"),
        ("print([1, 2, 1, 2])\nexit(0)", "wrong_answer"),
    ],
)
def test_a_functional_test_compares_the_returned_value(verify, program, why):
    assert verify(CALLED, program).why == why


@pytest.mark.parametrize(
    ("program", "why"),
    [
        ("def f(x):\n    return (x, {x})", "right"),
        ("def f(x):\n    return [x, {x}]", "wrong_answer"),
        ("def f(x):\n    raise SystemExit", "wrong_answer"),
        ("class Same:\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return Same()", "runtime_error"),
        ("import os\nos._exit(0)", "wrong_answer"),
        ("def f(x):\n    return (x, {1, 2})", "wrong_answer"),
    ],
)
def test_an_assert_is_verified_by_its_value(verify, program, why):
    asserts = ["assert f(1) == (1, {1})", "assert f(2)[0] == 2", {"code": "value = f(3)\nassert value == (3, {3})"}]
    assert verify({"prompt": "p", "tests": asserts}, program).why == why


def test_programs_read_the_files_of_a_folder_of_tests(tmp_path, verify):
    for name, content in {"1.in": "2\n", "1.out": "4\n", "2.in": "0.1 0.2\n", "2.out": "0.3\n"}.items():
        (tmp_path / name).write_text(content)
    cases = "test_cases: [{in: 1.in, out: 1.out}, {in: 2.in, out: 2.out}]"
    program = "x = list(map(float, input().split()))\nprint(sum(x) * (2 if len(x) == 1 else 1))"
    for checker, test in (("", 0), ("\nchecker: floats", None), ("\nchecker: identical", 0)):
        (tmp_path / "init.yml").write_text(cases + checker)
        verdict = verify({"prompt": "p", "tests": str(tmp_path)}, program)
        assert (verdict.test, verdict.right) == (test, test is None)
        assert not verdict.graders["compat"], "0.30000000000000004 is not 0.3"


def test_the_total_time_of_all_tests_is_limited(tmp_path):
    row = {"prompt": "p", "tests": [{"input": "", "output": ""}] * 50}
    with ProgramVerifier(Programs(seconds=5.0, seconds_in_all=0.5), unsafe=True) as verifier:
        spin = "import time\nwhile time.process_time() < 0.2: pass"
        verdict = verifier.verify(problem_of(row, tmp_path), f"```python\n{spin}\n```")
    assert verdict.why == "timeout"
    assert 0 < verdict.test < 10


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize(
    ("before", "body", "why"),
    [
        ("#include <iostream>", "int x; std::cin >> x; std::cout << 2 * x << std::endl;", "right"),
        ("", "volatile int *p = nullptr; *p = 1;", "runtime_error"),
        ("", "for (volatile int i = 0;; i = i + 1);", "timeout"),
        ("#include <vector>", "std::vector<int> v; while (true) v.resize(v.size() + 1000000);", "runtime_error"),
        ("int f(int n) { volatile int x = n; return n ? x + f(n - 1) : 0; }", "return f(1000000) & 0;", "wrong_answer"),
        ("", "this is not C++", "compile_error"),
        ('const char loader[] __attribute__((section(".interp"), used)) = {1};', "", "runtime_error"),
    ],
)
def test_cpp_is_compiled_and_verified(tmp_path, before, body, why):
    problem = problem_of({**DOUBLE, "language": "cpp"}, tmp_path)
    with ProgramVerifier(Programs(seconds=1.0, memory=256), unsafe=True) as verifier:
        verdict = verifier.verify(problem, f"```cpp\n{before}\nint main() {{ {body} }}\n```")
    assert verdict.why == why


def test_the_remaining_tests_are_skipped_once_both_graders_have_failed(tmp_path, verify):
    row = {"prompt": "p", "tests": [{"input": "", "output": "x"}] * 1000}
    started = time.monotonic()
    assert verify(row, "print('y')").test == 0
    assert time.monotonic() - started < 10
