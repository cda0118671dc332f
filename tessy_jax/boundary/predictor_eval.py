"""`tessy boundary eval`: evaluates the predictors of a run folder on the validation data."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tessy_jax.boundary.segment_scorer import SegmentScores
from tessy_jax.boundary.traces import LATER, opened, speakers_of
from tessy_jax.boundary.train import score_validation
from tessy_jax.config import Predictors
from tessy_jax.config.recipes import Writer
from tessy_jax.store import RunStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictorEvaluation:
    """The evaluation of a predictor. metrics: the result of `boundary.metrics.measure`. scores: of the
    validation segments."""

    metrics: Mapping[str, Any]
    scores: SegmentScores


def evaluate_predictors(
    config: Predictors,
    only: Writer | None = None,
    *,
    skip_invalid: bool = False,
    log: Callable[[str], None] = logger.info,
) -> dict[Writer, PredictorEvaluation]:
    """Evaluates the predictor of each speaker, or of `only` one. Saves the metrics as evaluation.json.

    Raises:
        TessyError: a predictor is not trained, or the annotations or the output cannot be used.
    """
    store, config = opened(config, LATER)
    store.close()  # fails early if the folder is not writable
    evaluations: dict[Writer, PredictorEvaluation] = {}
    for speaker in speakers_of(config, only):
        scores = score_validation(config, speaker, skip_invalid=skip_invalid)
        evaluations[speaker] = PredictorEvaluation(scores.measured(speaker, config.predictor.threshold), scores)
        log(f"{speaker}: {_line(evaluations[speaker].metrics)}")
    metrics = {speaker: dict(evaluation.metrics) for speaker, evaluation in evaluations.items()}
    with RunStore(config.output) as store:
        store.save_page("evaluation.json", json.dumps(metrics, indent=1) + "\n")
    return evaluations


def _line(metrics: Mapping[str, Any]) -> str:
    cuts = metrics["cuts"]
    return (
        f"style F1 {metrics['style']['f1']:.4f}, accuracy {metrics['accuracy']:.4f}; of {cuts['turns']} turns "
        f"{cuts['early_share']:.1%} cut early, {cuts['exact_share']:.1%} exactly, {cuts['late_share']:.1%} late"
    )
