"""Programs and tests of the kinds that graders score wrong, each with the verdict of both graders."""

import json
import shutil
import sys

import pytest

from tessy_jax.config.programs import Programs
from tessy_jax.evaluate.programs.verifier import ProgramVerifier
from tests.evaluate.programs.conftest import problem_of

DIGITS = "7" * 5000
DEEP = 100_000


def printed(output, given=""):
    return {"prompt": "p", "tests": [{"input": given, "output": output}]}


def called(given, output):
    """A row of LiveCodeBench whose test calls `f`."""
    tests = [{"input": given, "output": output, "testtype": "functional"}]
    about = {"question_content": "q", "starter_code": "", "metadata": '{"func_name": "f"}', "private_test_cases": "[]"}
    return {**about, "public_test_cases": json.dumps(tests)}


DOWN = "def down(n):\n    return 0 if n == 0 else 1 + down(n - 1)\n"
VERDICTS = {
    # limits of the interpreter
    "an integer of 5000 digits is printed": (printed(DIGITS), f"print(int({DIGITS[:100]!r} * 50))", True, False),
    "an integer of 5000 digits is read": (printed("7", DIGITS), "print(int(input()) % 10)", True, False),
    "a power of 5001 digits is printed": (printed("1" + "0" * 5000), "print(10 ** 5000)", True, False),
    "an integer of 4300 digits is printed": (printed("7" * 4300), f"print(int({'7' * 4300!r}))", True, True),
    "an integer of 5000 digits is wrong": (printed(DIGITS), f"print(int({DIGITS!r}) + 1)", False, False),
    "the limit is caught": (
        printed(DIGITS),
        f"try:\n    print(int({DIGITS!r}))\nexcept ValueError:\n    print('too long')",
        True,
        False,
    ),
    "the program lifts the limit itself": (
        printed(DIGITS),
        f"import sys\nsys.set_int_max_str_digits(0)\nprint(int({DIGITS!r}))",
        True,
        True,
    ),
    "an integer of 5000 digits is returned": (called("1", DIGITS), f"f = lambda x: int({DIGITS!r})", True, False),
    "an integer of 5000 digits is returned for a short one": (called("1", "7"), "f = lambda x: 10 ** 5000", False, False),
    "an integer of 5000 digits is an argument": (called(DIGITS, "7"), "f = lambda x: x % 10", True, False),
    "an integer of 5000 digits is an argument and wrong": (called(DIGITS, "7"), "f = lambda x: x % 9", False, False),
    "an integer of 5000 digits is inside a list": (
        called("1", f"[{DIGITS}]"),
        f"f = lambda x: (int({DIGITS!r}),)",
        True,
        False,
    ),
    "recursion of 2,000": (printed("2000"), DOWN + "print(down(2000))", True, True),
    "recursion of 40,000": (printed("40000"), DOWN + "print(down(40000))", True, True),
    "recursion of 100,000": (printed("100000"), DOWN + f"print(down({DEEP}))", True, False),
    "recursion of 100,000 with its own limit": (
        printed("100000"),
        DOWN + f"import sys\nsys.setrecursionlimit(10 ** 6)\nprint(down({DEEP}))",
        True,
        True,
    ),
    "recursion of 100,000 in a call": (called(str(DEEP), str(DEEP)), DOWN + "f = down", True, False),
    "recursion of 100,000 in a thread": (
        printed("100000"),
        DOWN + "import threading\nthreading.stack_size(1 << 26)\n"
        f"thread = threading.Thread(target=lambda: print(down({DEEP})))\nthread.start()\nthread.join()",
        True,
        False,
    ),
    "recursion without end": (printed("1"), DOWN + "print(down(-1))", False, False),
    # ends of a program
    "exit code 0": (printed("4"), "import sys\nprint(4)\nsys.exit(0)", True, True),
    "exit without a code": (printed("4"), "print(4)\nexit()", True, True),
    "exit code 1 after the output": (printed("4"), "import sys\nprint(4)\nsys.exit(1)", False, True),
    "exit with a message": (printed("4"), "import sys\nprint(4)\nsys.exit('done')", False, True),
    "exit code 1 after a wrong output": (printed("4"), "import sys\nprint(5)\nsys.exit(1)", False, False),
    "an exception after the output": (printed("4"), "print(4)\n1 / 0", False, False),
    "an exception in a thread": (
        printed("4"),
        "import threading\nprint(4)\nthreading.Thread(target=lambda: 1 / 0).start()",
        True,
        True,
    ),
    "input at the end of the input": (printed("4", "4"), "print(input())\ninput()", False, False),
    "input at the end of the input, caught": (
        printed("4", "4"),
        "print(input())\ntry:\n    input()\nexcept EOFError:\n    pass",
        True,
        True,
    ),
    "a main guard before other code": (printed("4\n5"), "if __name__ == '__main__':\n    print(4)\nprint(5)", True, True),
    "an output file that is not closed": (printed("4"), "out = open(1, 'w')\nout.write('4')", True, True),
    "standard output replaced": (
        printed("4"),
        "import io, sys\nout, sys.stdout = sys.stdout, io.StringIO()\nprint(5)\nout.write('4')",
        True,
        True,
    ),
    "standard output wrapped again": (
        printed("4"),
        "import io, sys\nsys.stdout = io.TextIOWrapper(sys.stdout.detach(), 'ascii')\nprint(4)",
        True,
        True,
    ),
    "a coroutine": (
        printed("4"),
        "import asyncio\nasync def main():\n    await asyncio.sleep(0)\n    print(4)\nasyncio.run(main())",
        True,
        True,
    ),
    "a generator of inputs": (printed("3", "1\n2\n"), "import sys\nprint(sum(int(x) for x in sys.stdin))", True, True),
    "a pool of threads": (
        printed("0 1 4"),
        "from concurrent.futures import ThreadPoolExecutor as Pool\n"
        "with Pool(2) as pool:\n    print(*pool.map(lambda x: x * x, range(3)))",
        True,
        True,
    ),
    "a stack without limit": (
        printed("4"),
        "import resource\nresource.setrlimit(resource.RLIMIT_STACK, (resource.RLIM_INFINITY,) * 2)\nprint(4)",
        True,
        True,
    ),
    # forms of an output
    "no final newline": (printed("4\n"), "print(4, end='')", True, True),
    "spaces at the ends of lines": (printed("1\n2"), "print('1  ')\nprint(' 2\\t')", True, True),
    "CRLF in the output": (printed("1\n2\n"), "print('1\\r\\n2\\r\\n', end='')", True, True),
    "CRLF in the test": (printed("3\r\n4\r\n", "1 2\r\n"), "print(sum(map(int, input().split())))\nprint(4)", True, True),
    "CRLF in a string of the input": (printed("a|b", "a\r\nb\r\n"), "print(input() + '|' + input())", True, True),
    "an empty output": (printed(""), "pass", True, True),
    "a blank output": (printed("\n"), "print()", True, True),
    "an output where none is expected": (printed(""), "print(0)", False, False),
    "no output": (printed("0"), "pass", False, False),
    "1.0 for 1": (printed("1"), "print(1.0)", False, True),
    "1 for 1.0": (printed("1.0"), "print(1)", True, True),
    "-0.0 for 0.0": (printed("0.0"), "print(-0.0)", True, True),
    "-0 for 0": (printed("0"), "print('-0')", False, True),
    "True for true": (printed("true"), "print(True)", False, False),
    "yes for YES": (printed("YES"), "print('yes')", False, False),
    "nan for nan": (printed("nan"), "print(float('nan'))", True, True),
    "a list for its numbers": (printed("1 2"), "print([1, 2])", False, False),
    "1e999999 for a fraction": (printed("0.5"), "print('1e999999')", False, False),
    "1e999999 for an integer": (printed("5"), "print('1e999999')", False, False),
    "a decimal fraction of 200 digits": (printed("0." + "3" * 200), "print(1 / 3)", True, False),
    "an integer of 200 digits, one wrong": (printed("3" * 200), f"print({'3' * 199 + '4'})", False, False),
    "Latin-1 for another byte": (printed("é"), "import os\nos.write(1, b'\\xe8')", False, False),
    "bytes that are no text": (printed("\ufffd"), "import os\nos.write(1, b'\\xff')", False, False),
    # calls
    "a method": (called("1", "2"), "class Solution:\n    def f(self, x: int) -> int:\n        return x + 1", True, True),
    "a static method": (
        called("1", "2"),
        "class Solution:\n    @staticmethod\n    def f(x):\n        return x + 1",
        True,
        True,
    ),
    "a plain function": (called("1", "2"), "def f(x):\n    return x + 1", True, True),
    "a default argument": (called("1", "3"), "def f(x, y=2):\n    return x + y", True, True),
    "any arguments": (called("1\n2", "3"), "def f(*a):\n    return sum(a)", True, True),
    "a cached method": (
        called("1", "2"),
        "class Solution:\n    @cache\n    def f(self, x):\n        return x + 1",
        True,
        True,
    ),
    "a tuple for a list": (called("1", "[1, 2]"), "def f(x):\n    return 1, 2", True, True),
    "a list of tuples": (called("1", "[[1, 2]]"), "def f(x):\n    return [(1, 2)]", True, False),
    "a generator for a list": (called("1", "[1, 2]"), "def f(x):\n    yield from (1, 2)", False, False),
    "True for 1": (called("1", "1"), "def f(x):\n    return x == 1", False, True),
    "1 for true": (called("1", "true"), "def f(x):\n    return 1", False, True),
    "a float for an integer": (called("2", "1"), "def f(x):\n    return x / 2", False, True),
    "an integer for a float": (called("2", "1.0"), "def f(x):\n    return x // 2", True, True),
    "a negative zero": (called("2", "0.0"), "def f(x):\n    return -0.0", True, True),
    "infinity": (called("2", "Infinity"), "def f(x):\n    return inf", True, True),
    "NaN for a number": (called("2", "1.5"), "def f(x):\n    return nan", False, False),
    "a fraction for a float": (
        called("2", "0.5"),
        "from fractions import Fraction\ndef f(x):\n    return Fraction(1, x)",
        True,
        True,
    ),
    "a decimal for a float": (called("2", "0.1"), 'from decimal import Decimal\nf = lambda x: Decimal("0.1")', True, False),
    "a decimal that signals": (
        called("2", "0.1"),
        'from decimal import Decimal\nf = lambda x: Decimal("sNaN")',
        False,
        False,
    ),
    "a fraction for an integer": (called("2", "2"), "from fractions import Fraction\nf = Fraction", False, True),
    "a complex number": (called("2", "2"), "f = complex", False, True),
    "null": (called("2", "null"), "def f(x):\n    pass", True, True),
    "an empty list": (called("2", "[]"), "def f(x):\n    return []", True, True),
    "a string in another case": (called("2", '"a"'), "def f(x):\n    return 'A'", False, False),
    "a dictionary": (called("2", '{"2": [1]}'), "def f(x):\n    return {str(x): [1]}", True, True),
    "a call that prints": (called("2", "3"), "def f(x):\n    print(x)\n    return x + 1", True, True),
    "a list nested 100 levels deep": (
        called("99", "[" * 100 + "]" * 100),
        "def f(x):\n    return [f(x - 1)] if x else []",
        True,
        True,
    ),
}


