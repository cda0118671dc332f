"""The complete job on an accelerator equals that on CPUs up to rounding.

python -m pytest -m gpu tests/test_accelerator.py
"""

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
def test_an_accelerator_and_cpus_write_and_learn_the_same_up_to_rounding(tmp_path):
    results = {}
    for platform in ("cpu", "cuda"):
        folder = tmp_path / platform
        folder.mkdir()
        results[platform] = run(job(folder, data={"rollouts": 4}), platform)
    cuda, cpu = results["cuda"], results["cpu"]
    assert cuda[0]["devices"] != cpu[0]["devices"]
    texts = [{row["id"]: row["messages"] for row in rows} for _, rows, _ in (cpu, cuda)]
    assert len(texts[0]) == len(texts[1]) == 48
    assert sum(texts[1][name] == messages for name, messages in texts[0].items()) >= 0.9 * 48
    assert cuda[2] == pytest.approx(cpu[2], rel=0.05)
