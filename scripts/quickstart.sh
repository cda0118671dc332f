#!/usr/bin/env bash
# From a clone to a report: makes .venv if there is none, installs the package, runs the whole job on the miniature world and
# prints the table and where the report is. Arguments go to `tessy run configs/mini.yaml`: --set output=runs/second.
# PYTHON names the interpreter of a new environment (default: python3).
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
