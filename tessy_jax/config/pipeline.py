"""The sections of the whole job, and their defaults: they stand here only."""

from __future__ import annotations

from typing import Self, get_args

from pydantic import model_validator

from tessy_jax.config.base import Count, Natural, Text
from tessy_jax.config.evaluation import EvaluationTasks
from tessy_jax.config.predictors import Making
from tessy_jax.config.sections import (
    RECIPES,
    Boundary,
    Data,
    Dated,
    Model,
    Sampling,
    Synthesis,
    Writer,
    preset_values,
)
from tessy_jax.config.training import Lora, OnOverlength, Optimizer, Training, Weights

MADE, BEFORE, DATA, TRAINING, EVALUATION = "predictors", "before", "synthesis", "training", "evaluation"
"""Folders of the stages, which are run folders themselves; the last three in that of a round."""
EPOCHS = "epochs"
"""The folder of a round that holds the evaluations after its epochs: 001, 002, …"""
MARGIN = 16
"""Tokens that a chat template may put behind a response."""


def round_name(number: int) -> str:
    """The folder of a round; the first is 1."""
    return f"round-{number}"


class Evaluation(EvaluationTasks):
    """What the student is asked before the first round and after every one."""

    sampling: Sampling | None = None
    """How its answers are drawn (null: as its data are)."""
    system: Text | None = None
    """System message of the trained student, where its data have one that isolates them (null: that of its section)."""
    every_epochs: Natural = 0
    """After every so many epochs of a training the student is asked as well, as it was then (0: at the end only)."""


class Pipeline(Dated):
    """The whole job: predictors, data, training, evaluation, report."""

    data: Data
    student: Model
    """The model that is fine-tuned."""
    teacher: Model | None = None
    """The stronger model."""
    writer: Model | None = None
    """Another student that writes data in place of the one that is trained (null: that one)."""
    boundary: Boundary = Boundary()
    """Predictors that are there already; those that are null are made, as `predictors` says."""
    predictors: Making | None = None
    """How predictors are made; their prompts, where data is null, are those of the job."""
    synthesis: Synthesis = Synthesis()
    on_overlength: OnOverlength = "refuse"
    """What to do with a response of more than `training.max_seq_len` tokens: refuse to start a job that could write one,
    skip the response, or cut its end."""
    weights: Weights = Weights()
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    """Train low-rank changes alone (null: all weights)."""
    training: Training = Training()
    evaluation: Evaluation
    rounds: Count = 1
    """How often the student is trained on data of its own time: each round's is written with the student of the last one."""

    @property
    def missing(self) -> list[Writer]:
        """Whose boundary predictor the recipe needs and the configuration does not name."""
        needs = RECIPES[self.synthesis.recipe]
        return [name for name in get_args(Writer) if f"boundary.{name}" in needs and getattr(self.boundary, name) is None]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        recipe, training, synthesis = self.synthesis.recipe, self.training, self.synthesis
        self.evaluation.check_samples(self.evaluation.sampling or self.student.sampling)
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
        if self.on_overlength == "refuse" and training.max_seq_len < longest:
            raise ValueError(
                f"training.max_seq_len is {training.max_seq_len}, but a response can have {longest} tokens "
                f"(synthesis.max_prompt_tokens + max_response_tokens + {MARGIN}); raise it to {longest}, or set "
                "on_overlength to skip or cut"
            )
        return self

    def resolved(self) -> Self:
        """What is None in synthesis, student and teacher comes from the preset; the date is the job's to fill in."""
        return self.model_copy(update=preset_values(self))
