"""Reads programming problems and their tests, in their published formats.

- LiveCodeBench: `question_content`, `starter_code`, `public_test_cases`, `private_test_cases` (compressed or not) and
  `metadata`, whose optional `func_name` is the function that tests call.
- OJBench: a prompt, `id`, `dataset` and `language`. The tests are a folder with init.yml and the files that it names: the
  folder in `tests`, or else `NOI/loj-<id>` or `ICPC/<id>` in the folder of the rows.
- Other rows: a prompt, and `tests`, a list of {"input", "output"}, or of asserts or {"code"} that run after the program.
  `language` is python or cpp.
"""

from __future__ import annotations

import ast
import base64
import binascii
import hashlib
import json
import os
import pickletools
import zlib
from pathlib import Path
from typing import Any

import yaml

from tessy_jax.config.evaluation import Task
from tessy_jax.config.programs import Language
from tessy_jax.errors import DataError
from tessy_jax.evaluate.programs.box.runner import plain
from tessy_jax.evaluate.programs.suite import Suite, check_value, json_value
from tessy_jax.evaluate.tasks import GroundTruth, Problem, text_of, unique_name
from tessy_jax.store.messages import BESIDE, encodable, held_by
from tessy_jax.store.tables import table_rows
from tessy_jax.synthesis.prompts import FORMS, prompt_of

FAMILIES = ("family", "subject", "difficulty")
COLUMNS = (
    *(*FORMS, *BESIDE, *FAMILIES, "id", "question_id", "dataset", "language", "tests"),
    *("question_content", "starter_code", "public_test_cases", "private_test_cases", "metadata"),
)
LANGUAGES: dict[str, Language] = {
    **dict.fromkeys(("python", "python3", "py"), "python"),
    **dict.fromkeys(("cpp", "c++", "cc", "cxx", "cpp17", "c++17"), "cpp"),
}
STRINGS = ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE")
AROUND_STRINGS = ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT", "STOP")
"""Operations of a pickle: those that push a string, and those that may accompany one."""
LARGEST = 1 << 30
"""Maximum size of the decompressed tests of one problem, in bytes."""
KINDS: dict[str, bool] = {"stdin": False, "stdin_stdout": False, "functional": True}
"""Whether a test calls a function, by its testtype."""
LABELS = ("testtype", "type", "id", "name", "explanation", "description", "public", "is_public", "points", "score", "weight")
"""Fields of a test besides its contents: its kind, and labels that change no verdict."""
CHECKERS = "standard, identical, floats, floatsabs and floatsrel"
ERRORS = {"default": "floats", "absolute": "floatsabs", "relative": "floatsrel"}
"""The checker for each error_mode of the checker floats."""
OTHERS = ("archive", "grader", "interactive", "signature_grader", "generator")
"""Unsupported kinds of problems in init.yml."""


def program_problems(task: Task) -> list[Problem]:
    """Reads the problems of a task's table, in the order of its rows. Their reference is the number and a hash of their
    tests.

    Raises:
        DataError: the table cannot be read, or a row is not a problem, has no tests, or has an invalid test or one that no
            program can pass; names file and line.
        ConfigError: a package is missing.
    """
    assert task.path is not None
    names: set[str] = set()
    problems = []
    for where, row in table_rows(task.path, task.split, task.limit, COLUMNS, subset=task.subset):
        try:
            if isinstance(row, DataError):
                raise row
            if not isinstance(row, dict):
                raise DataError(f"is {_short(row)}; it should be an object with a prompt and tests")
            own, messages, suite = _problem(row, Path(task.path).parent, task.running.language)
            suite.check_sizes(task.running.output)
            family = next((family for column in FAMILIES if (family := text_of(row, column))), None)
        except DataError as error:
            raise DataError(f"{where}: {error}") from None
        name = unique_name(own, names)
        reference, _, packed = suite.ground_truth()
        problems.append(Problem(f"{task.name}/{name}", task.name, family, messages, reference, tests=packed))
    if not problems:
        raise DataError(f"{task.path}: holds no rows; give at least one problem")
    return problems


