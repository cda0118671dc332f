"""Names of arrays end in axes that the package's legend explains."""

import ast
import re

import tessy_jax
from tests.conftest import ROOT

SUFFIX = re.compile(r"[a-z][a-z0-9_]*_([A-Z][A-Z0-9]*)")
LEGEND = re.findall(r"(?:^|  )([A-Z])  (\S[^\n]*?)(?=  |\n)", tessy_jax.__doc__, re.MULTILINE)


def names(tree):
    """All names of variables, attributes and parameters; strings are left out."""
    for node in ast.walk(tree):
        for field in ("id", "attr", "arg", "name"):
            if isinstance(name := getattr(node, field, None), str):
                yield name


def axes():
    """Per axis letter, the names that have it."""
    by_letter = {}
    for file in sorted((ROOT / "tessy_jax").rglob("*.py")):
        for name in names(ast.parse(file.read_text())):
            if match := SUFFIX.fullmatch(name):
                for letter in re.sub(r"[0-9]", "", match[1]):
                    by_letter.setdefault(letter, set()).add(f"{file.name}: {name}")
    return by_letter


def test_every_axis_has_one_line_in_the_legend_and_every_line_is_used():
    letters = [letter for letter, _ in LEGEND]
    assert len(letters) == len(set(letters))
    assert len({meaning for _, meaning in LEGEND}) == len(LEGEND)
    used = axes()
    assert {letter: used[letter] for letter in used.keys() - set(letters)} == {}
    assert set(letters) - used.keys() == set()


def test_the_reader_of_names_sees_parameters_fields_and_variables():
    tree = ast.parse("class A:\n    a_BT: int\n    def f(self, b_S): self.c_V1 = lambda d_Q: e_K\nAS_IT_IS = 'f_Z'")
    suffixes = {match[1] for name in names(tree) if (match := SUFFIX.fullmatch(name))}
    assert suffixes == {"BT", "S", "V1", "Q", "K"}
