"""`tessy boundary eval`: evaluates the predictors of a run folder on the validation data and writes report.html."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from tessy_jax import __version__
from tessy_jax.boundary.segment_scorer import SegmentScores
from tessy_jax.boundary.traces import LATER, opened, speakers_of
from tessy_jax.boundary.train import score_validation
from tessy_jax.config import Predictors
from tessy_jax.config.recipes import Writer
from tessy_jax.report.predictor_page import Example, PredictorView, predictor_report
from tessy_jax.store import RunStore

logger = logging.getLogger(__name__)
SHOWN = 12  # segments per predictor


def evaluate_predictors(
    config: Predictors,
    only: Writer | None = None,
    *,
    skip_invalid: bool = False,
    log: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Evaluates the predictor of each speaker, or of `only` one. Saves the metrics as evaluation.json and the page as
    report.html, and returns the metrics.

    Raises:
        TessyError: a predictor is not trained, or the annotations or the output cannot be used.
    """
    store, config = opened(config, LATER)
    store.close()  # fails early if the folder is not writable
    views: dict[Writer, PredictorView] = {}
    for speaker in speakers_of(config, only):
        judgements = score_validation(config, speaker, skip_invalid=skip_invalid)
        views[speaker] = PredictorView(judgements.measured(speaker, config.predictor.threshold), _examples(judgements))
        log(f"{speaker}: {_line(views[speaker].metrics)}")
    title = f"Boundary predictors: {config.output.rstrip('/').rpartition('/')[2]}"
    page = predictor_report(views, title=title, subtitle=f"On held-out traces; tessy_jax {__version__}")
    metrics: dict[str, Any] = {speaker: dict(view.metrics) for speaker, view in views.items()}
    with RunStore(config.output) as store:
        store.save_page("evaluation.json", json.dumps(metrics, indent=1) + "\n")
        store.save_page("report.html", page)
    return metrics


def _examples(judgements: SegmentScores) -> list[Example]:
    """Returns evenly spaced segments of the validation data, regardless of their errors."""
    count = len(judgements.segments)
    return [
        Example(
            tokens.annotation.segment.id,
            tokens.annotation.segment.text,
            tokens.offsets,
            tokens.labels,
            judgements.probabilities[i],
            tokens.annotation.spans,
        )
        for i in np.unique(np.linspace(0, count - 1, min(SHOWN, count)).astype(int)).tolist()
        for tokens in [judgements.segments[i]]
    ]


def _line(metrics: Any) -> str:
    cuts = metrics["cuts"]
    return (
        f"style F1 {metrics['style']['f1']:.4f}, accuracy {metrics['accuracy']:.4f}; of {cuts['turns']} turns "
        f"{cuts['early_share']:.1%} cut early, {cuts['exact_share']:.1%} exactly, {cuts['late_share']:.1%} late"
    )