def ground_truth(row: dict[str, Any], column: str, name: str) -> GroundTruth:
    """The tests of a row of prompts; a folder of tests is relative to the working folder. See `tasks.GroundTruthReader`.

    Raises:
        DataError: the row has no tests or an invalid test.
    """
    return _problem(row, Path(), None)[2].ground_truth()


def _problem(row: dict[str, Any], folder: Path, task_language: Language | None) -> tuple[str, list[dict[str, str]], Suite]:
    value = row.get("language")
    own_language = LANGUAGES.get(str(value).lower()) if value else "python"
    if task_language is None and own_language is None:
        raise DataError(f"language is {value!r}; it should be python or cpp")
    language = task_language or own_language or "python"
    if "question_content" in row:
        tests = _livecodebench(row)
        prompt_row = row if any(row.get(form) for form in FORMS) else {"prompt": _livecodebench_prompt(row, language)}
    elif isinstance(row.get("tests"), str) and not row["tests"].lstrip().startswith("["):
        tests, prompt_row = _folder(_below(folder, row["tests"])), row
    elif row.get("tests") is not None:
        tests, prompt_row = _plain(row["tests"]), row
    elif row.get("dataset") and row.get("id") is not None:
        tests, prompt_row = _folder(_published(row, folder)), row
    else:
        right = "it should hold `tests`, or be a row of LiveCodeBench or OJBench"
        raise DataError(f"has no tests; {right}; it holds {held_by(row)}")
    if language != "python" and any("input" not in test and "input_file" not in test for test in tests):
        raise DataError("has tests that call or check Python, and its language is cpp; give tests with input and output")
    _, messages = prompt_of({**prompt_row, "id": None})
    return _id(row) or _hash(messages), messages, Suite(language, "question_content" in row, tests)


def _id(row: dict[str, Any]) -> str | None:
    own = row.get("question_id") if row.get("id") is None else row["id"]
    if own is None:
        return None
    if isinstance(own, bool) or not isinstance(own, str | int):
        raise DataError(f"id is {_short(own)}; it should be a string or a whole number")
    parts = [row["dataset"], own, row.get("language")] if row.get("dataset") else [own]
    return "-".join(str(part) for part in parts if part)


def _hash(messages: list[dict[str, str]]) -> str:
    return "h" + hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]


def _livecodebench_prompt(row: dict[str, Any], language: Language) -> str:
    """The prompt for a row of LiveCodeBench, made from its question and starter code."""
    name, starter = {"python": "Python", "cpp": "C++"}[language], _text(row, "starter_code", "")
    if starter.strip():
        request = "Complete this code; keep its names:\n\n" + f"```{language}\n{starter.rstrip()}\n```\n\n"
        request += f"Write the whole {name} code, with what it needs, in one fenced block."
    else:
        request = (
            f"Write a {name} program that reads all of its input from standard input and prints the answer to standard "
        )
        request += "output, in one fenced block."
    return f"{_text(row, 'question_content').strip()}\n\n{request}"


def _livecodebench(row: dict[str, Any]) -> list[dict[str, Any]]:
    about = _json(row.get("metadata") or "{}", "metadata")
    function = about.get("func_name") if isinstance(about, dict) else None
    tests: list[dict[str, Any]] = []
    for column in ("public_test_cases", "private_test_cases"):
        value = row.get(column)
        if value is None:
            raise DataError(f"has no `{column}`; a program needs all of its tests: add the column, with [] if it has none")
        if isinstance(value, str) and value.lstrip()[:1] not in ("[", "{"):
            value = _decompressed(value, column)
        for number, case in enumerate(_listed(value, column)):
            place = f"{column}[{number}]"
            texts = _pair(case, place)
            called = _calls(case, place)
            if not (function is not None if called is None else called):
                tests.append(texts)
            elif not isinstance(function, str) or not function.isidentifier():
                raise DataError(f"{place} calls a function, and metadata names none in func_name ({function!r})")
            else:
                lines = texts["input"].strip().split("\n") if texts["input"].strip() else []
                for line_number, line in enumerate(lines, 1):
                    _json(line, f"{place}.input, line {line_number}")
                check_value(_json(texts["output"], f"{place}.output"), f"{place}.output")
                tests.append({"function": function, "arguments": lines, "output": texts["output"]})
    return _some(tests, "public_test_cases and private_test_cases")


