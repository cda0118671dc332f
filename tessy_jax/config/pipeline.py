"""The sections of the whole job, and their defaults: they stand here only."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tessy_jax.config.evaluation import Answering, Task
from tessy_jax.config.predictors import Making
from tessy_jax.config.sections import (
    RECIPES,
    Boundary,
    Count,
    Data,
    Dated,
    Model,
    Real,
    Sampling,
    Section,
    Synthesis,
    preset_values,
)
from tessy_jax.config.training import Lora, Optimizer, TooLong, Training, Weights

MARGIN = 16
"""Tokens that a chat template may put behind a response."""


class Evaluation(Section):
    """What the student is asked before the first round and after every one."""

    tasks: Annotated[list[Task], Field(min_length=1)]
    sampling: Sampling | None = None
    """How its answers are drawn (null: as its data are)."""
    synthesis: Answering = Answering()
    confidence: Annotated[Real, Field(gt=0, lt=1)] = 0.95
    """How probably an interval should hold the true value."""


class Pipeline(Dated):
    """The whole job: predictors, data, training, evaluation, report."""

    data: Data
    student: Model
    """The model that is fine-tuned."""
    teacher: Model | None = None
    """The stronger model."""
    boundary: Boundary = Boundary()
    """Predictors that are there already; those that are null are made, as `predictors` says."""
    predictors: Making | None = None
    """How predictors are made; their prompts, where data is null, are those of the job."""
    synthesis: Synthesis = Synthesis()
    too_long: TooLong = "refuse"
    """What becomes of a response with more tokens than `training.tokens`: with refuse, the job is not begun where one could
    come about; skip leaves it out, cut cuts its end."""
    weights: Weights = Weights()
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    """Train low-rank changes alone (null: all weights)."""
    training: Training = Training()
    evaluation: Evaluation
    rounds: Count = 1
    """How often the student is trained on data of its own time: each round's is written with the student of the last one."""

    @property
    def missing(self) -> list[str]:
        """The boundary predictors that the recipe needs and the configuration does not name: student, teacher."""
        needs = [key.removeprefix("boundary.") for key in RECIPES[self.synthesis.recipe] if key.startswith("boundary.")]
        return [speaker for speaker in needs if getattr(self.boundary, speaker) is None]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        recipe, training, synthesis = self.synthesis.recipe, self.training, self.synthesis
        if "teacher" in RECIPES[recipe] and self.teacher is None:
            raise ValueError(f"recipe {recipe!r} needs teacher; set it, or use another recipe")
        if self.missing and self.predictors is None:
            raise ValueError(
                f"recipe {recipe!r} needs {' and '.join(f'boundary.{name}' for name in self.missing)}; name predictors "
                "there, or say in predictors how they are made"
            )
        if self.missing and self.predictors is not None and self.predictors.predictor.window != self.boundary.window:
            raise ValueError(
                f"boundary.window is {self.boundary.window} and predictors.predictor.window "
                f"{self.predictors.predictor.window}; a predictor is used as it was trained: set both alike"
            )
        longest = synthesis.max_prompt_tokens + synthesis.max_response_tokens + MARGIN
        if self.too_long == "refuse" and training.tokens < longest:
            raise ValueError(
                f"training.tokens is {training.tokens}, and a response may come to {longest} (synthesis.max_prompt_tokens + "
                f"max_response_tokens + {MARGIN}); set it to that, or too_long to skip or cut"
            )
        return self

    def resolved(self) -> Self:
        """What is None in synthesis, student and teacher comes from the preset; the date is the job's to fill in."""
        update: dict[str, Any] = preset_values(self)
        return self.model_copy(update=update)
