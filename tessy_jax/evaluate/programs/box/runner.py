"""How a program is run in the process that was made for it. It never returns from here."""

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
"""Modules that LiveCodeBench gives to every program, with all their names; of two alike, the later one wins, and the
module above both."""
READY = (*NAMED, "decimal", "fractions", "array", "queue", "time", "dataclasses", "enum", "contextlib", "textwrap", "struct")
"""Modules that are there before a program asks for them, so that it need not wait."""
RECURSION = 50_000


def names() -> dict[str, Any]:
    """What LiveCodeBench lets every program use without importing it. Also does what `site` would have done."""
    for name in READY:
        importlib.import_module(name)
    random.seed(0)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    found: dict[str, Any] = {}
    for name in NAMED:
        exec(f"from {name} import *", found)
    found |= {name: sys.modules[name] for name in NAMED}
    return {name: value for name, value in found.items() if not name.startswith("__")}


def run(source: str, task: dict[str, Any], given: dict[str, Any], nothing: int, begin: Callable[[], None]) -> NoReturn:
    """Runs Python. given: names that it need not import. nothing: a descriptor whose text is lost. begin: is called when all
    is ready.

    task: {} for a whole program; {"function", "arguments"} for a call of it, {"expression"} for a value, and {"code",
    "token"} for code behind it that should come to its end. Of these three, what a program prints is lost; the value, or the
    token, comes out instead.
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
            _write(results, _answered(module.__dict__, task))

    begin()
    os._exit(_code(work))


def _answered(scope: dict[str, Any], task: dict[str, Any]) -> str:
    """What a task asks of a program that has run."""
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
    """A value for JSON: numbers, strings, booleans and None as they are, [kind, parts] for lists, tuples, sets and dicts.

    Raises:
        TypeError: it, or something in it, is nothing of these.
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
    """Does it as the interpreter would; the exit code."""
    code = _tried(work)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    flushed = _tried(sys.stdout.flush)
    return code or (flushed and 120)


def _tried(work: Callable[[], Any]) -> int:
    try:
        work()
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return (left.code or 0) & 255
        print(left.code, file=sys.stderr)
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