def _unpickled(data: bytes) -> str:
    """The string that was pickled; no operation of the pickle is executed.

    Raises:
        ValueError: it holds anything but one string.
    """
    strings = []
    for operation, argument, _ in pickletools.genops(data):
        if operation.name in STRINGS:
            strings.append(argument)
        elif operation.name not in AROUND_STRINGS:
            raise ValueError(f"it has the operation {operation.name}; it should hold only a string")
    if len(strings) != 1:
        raise ValueError(f"it has {len(strings)} strings")
    return str(strings[0])


def _decompressed(text: str, column: str) -> str:
    """Decompresses tests in LiveCodeBench's format: a JSON string, pickled, compressed, in base 64."""
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(base64.b64decode(text.encode(), validate=True), LARGEST)
        if unpacker.unconsumed_tail:
            raise DataError(f"{column} holds more than {LARGEST:,} bytes; split the problem's tests")
        if not unpacker.eof:
            raise DataError(f"{column} is cut off; download the file again")
    except (binascii.Error, zlib.error) as error:
        raise DataError(f"{column} is neither JSON nor compressed tests ({error}); download the file again") from None
    try:
        return _unpickled(data)
    except ValueError as error:
        raise DataError(f"{column} is no pickled string ({error}); use the files that LiveCodeBench publishes") from None


def _plain(tests: Any) -> list[dict[str, Any]]:
    checked = []
    for number, test in enumerate(_listed(tests, "tests")):
        place = f"tests[{number}]"
        if isinstance(test, dict) and test.get("code") is None:
            texts = _pair(test, place)
            if _calls(test, place):
                raise DataError(
                    f'{place} calls a function that it does not name; write an assert, such as "assert f(1) == 2"'
                )
            checked.append(texts)
            continue
        if isinstance(test, dict):
            _known(test, place, "code")
        code = test["code"] if isinstance(test, dict) else test
        if not isinstance(code, str) or not code.strip():
            raise DataError(f"{place} is {_short(test)}; it should be an assert, or hold input and output, or code")
        try:
            checked.append(_checked(code, place))
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise DataError(f"{place} is no Python ({error}); correct it") from None
    return _some(checked, "tests")


def _checked(code: str, place: str) -> dict[str, Any]:
    """An assert as a test. A comparison with a literal becomes a comparison outside the sandbox."""
    body = ast.parse(code).body
    if all(isinstance(line, ast.Assert) and _always_true(line.test) for line in body):
        raise DataError(f"{place} is always true, so every program would pass: {_short(code)}; correct it")
    if len(body) != 1 or not isinstance(body[0], ast.Assert):
        return {"code": code}
    asserted = body[0].test
    if isinstance(asserted, ast.Compare) and len(asserted.ops) == 1 and isinstance(asserted.ops[0], ast.Eq):
        left, right = asserted.left, asserted.comparators[0]
        for value, literal in ((left, right), (right, left)):
            try:
                return {"expression": ast.unparse(value), "output": plain(ast.literal_eval(literal))}
            except (ValueError, TypeError):
                continue
    return {"expression": f"bool({ast.unparse(asserted)})", "output": True}


def _always_true(asserted: ast.expr) -> bool:
    """Whether an assert is true for every program, such as the assert of a tuple (condition, message)."""
    if isinstance(asserted, ast.Tuple):
        return bool(asserted.elts)
    return isinstance(asserted, ast.Constant) and bool(asserted.value)


def _published(row: dict[str, Any], folder: Path) -> Path:
    """The folder of the tests of a row of OJBench."""
    own = f"loj-{row['id']}" if isinstance(row["id"], int) else str(row["id"])
    return _below(folder, os.path.join(str(row["dataset"]), own))


def _below(folder: Path, path: str) -> Path:
    place = folder / os.path.expanduser(path)
    if not (place / "init.yml").is_file():
        raise DataError(f"{place / 'init.yml'} is missing; put the folder of its tests there")
    return place


