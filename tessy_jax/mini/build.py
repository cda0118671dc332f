"""Builds the models of the miniature: a teacher, students that pass a gate, and their boundary predictors.

The project's trainer trains all of them on rows of the grammar, only from the train split. A student never sees a multiplier
from 6 to 9 (family Ah, half of A), which is the capability it lacks. It sees the teacher's words in mixed responses of its
first stage, and its last stage has only its own style. The gate was defined before any model was built, and is independent
of models that are fine-tuned later.
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
"""Students that may be built per shipped student."""
DATE = "2026-01-01"
"""The date of all runs; the templates do not print it."""


@dataclass(frozen=True)
class Stage:
    """A training run. mixed: share of responses in both styles. items: prompts per family; families of sums have twice as
    many."""

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
"""Rows of an optimizer step, and tokens of a row; the longest response of either speaker fits into a row."""
CAPABILITY = 4.0
"""Weight of capability tokens in the loss, because sums take longest to learn."""
TRACES = 600
"""Prompts per family for the training of a predictor."""
GATE: dict[Speaker, dict[Family, tuple[float, float]]] = {
    "teacher": {"Ae": (0.97, 1.0), "Ah": (0.97, 1.0), "B": (0.99, 1.0), "C": (0.99, 1.0), "D": (0.99, 1.0)},
    "student": {"Ae": (0.95, 1.0), "Ah": (0.0, 0.15), "B": (0.99, 1.0), "C": (0.99, 1.0), "D": (0.99, 1.0)},
}
"""Lowest and highest pass@1 of a shipped model on validation problems."""
PROBLEMS = 500
"""Problems per family at the gate."""


def pretraining(speaker: Speaker, stage: Stage, seed: int) -> Iterator[Row]:
    """The training rows of a stage."""
    for family in FORMS[speaker].families:
        count = stage.items * (2 if family.startswith("A") else 1)
        yield from rows(islice(items(family, "train", seed), count), speaker, seed=seed, mixed=stage.mixed, writers="kinds")


def traces(speaker: Speaker) -> Iterator[Row]:
    """The training rows of a predictor, with exact spans, in both styles, as in responses that both speakers write."""
    for family in FORMS[speaker].families:
        yield from rows(islice(items(family, "train", 0), TRACES), speaker, mixed=0.5, writers="kinds")


def language_model(speaker: Speaker, seed: int, work: Path, log: Callable[[str], None] = logger.info) -> Path:
    """Pretrains a speaker's model, or resumes it; returns the folder of the model in bfloat16."""
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
        summary = train(config).summary
        steps, loss, seconds = summary["steps"], summary["loss"], summary["seconds"]
        log(f"{speaker}, seed {seed}, {stage.name}: {steps} steps, loss {loss:.4f}, {seconds:.0f} s")
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
    scores = evaluate(config, task_kinds=TASK_KINDS, progress=False).summary["tasks"]["gate"]["families"]
    return {family: scores[family]["pass@1"] for family in families}


def passes(speaker: Speaker, pass_at_1: dict[str, float]) -> bool:
    """Whether a model with this pass@1 per family passes the gate."""
    return all(low <= pass_at_1[family] <= high for family, (low, high) in GATE[speaker].items())


def predictor(speaker: Speaker, work: Path, log: Callable[[str], None] = logger.info) -> tuple[Path, dict[str, Any]]:
    """Trains a speaker's boundary predictor, or resumes it; returns its folder and its scores on held-out traces."""
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
    summary = train_predictor(config, speaker, log=log)
    scores = score_validation(config, speaker).measured(speaker, config.predictor.threshold)
    shown = {
        "style_f1": scores["style"]["f1"],
        "cuts": {k: scores["cuts"][f"{k}_share"] for k in ("early", "exact", "late")},
    }
    log(f"{speaker}'s predictor: {json.dumps(shown)}, {summary['seconds']:.0f} s")
    return Path(training_folder(config, speaker)) / FOLDER, shown


def build(output: Path, work: Path, *, students: int, log: Callable[[str], None] = logger.info) -> dict[str, Any]:
    """Builds all models into `output`, resuming from `work`; returns the content of `output`/evaluation.json.

    Raises:
        DataError: the teacher does not pass its gate, or too few of TRIES × students students do.
    """
    start = time.perf_counter()
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

    def attempt(speaker: Speaker, name: str, seed: int) -> bool:
        """Builds a model and ships it as `name` if it passes its gate; returns whether it does."""
        folder = work / f"{speaker}-{seed}"
        model = language_model(speaker, seed, folder, log)
        pass_at_1 = measured(speaker, model, folder)
        ships = passes(speaker, pass_at_1)
        shown = ", ".join(f"{family} {share:.1%}" for family, share in pass_at_1.items())
        log(f"{speaker}, seed {seed}: {shown}: {'passes, as ' + name if ships else 'does not pass'}")
        key = name if ships else f"{speaker}, seed {seed}"
        report["models" if ships else "refused"][key] = {"seed": seed, **pass_at_1}
        if ships:
            _ship(model, output / name)
        return ships

    if not attempt("teacher", "teacher", 0):
        raise DataError(f"the teacher does not pass its gate: {report['refused']}; train it longer")
    passed = 0
    for seed in range(TRIES * students):
        if passed < students and attempt("student", f"student-{passed}", seed):
            passed += 1
    if passed < students:
        raise DataError(f"only {passed} of {students} students pass the gate: {report['refused']}; train them longer")
    for speaker in STYLES:
        model, report["predictors"][speaker] = predictor(speaker, work / f"predictor-{speaker}", log)
        _ship(model, output / f"predictor-{speaker}")
    report["seconds_of_last_start"] = round(time.perf_counter() - start)
    report["bytes"] = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    report["versions"] = {"tessy_jax": __version__, "jax": jax.__version__}
    (output / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return report


def _ship(model: Path, folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(model, folder)
