"""The sections of `tessy run`, and the only place of their defaults."""

from __future__ import annotations

from typing import Self, get_args

from pydantic import model_validator

from tessy_jax.config.base import Count, Natural, Text
from tessy_jax.config.evaluation import EvaluationTasks
from tessy_jax.config.predictors import Making
from tessy_jax.config.recipes import RECIPES, Writer
from tessy_jax.config.sections import (
    Boundary,
    Data,
    Dated,
    Model,
    Sampling,
    Synthesis,
    preset_values,
)
from tessy_jax.config.training import Lora, OnOverlength, Optimizer, Training, Weights

MADE, BEFORE, DATA, TRAINING, EVALUATION = "predictors", "before", "synthesis", "training", "evaluation"
"""Run folders of the stages; the last three are in the folder of a round."""
EPOCHS = "epochs"
"""The folder of a round with the evaluations after its epochs: 001, 002, …"""
MARGIN = 16
"""Tokens that a chat template may add after a response."""


def round_name(number: int) -> str:
    """The folder of a round; the first is 1."""
    return f"round-{number}"


class Evaluation(EvaluationTasks):
    """The evaluation of the student, before the first round and after every round."""

    sampling: Sampling | None = None
    """How its responses are sampled (null: as for the data)."""
    system: Text | None = None
    """System message of the trained student, if its data has one from synthesis.isolation (null: student.system)."""
    every_epochs: Natural = 0
    """Also evaluate the student after every this many epochs of a training (0: at the end only)."""


class Pipeline(Dated):
    """The complete job: predictors, data, training, evaluation, report."""

    data: Data
    student: Model
    """The model that is fine-tuned."""
    teacher: Model | None = None
    """The stronger model."""
    writer: Model | None = None
    """Another student that writes the data (null: the trained one)."""
    boundary: Boundary = Boundary()
    """Existing predictors; those that are null are trained as set in `predictors`."""
    predictors: Making | None = None
    """How predictors are made; if its data is null, the prompts are those of the job."""
    synthesis: Synthesis = Synthesis()
    on_overlength: OnOverlength = "refuse"
    """How to handle responses of more than `training.max_seq_len` tokens: refuse to start a job that could write one, skip
    the response, or cut its end."""
    weights: Weights = Weights()
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    """Train low-rank adapters only (null: all weights)."""
    training: Training = Training()
    evaluation: Evaluation
    rounds: Count = 1
    """Rounds of data and training; the data of each round is written with the student of the previous round."""

    @property
    def missing(self) -> list[Writer]:
        """The writers whose boundary predictor the recipe needs and the configuration does not name."""
        required = RECIPES[self.synthesis.recipe].requirements
        return [name for name in get_args(Writer) if f"boundary.{name}" in required and getattr(self.boundary, name) is None]

    @model_validator(mode="after")
    def _complete(self) -> Self:
        recipe, training, synthesis = self.synthesis.recipe, self.training, self.synthesis
        self.evaluation.check_samples(self.evaluation.sampling or self.student.sampling)
        if "teacher" in RECIPES[recipe].requirements and self.teacher is None:
            raise ValueError(f"recipe {recipe!r} needs teacher; set it, or use another recipe")
        if self.missing and self.predictors is None:
            raise ValueError(
                f"recipe {recipe!r} needs {' and '.join(f'boundary.{name}' for name in self.missing)}; name predictors "
                "there, or set predictors to train them"
            )
        if self.missing and self.predictors is not None and self.predictors.predictor.window != self.boundary.window:
            raise ValueError(
                f"boundary.window is {self.boundary.window} and predictors.predictor.window "
                f"{self.predictors.predictor.window}; they must be equal: set both to the same value"
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
        """A copy with None in synthesis, student and teacher filled in from the preset. The job fills in the date."""
        return self.model_copy(update=preset_values(self))
