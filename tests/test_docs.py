"""The documents agree with the commands."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest
import yaml

from tessy_jax import cli
from tessy_jax.config import Pipeline

ROOT = Path(__file__).resolve().parents[1]
OTHERS = ("python scripts/", "srun ", "xpk ")
"""How lines of a document begin whose options belong to other programs."""


@pytest.mark.parametrize("name", ["keys", "pairs", "compiled"])
def test_the_generated_parts_of_configs_are_the_output_of_their_generator(name):
    spec = importlib.util.spec_from_file_location("document_configs", ROOT / "scripts" / "document_configs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.block(name) in (ROOT / "configs" / "README.md").read_text("utf-8"), (
        "run python scripts/document_configs.py --write"
    )


def test_the_inspect_example_of_the_readme_is_its_output(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    command, expected = re.search(r"\$ tessy (inspect .*?)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).groups()
    assert cli.main(command.split()) == 0
    assert capsys.readouterr().out == expected


@pytest.mark.parametrize("name", ["README.md", "tessy_jax/GUIDE.md"])
def test_every_option_that_a_document_shows_exists(name):
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith(OTHERS)]
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", "\n".join(lines)))
    subparsers = next(a for a in cli.parser()._actions if a.dest == "command").choices.values()
    known = {option for sub in subparsers for action in sub._actions for option in action.option_strings}
    assert shown <= known, shown - known
    assert len(shown) > 5


def test_the_configuration_of_the_readme_is_valid():
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert Pipeline.model_validate(yaml.safe_load(text)).evaluation is not None


def test_the_readme_fits_its_length():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 220
    assert max(len(line) for line in text.splitlines() if not line.startswith("|")) <= 120


DOCUMENTS = [
    "LICENSE",
    "README.md",
    "pyproject.toml",
    ".github/CONTRIBUTING.md",
    "configs/README.md",
    "scripts/README.md",
    "scripts/RESULTS.md",
    "tessy_jax/GUIDE.md",
    "tessy_jax/METHOD.md",
    "tessy_jax/README.md",
]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_the_documents_exist_and_name_no_machine(name):
    text = (ROOT / name).read_text()
    assert len(text) > 200
    assert not re.search(r"(?<![\w.])/(work|root|home|tmp)/", text)


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(".md")])
def test_links_of_the_documents_lead_to_files(name):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / name).read_text())
    missing = [link for link in links if "://" not in link and not (ROOT / name).parent.joinpath(link).exists()]
    assert not missing


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
