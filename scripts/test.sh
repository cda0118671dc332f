#!/usr/bin/env bash
# Creates .venv if it is missing, installs the package with its test extra, lints, checks types and runs the default suite.
# Arguments go to pytest, without lint and types: `bash scripts/test.sh -m slow` runs the long tests; file names select files.
# PYTHON is the interpreter of a new environment (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv
fi
fingerprint=$(cat pyproject.toml scripts/test.sh | cksum)
if [ "$(cat .venv/installed 2>/dev/null || true)" != "$fingerprint" ]; then
  .venv/bin/python -m pip install --quiet --upgrade pip
  .venv/bin/python -m pip install --quiet --editable '.[test]'
  printf '%s' "$fingerprint" >.venv/installed
fi

if [ $# -eq 0 ]; then
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
  .venv/bin/mypy
  set -- -n 2 --dist loadfile --no-loadscope-reorder
fi
exec .venv/bin/python -m pytest "$@"
