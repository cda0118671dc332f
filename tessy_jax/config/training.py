"""The sections of a training run, and the only place of their defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tessy_jax.config.base import Count, Natural, Real, Section, Text
from tessy_jax.config.sections import Dated, Dtype, Model

Remat = Literal["none", "dots", "full"]
Schedule = Literal["constant", "linear", "cosine"]
OnOverlength = Literal["refuse", "skip", "cut"]
Share = Annotated[Real, Field(ge=0, le=1)]
Positive = Annotated[Real, Field(gt=0)]
NotNegative = Annotated[Real, Field(ge=0)]


class Examples(Section):
    """Conversations to train on."""

    path: Text
    """Run folder of a synthesis, JSONL, JSON, CSV, TSV or Parquet file, name or folder of a `datasets` data set. Rows hold
    `messages`, `dialogs` or `conversations` that end with an assistant message, `prompt` and `completion`, or `input_ids`
    and `labels`."""
    split: Text = "train"
    """The split of a data set; a file has only one."""
    subset: Text | None = None
    """The configuration of a data set that has several, such as main of openai/gsm8k (null: its default or only one)."""
    limit: Count | None = None
    """Use only this many rows from the start (null: all)."""
    on_overlength: OnOverlength = "refuse"
    """How to handle a row of more than `training.max_seq_len` tokens: refuse to start, skip it, or cut its end."""


class Weights(Section):
    """The weight of a token in the loss, by its writer."""

    student: NotNegative = 1.0
    """The student's tokens (style)."""
    teacher: NotNegative = 1.0
    """The teacher's tokens (capability)."""
    template: NotNegative = 1.0
    """Tokens that open and close the thinking, and end the turn."""
    unknown: NotNegative = 1.0
    """Tokens of rows without spans."""


class Optimizer(Section):
    """The optimizer and its schedule."""

    name: Text = "adamw"
    """The name of an Optax optimizer."""
    learning_rate: Positive = 5e-5
    """The peak learning rate."""
    schedule: Schedule = "cosine"
    """How it decays after the warm-up, to min_lr_ratio times its peak."""
    warmup: Share = 0.03
    """Fraction of all steps in which it rises from 0."""
    min_lr_ratio: Share = 0.0
    """The learning rate at the last step, as a fraction of its peak."""
    max_grad_norm: NotNegative = 1.0
    """The global gradient norm above which gradients are clipped (0: no clipping)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Additional arguments of the optimizer, e.g. weight_decay: 0.1, b2: 0.95, mu_dtype: bfloat16."""


class Lora(Section):
    """Train low-rank adapters of some weights only."""

    rank: Count = 8
    """The rank of the adapters."""
    alpha: Positive = 16.0
    """The adapters are scaled by alpha / rank."""
    targets: list[Text] = Field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """The weights to adapt, by the last part of their name in the checkpoint; others are gate_proj, up_proj, down_proj."""


class Training(Section):
    """Length, batches and checkpoints of a training."""

    epochs: Positive = 1.0
    """Passes over the examples."""
    steps: Count | None = None
    """Optimizer steps instead of epochs."""
    max_seq_len: Count = 4096
    """Tokens per row of a batch; several examples share a row."""
    batch_size: Count = 8
    """Rows per optimizer step."""
    micro_batch_size: Count | None = None
    """Rows per forward pass, a divisor of batch_size (null: all); fewer rows take less memory and give the same step."""
    dtype: Dtype = "bfloat16"
    """The dtype of computation."""
    weights_dtype: Dtype = "float32"
    """The dtype of the trained weights, their gradients and the optimizer state (which optimizer.options can override)."""
    remat: Remat = "full"
    """What a layer keeps for its gradient: everything (none), its matrix products (dots), or its input only (full)."""
    eval_every: Natural = 0
    """Steps between two evaluation losses (0: at the end of the training only)."""
    save_every: Count = 200
    """Steps between two checkpoints; the last step always has one."""
    keep_last: Count = 2
    """The number of newest checkpoints to keep."""
    keep_best: Natural = 1
    """Additional checkpoints to keep: those with the lowest evaluation loss."""
    keep_epochs: Natural = 0
    """Also save a checkpoint after every this many epochs, and keep all of them (0: none)."""
    loss_spike_factor: NotNegative = 0.0
    """Stop if a loss exceeds this many times the mean of the last 20 (0: never); a loss that is not finite always stops."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard, into `tensorboard` in the run folder."""
    wandb: Text | None = None
    """Also send metrics to this project of Weights & Biases (null: none)."""

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"micro_batch_size is {self.micro_batch_size}; it should divide batch_size, which is {self.batch_size}"
            )
        return self


class Train(Dated):
    """Fine-tunes the student on conversations."""

    student: Model
    """The model to train."""
    data: Examples
    evaluation: Examples | None = None
    """Conversations for the evaluation loss."""
    weights: Weights = Weights()
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    """Train low-rank adapters only (null: all weights)."""
    training: Training = Training()
