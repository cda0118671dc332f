"""Builds the miniature's models: a teacher, students that pass a gate, and their boundary predictors.

All of it is learnt by the project's own trainer from rows of the grammar, of the train split alone. A student has never seen
a multiplier from 6 to 9 (family Ah, half of A): that is the capability it lacks. It has seen the teacher's words, in mixed
responses of its first stage, and ends with its own style alone. The gate was stated before any model was built, and nothing
that is fine-tuned later has a say in it.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import jax

from tessy_jax import __version__
from tessy_jax.boundary.train import annotate_traces, score_validation, train_predictor, training_folder
from tessy_jax.config import Evaluate, Predictors, Train
from tessy_jax.config.sections import Dtype
from tessy_jax.errors import DataError
from tessy_jax.evaluate.job import evaluate
from tessy_jax.mini.evaluation import TASK_KINDS
from tessy_jax.mini.models import blank
from tessy_jax.mini.rows import rows, write_rows
from tessy_jax.mini.styles import STYLES, Speaker
from tessy_jax.mini.tasks import Family, items
from tessy_jax.mini.tokenizers import FORMS
from tessy_jax.records import Row
from tessy_jax.train.job import FOLDER, train

logger = logging.getLogger(__name__)
TRIES = 3
"""Students that may be built for every one that is shipped."""
DATE = "2026-01-01"
"""The templates print none; runs want one."""


@dataclass(frozen=True)
class Stage:
    """A training. mixed: the share of responses in both styles. items: prompts of each family; of sums twice as many."""

    name: str
    steps: int
    learning_rate: float
    mixed: float
    items: int


STAGES: dict[Speaker, tuple[Stage, ...]] = {
    "teacher": (Stage("all", 1600, 3e-3, 0.25, 10_000),),
    "student": (Stage("mixed", 1000, 3e-3, 0.5, 10_000), Stage("own", 300, 1e-3, 0.0, 4_000)),
}
ROWS, TOKENS = 26, 160
"""Of an optimizer step; the longest response of either speaker fits into a row."""
CAPABILITY = 4.0
"""How much more a word of capability counts in the loss: sums are what takes long to learn."""
TRACES = 600
"""Prompts of each family that a predictor learns from."""
GATE: dict[Speaker, dict[Family, tuple[float, float]]] = {
    "teacher": {"Ae": (0.97, 1.0), "Ah": (0.97, 1.0), "B": (0.99, 1.0), "C": (0.99, 1.0), "D": (0.99, 1.0)},
    "student": {"Ae": (0.95, 1.0), "Ah": (0.0, 0.15), "B": (0.99, 1.0), "C": (0.99, 1.0), "D": (0.99, 1.0)},
}
"""Lowest and highest pass@1 of a model that is shipped, on validation problems."""
PROBLEMS = 500
"""Of each family, at the gate."""


def pretraining(speaker: Speaker, stage: Stage, seed: int) -> Iterator[Row]:
    """The rows that a stage learns from."""
    for family in FORMS[speaker].families:
        count = stage.items * (2 if family.startswith("A") else 1)
        yield from rows(islice(items(family, "train", seed), count), speaker, seed=seed, mixed=stage.mixed, writers="kinds")


def traces(speaker: Speaker) -> Iterator[Row]:
    """The rows that a predictor learns from: both styles, as it meets them when both speakers write, and their spans."""
    for family in FORMS[speaker].families:
        yield from rows(islice(items(family, "train", 0), TRACES), speaker, mixed=0.5, writers="kinds")


def language_model(speaker: Speaker, seed: int, work: Path, log: Callable[[str], None] = logger.info) -> Path:
    """Pretrains a speaker's model, or goes on with it; returns its folder, in bfloat16."""
    start = work / "blank"
    if not start.exists():
        blank(speaker, start, seed=seed)
    model, stages = start, STAGES[speaker]
    for number, stage in enumerate(stages):
        data = work / f"{stage.name}.jsonl"
        if not data.exists():
            write_rows(data, pretraining(speaker, stage, seed + 1000 * number))
        dtype: Dtype = "bfloat16" if number + 1 == len(stages) else "float32"
        config = Train.model_validate(
            {
                "output": str(work / stage.name),
                "seed": seed,
                "date": DATE,
                "student": {"model": str(model), "dtype": dtype},
                "data": {"path": str(data)},
                "weights": {"teacher": CAPABILITY},
                "optimizer": {"learning_rate": stage.learning_rate, "min_lr_ratio": 0.03, "options": {"b2": 0.98}},
                "training": {
                    "steps": stage.steps,
                    "max_seq_len": TOKENS,
                    "batch_size": ROWS,
                    "dtype": "float32",
                    "remat": "none",
                    "save_every": 200,
                },
            }
        )
        done = train(config).summary
        log(f"{speaker}, seed {seed}, {stage.name}: {done['steps']} steps, loss {done['loss']:.4f}, {done['seconds']:.0f} s")
        model = work / stage.name / FOLDER
    return model


