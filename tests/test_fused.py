"""One process synthesizes, trains on the responses and synthesizes again, and loads the student once."""

import json

import jax
import numpy as np
import pytest
from flax import nnx

from tessy_jax.config import Synthesize, Train
from tessy_jax.models import hf
from tessy_jax.synthesis.export import rows_in_order
from tessy_jax.synthesis.job import synthesize
from tessy_jax.train.job import train
from tests.synthesis.tiny_pair import CLOSE, build, settings, write_prompts

OPEN = "<think>\n"


def live_bytes():
    """Bytes of all arrays on the devices."""
    return sum(x.nbytes for x in jax.live_arrays())


@pytest.mark.slow
@pytest.mark.parametrize("mesh", [{}, {"data": 2, "fsdp": 2}])
def test_the_students_arrays_go_from_synthesis_to_training_and_back_without_touching_disk(tmp_path, monkeypatch, mesh):
    paths = build(tmp_path / "pair")
    prompts = write_prompts(tmp_path / "prompts.jsonl", 6)

    def synthesis(name, model):
        raw = settings({**paths, "student": model}, prompts, tmp_path / name, max_response_tokens=32)
        return Synthesize.model_validate(raw | {"mesh": mesh})

    def training(name):
        return Train.model_validate(
            {
                "output": str(tmp_path / name),
                "mesh": mesh,
                "student": {
                    "model": paths["student"],
                    "dtype": "float32",
                    "thinking": {"open": OPEN, "close": CLOSE},
                },
                "data": {"path": str(tmp_path / "first")},
                "optimizer": {"learning_rate": 0.01},
                "training": {"steps": 2, "max_seq_len": 128, "batch_size": 8, "dtype": "float32"},
            }
        )

    loaded = []
    load = hf.load
    monkeypatch.setattr(hf, "load", lambda folder, **options: (loaded.append(str(folder)), load(folder, **options))[1])
    before = live_bytes()
    written = synthesize(synthesis("first", paths["student"]), progress=False)
    weights = sum(x.nbytes for x in _arrays(written.student))
    assert live_bytes() - before < 1.5 * weights, "the teacher, the predictors or the caches are still held"
    fused = train(training("fused"), written.student)
    assert all(x.is_deleted() for x in _arrays(written.student)), "the untrained weights are still held"
    again = synthesize(synthesis("again", paths["student"]), fused.student, progress=False)
    assert loaded.count(paths["student"]) == 1
    assert again.student is not None

    apart = train(training("apart"))
    assert [json.loads(x)["loss"] for x in _metrics(tmp_path / "apart")] == pytest.approx(
        [json.loads(x)["loss"] for x in _metrics(tmp_path / "fused")], rel=1e-6
    )
    assert apart.summary["finished"]
    synthesize(synthesis("reloaded", str(tmp_path / "apart" / "model")), progress=False)
    ours, theirs = ([row.content for row in rows_in_order(str(tmp_path / name))] for name in ("again", "reloaded"))
    assert ours == theirs
    first = [row.content for row in rows_in_order(str(tmp_path / "first"))]
    assert ours != first, "training has changed nothing"
    assert np.isfinite(fused.summary["loss"])


def _arrays(model):
    return [parameter[...] for _, parameter in hf.parameter_paths(nnx.state(model))]


def _metrics(folder):
    return (folder / "metrics.jsonl").read_text().splitlines()