def _folder(folder: Path) -> list[dict[str, Any]]:
    """Reads the tests that a folder's init.yml names."""
    file = folder / "init.yml"
    try:
        about = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({str(error).splitlines()[0]}); download it again") from None
    if not isinstance(about, dict) or not isinstance(about.get("test_cases"), list):
        raise DataError(f"{file} has no list test_cases; it should name the files of each test, in and out")
    other = next((key for key in OTHERS if key in about), None)
    if other is not None:
        raise DataError(f"{file} has {other}, which is not supported; unpack an archive, and leave out other problems")
    tests = []
    for case in about["test_cases"]:
        for entry in case.get("batched", [case]) if isinstance(case, dict) else [case]:
            if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("in", "out")):
                raise DataError(f"{file} has a test {_short(entry)}; it should name its files, in and out")
            checker = _checker(entry.get("checker", case.get("checker", about.get("checker"))), file)
            test = {"checker": checker}
            for key, column in (("in", "input_file"), ("out", "output_file")):
                place = (folder / entry[key]).resolve()
                if not place.is_relative_to(folder.resolve()) or not place.is_file():
                    raise DataError(f"{file} names {entry[key]!r}, which is no file in its folder; download the tests again")
                test[column] = str(place)
            tests.append(test)
    return _some(tests, f"{file}: test_cases")


def _checker(value: Any, file: Path) -> str:
    is_dict = isinstance(value, dict)
    name, arguments = (value.get("name"), value.get("args") or {}) if is_dict else (value or "standard", {})
    rest = dict(arguments) if isinstance(arguments, dict) else {"": arguments}
    if name in ERRORS.values():
        digits = rest.pop("precision", 6)
        name = ERRORS.get(str(rest.pop("error_mode", "default"))) if name == "floats" else name
        if name is not None and type(digits) is int and 0 <= digits <= 15 and not rest:
            return f"{name}:{digits}"
    elif name in ("standard", "identical") and not rest:
        return str(name)
    raise DataError(
        f"{file} has the checker {value!r}; only {CHECKERS} are supported, the last three with precision (0 to 15) "
        "and floats with error_mode: leave this problem out"
    )


def _pair(case: Any, place: str) -> dict[str, Any]:
    if not isinstance(case, dict):
        raise DataError(f"{place} is {_short(case)}; it should hold input and output")
    _known(case, place, "input", "output")
    return {key: _text(case, key, place=f"{place}.") for key in ("input", "output")}


def _known(case: dict[str, Any], place: str, *contents: str) -> None:
    """Checks that a test has no further contents, which would be dropped."""
    other = next((key for key, value in case.items() if key not in (*contents, *LABELS) and value is not None), None)
    if other is not None:
        raise DataError(
            f"{place} holds {other!r} ({_short(case[other])}), which is not supported next to {' and '.join(contents)}; "
            "remove it if it changes no verdict; otherwise leave this problem out"
        )


def _calls(case: dict[str, Any], place: str) -> bool | None:
    """Whether a test calls a function; None if it has no testtype."""
    kind = case.get("type") if case.get("testtype") is None else case["testtype"]
    if kind is None:
        return None
    if not isinstance(kind, str) or kind not in KINDS:
        raise DataError(f"{place} has the testtype {_short(kind)}; it should be stdin or functional")
    return KINDS[kind]


def _text(holder: dict[str, Any], key: str, otherwise: str | None = None, place: str = "") -> str:
    value = holder.get(key)
    value = otherwise if value is None else value
    if not isinstance(value, str):
        raise DataError(f"{place}{key} is {_short(value)}; it should be a string")
    return encodable(value, f"{place}{key}")


def _listed(value: Any, column: str) -> list[Any]:
    listed = _json(value, column) if isinstance(value, str) else value
    if not isinstance(listed, list):
        raise DataError(f"{column} is {_short(listed)}; it should be a list of tests")
    return listed


def _some(tests: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    if not tests:
        raise DataError(f"has no tests: {column} is empty; every program would be right")
    return tests


def _json(text: Any, place: str) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return json_value(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({error}): {_short(text)}") from None


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
