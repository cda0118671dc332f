"""Runs a Python program in the current process, which ends with it."""

from __future__ import annotations

import atexit
import builtins
import importlib
import io
import json
import os
import random
import sys
import threading
import traceback
import types
from collections.abc import Callable
from typing import Any, NoReturn

NAMED = (
    *("string", "re", "datetime", "collections", "heapq", "bisect", "copy", "math", "random", "statistics", "itertools"),
    *("functools", "operator", "io", "sys", "json", "builtins", "typing"),
)
"""Modules whose names LiveCodeBench imports for every program. Of two equal names the later one counts; the name of a module
takes precedence over both."""
READY = (*NAMED, "decimal", "fractions", "array", "queue", "time", "dataclasses", "enum", "contextlib", "textwrap", "struct")
"""Modules that are imported in advance, so that a program does not wait for them."""
RECURSION = 50_000


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


def run(source: str, task: dict[str, Any], given: dict[str, Any], nothing: int, begin: Callable[[], None]) -> NoReturn:
    """Runs Python source and ends the process. given: names in its scope. nothing: a descriptor of /dev/null. begin: called
    immediately before the program starts.

    task: {} for a program whose output counts; {"function", "arguments"} for a call, {"expression"} for a value, or {"code",
    "token"} for code that runs after the program and should complete. With the last three, standard output of the program is
    discarded, and the value or the token is written instead.
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
        sys.setrecursionlimit(RECURSION)

    def work() -> None:
        exec(compile(source, "program.py", "exec", dont_inherit=True), module.__dict__)
        if task:
            _write(results, _result(module.__dict__, task))

    begin()
    os._exit(_code(work))


def _result(scope: dict[str, Any], task: dict[str, Any]) -> str:
    """The result of a task in the scope of a program that has run."""
    if "function" in task:
        owner = scope.get("Solution")
        function = getattr(owner() if callable(owner) else owner, task["function"], None) or scope[task["function"]]
        return _encoded(function(*task["arguments"]))
    if "expression" in task:
        return _encoded(eval(compile(task["expression"], "test", "eval", dont_inherit=True), scope))
    exec(compile(task["code"], "test", "exec", dont_inherit=True), scope)
    return str(task["token"])


def _encoded(value: Any) -> str:
    return json.dumps(plain(value))


def plain(value: Any) -> Any:
    """Converts a value for JSON: numbers, strings, booleans and None are unchanged; a list, tuple, set or dict becomes
    [kind, parts].

    Raises:
        TypeError: the value contains another type.
    """
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return ["dict", [[plain(key), plain(item)] for key, item in value.items()]]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, [plain(item) for item in value]]
    raise TypeError(f"a {type(value).__name__} is no answer to a test")


def _code(work: Callable[[], None]) -> int:
    """Runs `work` and shuts down as the interpreter does. Returns the exit code."""
    code = _tried(work)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    flushed = _tried(sys.stdout.flush)
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
        traceback.print_exception(type(error), error, own and own.tb_next)
        return 1
    return 0


def _write(file: int, text: str) -> None:
    rest = memoryview(text.encode("utf-8", "surrogatepass"))
    while rest:
        rest = rest[os.write(file, rest) :]
