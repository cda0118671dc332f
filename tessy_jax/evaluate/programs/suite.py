"""The tests of a program, and the check that a program can pass them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import zlib
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Self

from tessy_jax.config.programs import Language
from tessy_jax.errors import DataError
from tessy_jax.evaluate.tasks import GroundTruth

MIB = 1 << 20
SAFE = sys.int_info.str_digits_check_threshold
"""Number of digits up to which `int` converts text under every limit of the interpreter."""
LONGEST = 100_000
"""Maximum number of digits of an integer in a test; its conversion takes quadratic time."""
DEEPEST = 100
"""Maximum depth of nested values in a test, below the recursion limit of every comparison."""


class Suite(NamedTuple):
    """The tests of a program. names: whether the program gets the names that LiveCodeBench imports for programs. tests: each
    holds one of: "input" and "output" (texts); "input_file" and "output_file" (paths) and "checker"; "function", "arguments"
    and "output" (JSON texts); "expression" and "output" (see `box.runner.plain`); "code"."""

    language: Language
    names: bool
    tests: list[dict[str, Any]]

    @classmethod
    def of(cls, packed: bytes | None) -> Self:
        """The suite in the tests of a problem of `rows.program_problems` or of a ground truth."""
        assert packed is not None
        return cls(**json.loads(zlib.decompress(packed)))

    def ground_truth(self) -> GroundTruth:
        """The number and a hash of the tests, and the packed tests."""
        data = json.dumps(self._asdict(), ensure_ascii=True, sort_keys=True).encode()
        count = f"{len(self.tests)} test{'s' if len(self.tests) > 1 else ''}"
        return GroundTruth(f"{count}, sha256 {self._digest()}", tests=zlib.compress(data, 1))

    def _digest(self) -> str:
        """A hash of the tests; it does not depend on the place of their files."""
        digest = hashlib.sha256(f"{self.language} {self.names}".encode())
        for test in self.tests:
            kept = {key: value for key, value in test.items() if not key.endswith("_file")}
            files = [test[key] for key in ("input_file", "output_file") if key in test]
            kept["files"] = [[os.path.basename(file), os.path.getsize(file)] for file in files]
            digest.update(json.dumps(kept, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def check_sizes(self, output: int) -> None:
        """Checks that the limit on the output of a program (`programs.output`, in MiB) admits every right output.

        Raises:
            DataError: it does not.
        """
        for number, test in enumerate(self.tests):
            size = 0 if "code" in test else expected_size(test)
            if size > output * MIB:
                raise DataError(
                    f"test {number} expects an output of {size:,} bytes, but programs.output is {output} MiB, so no program "
                    f"could pass; set programs.output to at least {math.ceil(size / MIB)}"
                )


def expected_size(test: dict[str, Any]) -> int:
    """Approximate size of the expected output, in bytes."""
    if "output_file" in test:
        return os.path.getsize(test["output_file"])
    output = test.get("output", "")
    return len(output.encode("utf-8", "replace") if isinstance(output, str) else json.dumps(output))


def file_text(path: str) -> str:
    """The text of an output file without its byte order mark. Bytes that are not UTF-8 are kept as lone surrogates."""
    return Path(path).read_bytes().decode("utf-8", "surrogateescape").removeprefix("\ufeff")


def json_value(text: str, digits: int = LONGEST) -> Any:
    """Parses JSON whose integers have at most this number of digits, under every limit of the interpreter.

    Raises:
        ValueError: the text is not JSON, an integer is longer, or a fraction exceeds the range of floats.
        RecursionError: it is nested too deeply.
    """

    def integer(text: str) -> int:
        if len(text.lstrip("-")) > digits:
            raise ValueError(f"it holds an integer of {len(text):,} digits; at most {digits:,} are supported")
        return int(text) if len(text) <= SAFE else int(Decimal(text))

    def fraction(text: str) -> float:
        if math.isinf(value := float(text)):
            raise ValueError(f"it holds the number {text:.40}, which exceeds the range of floating-point numbers")
        return value

    return json.loads(text, parse_int=integer, parse_float=fraction)


def check_value(value: Any, place: str) -> None:
    """Checks that an expected value can equal a returned one.

    Raises:
        DataError: it holds NaN, which equals nothing, or is nested too deeply.
    """
    level = [value]
    for _ in range(DEEPEST):
        if any(isinstance(item, float) and math.isnan(item) for item in level):
            raise DataError(f"{place} holds NaN, which equals no value, so no program could pass; leave this test out")
        inner = [item for item in level if isinstance(item, list | dict)]
        level = [part for item in inner for part in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise DataError(f"{place} is nested more than {DEEPEST} levels deep, which is not supported; leave this test out")