ASSERTED = {
    "a fraction": ("assert f(1) == 0.5", "from fractions import Fraction\nf = lambda x: Fraction(1, 2)", True),
    "keys of a dictionary": ("assert f(1) == {1, 2}", "f = lambda x: {1: 0, 2: 0}.keys()", True),
    "a complex number": ("assert f(1) == 2", "f = lambda x: 2 + 0j", True),
    "an ordered dictionary": (
        "assert f(1) == {1: 2}",
        "from collections import OrderedDict\nf = lambda x: OrderedDict({1: 2})",
        True,
    ),
    "a named tuple": ("assert f(1) == (1,)", "from collections import namedtuple\nf = namedtuple('A', 'x')", True),
    "True for 1": ("assert f(1) == 1", "f = lambda x: True", True),
    "a list for a tuple": ("assert f(1) == (1,)", "f = lambda x: [x]", False),
    "a deque for a list": ("assert f(1) == [1]", "from collections import deque\nf = lambda x: deque([x])", False),
    "an integer of 5000 digits": ("assert f(1) == " + hex(10**5000), "f = lambda x: 10 ** 5000", True),
    "a wrong integer of 5000 digits": ("assert f(1) == " + hex(10**5000), "f = lambda x: 10 ** 5000 + 1", False),
}


