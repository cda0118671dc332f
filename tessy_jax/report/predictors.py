"""`tessy boundary eval`: measures the predictors of a run folder on validation, and writes its report.html."""

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
from tessy_jax.config.sections import Writer
from tessy_jax.report.predictor_page import Example, PredictorView, predictor_report
from tessy_jax.store import RunStore

logger = logging.getLogger(__name__)
SHOWN = 12  # segments of each predictor


def evaluate_predictors(
    config: Predictors,
    wanted: Writer | None = None,
    *,
    skip_invalid: bool = False,
    log: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Measures the predictor of each speaker; saves the measures as evaluation.json and the page as report.html, and returns
    the measures.

    Raises:
        TessyError: a predictor is not trained yet, or annotations or output cannot be used.
    """
    store, config = opened(config, LATER)
    store.close()  # what cannot be written to is found out before anything is measured
    views: dict[Writer, PredictorView] = {}
    for speaker in speakers_of(config, wanted):
        judgements = score_validation(config, speaker, skip_invalid=skip_invalid)
        views[speaker] = PredictorView(judgements.measured(speaker, config.predictor.threshold), _examples(judgements))
        log(f"{speaker}: {_line(views[speaker].metrics)}")
    title = f"Boundary predictors: {config.output.rstrip('/').rpartition('/')[2]}"
    page = predictor_report(views, title=title, subtitle=f"On held-out traces; tessy_jax {__version__}")
    found: dict[str, Any] = {speaker: dict(view.metrics) for speaker, view in views.items()}
    with RunStore(config.output) as store:
        store.save_page("evaluation.json", json.dumps(found, indent=1) + "\n")
        store.save_page("report.html", page)
    return found


def _examples(judgements: SegmentScores) -> list[Example]:
    """Segments from all over the validation data, those with mistakes as likely as any."""
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