def measured(speaker: Speaker, model: Path, work: Path) -> dict[str, float]:
    """pass@1 of a model on validation problems, per family, at temperature 0.6."""
    families = list(GATE[speaker])
    config = Evaluate.model_validate(
        {
            "output": str(work / "gate"),
            "date": DATE,
            "student": {
                "model": str(model),
                "dtype": "float32",
                "sampling": {"temperature": 0.6, "top_p": 1.0, "top_k": 0},
            },
            "tasks": [
                {
                    "name": "gate",
                    "mini": {"families": families, "items": PROBLEMS, "split": "validation"},
                    "verifier": "mini",
                }
            ],
            "synthesis": {"max_prompt_tokens": 64, "max_response_tokens": 160, "lanes": 64},
        }
    )
    found = evaluate(config, task_kinds=TASK_KINDS, progress=False).summary["tasks"]["gate"]["families"]
    return {family: found[family]["pass@1"] for family in families}


def passes(speaker: Speaker, found: dict[str, float]) -> bool:
    """Whether a model with these measures is shipped."""
    return all(low <= found[family] <= high for family, (low, high) in GATE[speaker].items())


def predictor(speaker: Speaker, work: Path, log: Callable[[str], None] = logger.info) -> tuple[Path, dict[str, Any]]:
    """Trains a speaker's boundary predictor, or goes on with it; its folder, and its measures on held-out traces."""
    start, data = work / "blank", work / "traces.jsonl"
    if not start.exists():
        blank(speaker, start, seed=0)
    if not data.exists():
        write_rows(data, traces(speaker))
    config = Predictors.model_validate(
        {
            "output": str(work / "run"),
            "date": DATE,
            "traces": {speaker: str(data)},
            "annotator": {"kind": "spans"},
            "segments": {"words": 200, "per_trace": 1},
            "predictor": {"backbone": str(start), "dtype": "bfloat16", "window": 200},
            "optimizer": {"learning_rate": 3e-3, "options": {"weight_decay": 0.01}},
            "training": {
                "epochs": 6,
                "max_seq_len": 256,
                "batch_size": 16,
                "dtype": "float32",
                "remat": "none",
                "eval_every": 50,
                "save_every": 1000,
            },
            "patience": 3,
        }
    )
    annotate_traces(config, speaker, log=log)
    done = train_predictor(config, speaker, log=log)
    found = score_validation(config, speaker).measured(speaker, config.predictor.threshold)
    measures = {
        "style_f1": found["style"]["f1"],
        "cuts": {k: found["cuts"][f"{k}_share"] for k in ("early", "exact", "late")},
    }
    log(f"{speaker}'s predictor: {json.dumps(measures)}, {done['seconds']:.0f} s")
    return Path(training_folder(config, speaker)) / FOLDER, measures


def build(output: Path, work: Path, *, students: int, log: Callable[[str], None] = logger.info) -> dict[str, Any]:
    """Builds everything into `output`, or goes on with what `work` holds; returns what is saved as evaluation.json there.

    Raises:
        DataError: a model does not pass its gate; of the students, too few in `TRIES` times as many.
    """
    started = time.perf_counter()
    report: dict[str, Any] = {
        "settings": {
            "stages": {speaker: [asdict(stage) for stage in stages] for speaker, stages in STAGES.items()},
            "rows": ROWS,
            "tokens": TOKENS,
            "traces": TRACES,
            "gate": GATE,
            "problems": PROBLEMS,
        },
        "models": {},
        "refused": {},
        "predictors": {},
    }

    def tried(speaker: Speaker, name: str, seed: int) -> bool:
        own = work / f"{speaker}-{seed}"
        model = language_model(speaker, seed, own, log)
        found = measured(speaker, model, own)
        ships = passes(speaker, found)
        shown = ", ".join(f"{family} {share:.1%}" for family, share in found.items())
        log(f"{speaker}, seed {seed}: {shown}: {'passes, as ' + name if ships else 'does not pass'}")
        report["models" if ships else "refused"][name if ships else f"{speaker}, seed {seed}"] = {"seed": seed, **found}
        if ships:
            _ship(model, output / name)
        return ships

    if not tried("teacher", "teacher", 0):
        raise DataError(f"the teacher does not pass its gate: {report['refused']}; train it longer")
    passed = 0
    for seed in range(TRIES * students):
        if passed < students and tried("student", f"student-{passed}", seed):
            passed += 1
    if passed < students:
        raise DataError(f"only {passed} of {students} students pass the gate: {report['refused']}; train them longer")
    for speaker in STYLES:
        model, report["predictors"][speaker] = predictor(speaker, work / f"predictor-{speaker}", log)
        _ship(model, output / f"predictor-{speaker}")
    report["seconds_of_last_start"] = round(time.perf_counter() - started)
    report["bytes"] = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    report["versions"] = {"tessy_jax": __version__, "jax": jax.__version__}
    (output / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _ship(model: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(model, folder)