@pytest.mark.parametrize("name", ASSERTED)
def test_an_assert_has_the_verdict_of_python(verify, name):
    test, program, right = ASSERTED[name]
    assert verify({"prompt": "p", "tests": [test]}, program).graders == {"strict": right, "compat": right}


def test_a_byte_order_mark_in_files_of_tests_is_no_text(tmp_path, verify):
    (tmp_path / "1.in").write_bytes(b"\xef\xbb\xbf2\r\n")
    (tmp_path / "1.out").write_bytes(b"\xef\xbb\xbf4\r\n")
    (tmp_path / "init.yml").write_text("test_cases: [{in: 1.in, out: 1.out}]")
    verdict = verify({"prompt": "p", "tests": str(tmp_path)}, "print(int(input()) * 2)")
    assert verdict.graders == {"strict": True, "compat": True}


@pytest.mark.parametrize("name", VERDICTS)
def test_both_graders_give_the_known_verdict(verify, name):
    row, program, strict, compat = VERDICTS[name]
    verdict = verify(row, program)
    assert verdict.graders == {"strict": strict, "compat": compat}, verdict
    assert (verdict.why == "right") == verdict.right == strict


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="CPython 3.12 and 3.13 limit recursion through C, and no setting changes it"
)
def test_recursion_through_c_has_a_stack_that_only_memory_limits(verify):
    program = f"from functools import cache\n@cache\n{DOWN}print(down({DEEP}))"
    assert verify(printed(str(DEEP)), program).graders == {"strict": True, "compat": False}
    endless = "class A:\n    def __repr__(self):\n        return repr([self])\nprint(A())"
    assert verify(printed("1"), endless).graders == {"strict": False, "compat": False}


CPP = {
    "threads": ("#include <thread>\n#include <iostream>", 'std::thread t([] { std::cout << "4"; }); t.join();', True),
    "recursion": (
        "#include <cstdio>\nint f(int n) { volatile int x = 1; return n ? x + f(n - 1) : 0; }",
        'printf("%d", f(2000000) / 500000);',
        True,
    ),
    "exit code 1 after the output": ("#include <cstdio>", 'puts("4"); return 1;', False),
}


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
@pytest.mark.parametrize("name", CPP)
def test_cpp_has_threads_and_a_stack_that_only_memory_limits(tmp_path, name):
    before, body, right = CPP[name]
    problem = problem_of({**printed("4"), "language": "cpp"}, tmp_path)
    with ProgramVerifier(Programs(seconds=1.0, memory=512), unsafe=True) as verifier:
        verdict = verifier.verify(problem, f"```cpp\n{before}\nint main() {{ {body} }}\n```")
    assert verdict.graders == {"strict": right, "compat": right}
