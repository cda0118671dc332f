"""Modules import only from rows above them, and the package never needs torch."""

import ast
import subprocess
import sys
from pathlib import Path

import tessy_jax

ROOT = Path(tessy_jax.__file__).parent
ROWS = (
    "errors",
    "gpu_memory",
    "config",
    "backend",
    "sharding",
    "program",
    "compile_cache",
    "processes",
    "records",
    "store",
    "models",
    "text",
    "decode",
    "synthesis",
)
ROWS += ("train", "boundary", "evaluate", "report", "mini", "pipeline", "compare", "analyze", "plan", "arguments", "cli")
FORBIDDEN = {
    ("train", "decode"),
    ("train", "synthesis"),
    ("decode", "text"),
    ("decode", "records"),
    ("decode", "config"),
}


def edges():
    for file in ROOT.rglob("*.py"):
        row = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tessy_jax."):
                yield file, row, node.module.split(".")[1]
            assert not isinstance(node, ast.Import) or not any(n.name.startswith("tessy_jax") for n in node.names), file
            if isinstance(node, ast.ImportFrom) and node.module == "tessy_jax":
                yield from ((file, row, name.name) for name in node.names if name.name != "__version__")
            names = [n.name for n in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            assert not (isinstance(node, ast.Import | ast.ImportFrom) and any(n.split(".")[0] == "torch" for n in names)), (
                file
            )


def test_every_import_points_up():
    imports = list(edges())
    assert len(imports) > 20
    for file, row, target in imports:
        assert ROWS.index(target) <= ROWS.index(row), f"{file} imports {target}, which is below {row}"
        assert (row, target) not in FORBIDDEN, f"{file} must not import {target}"


def test_loading_a_model_imports_neither_torch_nor_transformers():
    code = "import sys, tessy_jax.models.export, tessy_jax.decode.generate\n"
    code += "print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
