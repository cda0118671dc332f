"""Runs a Python program in the current process, which ends with it."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import importlib
import io
import json
import os
import random
import sys
import threading
import traceback
import types
from collections import deque
from collections.abc import Callable, ItemsView, KeysView
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

NAMED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools"),
    *("functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
"""Modules whose names LiveCodeBench imports for every program. Of two equal names the later one counts; the name of a module
takes precedence over both."""
READY = (*NAMED, "decimal", "fractions", "array", "queue", "time", "dataclasses", "enum", "contextlib", "textwrap", "struct")
"""Modules that are imported in advance, so that a program does not wait for them."""
RECURSION = {False: 1_000_000, True: 50_000}
DIGITS = {False: 0, True: 4300}
"""The recursion limit, and the maximum number of digits when integers are converted from or to text (0: no limit), for the
grader strict (False) and for compat (True), which has the limits of LiveCodeBench."""
RAISED = 250
"""The exit code of a program that ends with an exception. A program can also choose it itself."""
LAST = 20
"""Number of frames of a traceback that are written, from its end."""
LONG = 2048
"""Number of bits from which `plain` writes an integer in hexadecimal, which takes linear time and has no limit; shorter
integers are below every possible limit."""


def names() -> dict[str, Any]:
    """The names that LiveCodeBench imports for every program. Also defines `exit` and `quit`, as `site` does."""
    for name in READY:
        importlib.import_module(name)
    random.seed(0)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    scope: dict[str, Any] = {}
    for name in NAMED:
        exec(f"from {name} import *", scope)
    scope |= {name: sys.modules[name] for name in NAMED}
    return {name: value for name, value in scope.items() if not name.startswith("__")}


def run(
    source: str, task: dict[str, Any], given: dict[str, Any], nothing: int, begin: Callable[[], None], *, compat: bool
) -> NoReturn:
    """Runs Python source and ends the process. given: names in its scope. nothing: a descriptor of /dev/null. begin: called
    immediately before the program starts. compat: whether the interpreter has the limits of LiveCodeBench.

    task: {} for a program whose output counts; {"function", "arguments" (JSON texts)} for a call, {"expression"} for a
    value, or {"code", "token"} for code that runs after the program and should complete. With the last three, standard
    output of the program is discarded, and the value or the token is written instead.
    """
    results = -1
    if task:
        results = os.dup(1)
        os.dup2(nothing, 1)
    os.close(nothing)
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), "utf-8", errors="surrogateescape")  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = io.TextIOWrapper(io.BufferedWriter(io.FileIO(1, "w")), "utf-8", errors="surrogateescape")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = io.TextIOWrapper(  # type: ignore[misc]
        io.BufferedWriter(io.FileIO(2, "w")), "utf-8", errors="backslashreplace", line_buffering=True
    )
    sys.argv = ["program.py"]
    module = types.ModuleType("__main__")
    module.__dict__.update(given, __name__="__main__", __file__="program.py", __builtins__=builtins)
    sys.modules["__main__"] = module
    if given:
        module.__dict__.update({name: getattr(sys, name) for name in ("stdin", "stdout", "stderr", "argv")})
    sys.setrecursionlimit(RECURSION[compat])
    sys.set_int_max_str_digits(DIGITS[compat])
    threading.excepthook = _print_thread_error

    def work() -> None:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
        if task:
            _write(results, _result(module.__dict__, task))

    begin()
    os._exit(_code(work, module.__dict__))


def _result(scope: dict[str, Any], task: dict[str, Any]) -> str:
    """The result of a task in the scope of a program that has run."""
    if "function" in task:
        owner = scope.get("Solution")
        function = getattr(owner() if callable(owner) else owner, task["function"], None) or scope[task["function"]]
        return _encoded(function(*map(json.loads, task["arguments"])))
    if "expression" in task:
        return _encoded(eval(compile(task["expression"], "test", "eval", dont_inherit=True), scope))
    exec(compile(task["code"], "test", "exec", dont_inherit=True), scope)
    return str(task["token"])


def _encoded(value: Any) -> str:
    return json.dumps(plain(value))


def plain(value: Any) -> Any:
    """Converts a value for JSON: numbers, strings, booleans and None are unchanged, except that an integer of more than
    `LONG` bits becomes ["int", hexadecimal]; any other number, list, tuple, set, dict or view of its keys or items becomes
    [kind, parts].

    Raises:
        TypeError: the value contains another type.
    """
    if isinstance(value, int) and value.bit_length() > LONG:
        return ["int", hex(value)]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, complex):
        return ["complex", [value.real, value.imag]]
    if isinstance(value, Fraction):
        return ["fraction", [plain(value.numerator), plain(value.denominator)]]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if isinstance(value, KeysView | ItemsView):
        value = set(value)
    if isinstance(value, dict):
        return ["dict", [[plain(key), plain(item)] for key, item in value.items()]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [plain(item) for item in value]]
    raise TypeError(f"a {type(value).__name__} is no answer to a test")


def _code(work: Callable[[], None], scope: dict[str, Any]) -> int:
    """Runs `work` and shuts down as the interpreter does, which also writes what files in the program's scope still hold.
    Returns the exit code."""
    code = _tried(work)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    flushed = _tried(sys.stdout.flush)
    for file in (sys.__stdout__, *scope.values()):
        if isinstance(file, io.TextIOWrapper | io.BufferedWriter) and file is not sys.stdout:
            with contextlib.suppress(OSError, ValueError):  # ValueError: it is closed or detached
                file.flush()
    return code or (flushed and 120)


def _tried(work: Callable[[], Any]) -> int:
    try:
        work()
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 255
        print(error.code, file=sys.stderr)
        return 1
    except BaseException as error:
        own = error.__traceback__ and error.__traceback__.tb_next  # without these two frames
        _print_error(error, own and own.tb_next)
        return RAISED
    return 0


def _print_error(error: BaseException, trace: types.TracebackType | None) -> None:
    """Prints an exception with the end of its traceback, which is short even after deep recursion."""
    last = deque([trace], maxlen=LAST)
    while last[-1] and last[-1].tb_next:
        last.append(last[-1].tb_next)
    traceback.print_exception(type(error), error, last[0], limit=-LAST)


def _print_thread_error(arguments: threading.ExceptHookArgs) -> None:
    """See `threading.excepthook`."""
    if arguments.exc_value is not None and not isinstance(arguments.exc_value, SystemExit):
        _print_error(arguments.exc_value, arguments.exc_traceback)


def _write(file: int, text: str) -> None:
    rest = memoryview(text.encode("utf-8", "surrogatepass"))
    while rest:
        rest = rest[os.write(file, rest) :]
