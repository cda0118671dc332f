#!/usr/bin/env bash
# From a clone to a report: creates .venv if it is missing, installs the package, runs the complete job on the miniature, and
# prints the table and the path of the report. Arguments go to `tessy run configs/mini.yaml`, such as --set output=runs/second.
# PYTHON is the interpreter of a new environment (default: python3).
set -euo pipefail
cd "$(dirname "$0")/.."

if [ ! -x .venv/bin/python ]; then
  "${PYTHON:-python3}" -m venv .venv
fi
if [ ! -x .venv/bin/tessy ]; then
  .venv/bin/python -m pip install --quiet --upgrade pip
  .venv/bin/python -m pip install --quiet --editable .
fi
exec .venv/bin/tessy run configs/mini.yaml "$@"
