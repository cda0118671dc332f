"""The whole job on an accelerator is the job that CPUs do: `python -m pytest -m gpu tests/test_accelerator.py`."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.small_job import job


def run(file, platform):
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "JAX_PLATFORMS": platform, "XLA_FLAGS": "", "PYTHONPATH": path}
    command = [sys.executable, "-m", "tessy_jax.cli"]
    done = subprocess.run([*command, "run", file, "--json"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    output = json.loads(done.stdout)
    data = file.with_suffix("") / "round-1" / "synthesis"
    rows = subprocess.run([*command, "rows", data], env=environment, capture_output=True, text=True, check=True).stdout
    metrics = (file.with_suffix("") / "round-1" / "training" / "metrics.jsonl").read_text().splitlines()
    return output, [json.loads(row) for row in rows.splitlines()], [json.loads(line)["loss"] for line in metrics]


@pytest.mark.gpu
def test_an_accelerator_writes_and_learns_what_cpus_do_but_where_rounding_decides(tmp_path):
    found = {}
    for platform in ("cpu", "cuda"):
        folder = tmp_path / platform
        folder.mkdir()
        found[platform] = run(job(folder, data={"rollouts": 4}), platform)
    there, here = found["cuda"], found["cpu"]
    assert there[0]["devices"] != here[0]["devices"]
    texts = [{row["id"]: row["messages"] for row in rows} for _, rows, _ in (here, there)]
    assert len(texts[0]) == len(texts[1]) == 48
    assert sum(texts[1][name] == messages for name, messages in texts[0].items()) >= 0.9 * 48
    assert there[2] == pytest.approx(here[2], rel=0.05)
