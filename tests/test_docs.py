"""What the documents show is what the commands print."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from tessy_jax import cli

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("python scripts/", "srun ", "xpk ")
"""How lines of the README begin whose options are other programs'."""


def test_the_tables_of_configs_are_those_that_the_planner_makes():
    spec = importlib.util.spec_from_file_location("plan_pairs", ROOT / "scripts" / "plan_pairs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.BEGIN + module.tables() + module.END in (ROOT / "configs" / "README.md").read_text()


def test_the_inspect_example_of_the_readme_is_its_output(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, expected = re.search(r"\$ tessy (inspect .*?)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).groups()
    assert cli.main(command.split()) == 0
    assert capsys.readouterr().out == expected


def test_every_option_that_the_readme_shows_exists():
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if not line.startswith(OTHERS)]
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
    subparsers = next(a for a in cli.parser()._actions if a.dest == "command").choices.values()
    known = {option for sub in subparsers for action in sub._actions for option in action.option_strings}
    assert shown <= known, shown - known
    assert len(shown) > 5


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "pyproject.toml", "scripts/README.md", "configs/README.md"])
def test_the_documents_are_there_and_name_no_machine(name):
    text = (ROOT / name).read_text()
    assert len(text) > 200
    assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", text)


@pytest.mark.slow
def test_the_python_example_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "responses(data)" in block]
    assert example.count("runs/notebook") >= 3
    exec(compile(example.replace("runs/notebook", str(tmp_path / "notebook")), "README.md", "exec"), {})
    written, result = capsys.readouterr().out.strip().splitlines()
    assert {source for source, _ in ast.literal_eval(written)} == {"student", "teacher", "template"}
    assert 0 <= ast.literal_eval(result)["in"]["pass@1"] <= 1
