"""The sections of a training run, and their defaults: they stand here only."""

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
    """Conversations to learn from."""

    path: Text
    """Run folder of a synthesis, JSONL or Parquet file, name or folder of a `datasets` data set. Rows hold `messages`,
    `dialogs` or `conversations` that end with the assistant's, `prompt` and `completion`, or `input_ids` and `labels`."""
    split: Text = "train"
    """Which split of a data set; a file has only one."""
    limit: Count | None = None
    """Use only this many rows from the start (null: all)."""
    on_overlength: OnOverlength = "refuse"
    """What to do with a row of more than `training.max_seq_len` tokens: stop before any work, skip it, or cut its end."""


class Weights(Section):
    """How much a token counts in the loss, by who wrote it."""

    student: NotNegative = 1.0
    """Style."""
    teacher: NotNegative = 1.0
    """Capability."""
    template: NotNegative = 1.0
    """What opens and closes the thinking, and ends the turn."""
    unknown: NotNegative = 1.0
    """Rows that do not say."""


class Optimizer(Section):
    """How weights are changed."""

    name: Text = "adamw"
    """Any optimizer of Optax."""
    learning_rate: Positive = 5e-5
    """The highest."""
    schedule: Schedule = "cosine"
    """How it falls to `end` after the warm-up."""
    warmup: Share = 0.03
    """Share of all steps in which it rises from 0."""
    min_lr_ratio: Share = 0.0
    """Share of the learning rate at the last step."""
    max_grad_norm: NotNegative = 1.0
    """The largest norm of a gradient (0: any)."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further arguments of the optimizer, e.g. weight_decay: 0.1, b2: 0.95, mu_dtype: bfloat16."""


class Lora(Section):
    """Train low-rank changes of some weights, and those alone."""

    rank: Count = 8
    """Their rank."""
    alpha: Positive = 16.0
    """They are scaled by alpha / rank."""
    targets: list[Text] = Field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    """The weights, by the last part of their name in the checkpoint; e.g. gate_proj, up_proj, down_proj, too."""


class Training(Section):
    """How long, how much at once, and what is kept."""

    epochs: Positive = 1.0
    """How often every example is seen."""
    steps: Count | None = None
    """Optimizer steps instead of epochs."""
    max_seq_len: Count = 4096
    """Tokens per row of a batch; several examples share a row."""
    batch_size: Count = 8
    """Rows per optimizer step."""
    micro_batch_size: Count | None = None
    """Rows of one forward pass, a divisor of `rows` (null: all); fewer take less memory and give the same step."""
    dtype: Dtype = "bfloat16"
    """Of computing."""
    weights_dtype: Dtype = "float32"
    """Of the weights that are trained, their gradients and the optimizer's state (which optimizer.options may set apart)."""
    remat: Remat = "full"
    """What a layer keeps for its gradient: all (none), its matrix products (dots), or its input alone (full)."""
    eval_every: Natural = 0
    """Steps between two evaluation losses (0: at the end of the training only)."""
    save_every: Count = 200
    """Steps between two checkpoints; there is always one at the end."""
    keep_last: Count = 2
    """Checkpoints that are kept: the last ones,"""
    keep_best: Natural = 1
    """and those with the lowest evaluation loss."""
    keep_epochs: Natural = 0
    """A checkpoint after every so many epochs, too, all of which are kept (0: none)."""
    loss_spike_factor: NotNegative = 0.0
    """Stop where a loss is so many times the mean of the last 20 (0: never); what is no number always stops."""
    tensorboard: bool = False
    """Also write metrics for TensorBoard, into `tensorboard` in the run folder."""
    wandb: Text | None = None
    """Also send metrics to this project of Weights & Biases (null: not)."""

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
    """The model; its weights are the start."""
    data: Examples
    evaluation: Examples | None = None
    """Conversations whose loss is looked at and not learnt from."""
    weights: Weights = Weights()
    optimizer: Optimizer = Optimizer()
    lora: Lora | None = None
    """Train low-rank changes alone (null: all weights)."""
    training: Training = Training()
