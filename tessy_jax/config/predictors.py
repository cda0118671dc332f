"""The sections of a run that makes boundary predictors, and the only place of their defaults."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tessy_jax.config.base import Count, Natural, Real, Section, Text
from tessy_jax.config.sections import Data, Dated, Dtype, Model, Synthesis
from tessy_jax.config.training import NotNegative, Optimizer, Positive, Share, Training

AnnotatorKind = Literal["rules", "spans", "model", "endpoint"]

NEEDS: dict[AnnotatorKind, tuple[str, ...]] = {"rules": (), "spans": (), "model": ("model",), "endpoint": ("url", "name")}
"""The keys that each kind of annotator requires."""


class Responses(Section):
    """Existing responses of one speaker."""

    path: Text
    """Run folder, JSONL, JSON, CSV, TSV or Parquet file, or the name or folder of a `datasets` data set."""
    split: Text = "train"
    """The split of a data set; a file has only one."""
    subset: Text | None = None
    """The configuration of a data set that has several, such as main of openai/gsm8k (null: its default or only one)."""

    @model_validator(mode="before")
    @classmethod
    def _path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class Traces(Section):
    """Existing responses to use instead of sampling, per speaker: a path, or a section with path, split and subset."""

    student: Responses | None = None
    """The student's (null: sampled)."""
    teacher: Responses | None = None
    """The teacher's (null: sampled)."""


class Segments(Section):
    """The segments that are cut from the thinking of a trace and annotated."""

    words: Count = 60
    """Words per segment, separated by white space; a shorter trace is one segment."""
    per_trace: Count = 4
    """Segments per trace, at random places that may overlap; a short trace has fewer."""
    validation: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    """Fraction of the prompts whose traces are used for validation."""


class Annotator(Section):
    """The annotator, which marks the style words of a segment."""

    kind: AnnotatorKind = "rules"
    """A list of phrases (rules), the spans of traces with known writers (spans: the student's are style), a language model
    on this mesh (model), or a language model behind a URL (endpoint)."""
    lexicon: Text | None = None
    """For rules: a JSON file of phrases that replaces the package's list, in the same format."""
    model: Model | None = None
    """For model: an instruction-tuned model; `template` may turn its thinking off (enable_thinking: false)."""
    max_new_tokens: Count = 512
    """For model and endpoint: the longest reply, in tokens."""
    temperature: Annotated[Real, Field(ge=0)] = 0.0
    """For model and endpoint: 0 is greedy."""
    batch: Count = 16
    """For model: segments per batch."""
    url: Text | None = None
    """For endpoint: the base URL of an OpenAI-compatible server, e.g. http://localhost:8000/v1, or the complete URL."""
    name: Text | None = None
    """For endpoint: the server's name of the model."""
    key: Text = "OPENAI_API_KEY"
    """For endpoint: the environment variable that holds the API key; if it is not set, no key is sent."""
    request: dict[str, Any] = Field(default_factory=dict)
    """For endpoint: fields to add to a request, e.g. chat_template_kwargs: {enable_thinking: false}; null removes one."""
    concurrency: Count = 8
    """For endpoint: concurrent requests."""
    retries: Natural = 5
    """For endpoint: retries of a failed request, at growing intervals."""
    timeout: Positive = 120.0
    """For endpoint: seconds to wait for a connection, and for a reply."""
    min_share: Share = 0.5
    """The command fails if a smaller fraction of the traces has thinking, or of the segments a usable annotation."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [key for key in NEEDS[self.kind] if getattr(self, key) is None]
        if missing:
            others = ", ".join(kind for kind in NEEDS if kind != self.kind)
            raise ValueError(f"kind {self.kind!r} needs {' and '.join(missing)}; set it, or use another kind ({others})")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}; it should begin with http:// or https://")
        if self.model is not None and self.model.sampling is not None:
            raise ValueError("model.sampling is not for an annotator; set annotator.temperature instead")
        return self


class Predictor(Section):
    """The architecture and the decision of a predictor."""

    backbone: Text = "Qwen/Qwen3-0.6B-Base"
    """Hugging Face folder or hub name: a causal LM, whose head is replaced, or a token classifier with two labels."""
    revision: Text | None = None
    """Branch, tag or commit on the hub (null: its main branch)."""
    layers: Count | None = None
    """The number of layers of the backbone to keep, from the first (null: all). The decode loop runs a predictor at every
    token, so fewer layers make it faster."""
    dtype: Dtype = "bfloat16"
    """The dtype of the exported weights."""
    window: Annotated[int, Field(ge=4, multiple_of=2)] = 200
    """The largest number of tokens that a decision reads; the synthesis must use the same (boundary.window)."""
    threshold: Annotated[Real, Field(gt=0, lt=1)] = 0.5
    """The threshold of the metrics, which select the best checkpoint: the next token counts as style if its probability is
    above this. The synthesis has its own (boundary.threshold)."""


class ClassWeights(Section):
    """The weight of a token in the loss, by the class of the next token."""

    style: NotNegative = 1.0
    """The next token is style."""
    capability: NotNegative = 1.0
    """The next token is capability."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.style + self.capability:
            raise ValueError(
                "style and capability are both 0, so that no token counts in the loss; set at least one of them above 0"
            )
        return self


class PredictorOptimizer(Optimizer):
    """The optimizer of a predictor."""

    learning_rate: Positive = 1e-5
    """The peak learning rate."""


class PredictorTraining(Training):
    """Length, batches and checkpoints of a predictor's training."""

    epochs: Positive = 3.0
    """Passes over the segments."""
    max_seq_len: Count = 256
    """Tokens per row of a batch; several segments share a row, and attention costs grow with the length of a row."""
    batch_size: Count = 12
    """Rows per optimizer step: with 256 tokens each, about 32 segments of 60 words."""
    eval_every: Natural = 100
    """Steps between two evaluations (0: at the end of the training only)."""
    keep_best: Natural = 1
    """Additional checkpoints to keep: those with the best F1 of the style class."""


class Making(Section):
    """How boundary predictors are made: sampling of traces, annotation, training."""

    data: Data | None = None
    """The prompts that traces are sampled for."""
    synthesis: Synthesis = Synthesis()
    """Limits of the sampled traces; the recipe is ignored, because each speaker writes alone."""
    traces: Traces = Traces()
    """Existing responses."""
    segments: Segments = Segments()
    annotator: Annotator = Annotator()
    predictor: Predictor = Predictor()
    weights: ClassWeights = ClassWeights()
    optimizer: PredictorOptimizer = PredictorOptimizer()
    training: PredictorTraining = PredictorTraining()
    patience: Natural = 0
    """Consecutive evaluations without a better F1 of the style class after which training stops (0: no early stop)."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.training.max_seq_len <= self.predictor.window:
            raise ValueError(
                f"training.max_seq_len is {self.training.max_seq_len} and predictor.window is {self.predictor.window}; a "
                "row must hold a window and the token after it: "
                f"set training.max_seq_len to at least {self.predictor.window + 1}"
            )
        if self.synthesis.verification is not None:
            raise ValueError(
                "synthesis.verification is set, but traces are used for their thinking, right or wrong; leave it null"
            )
        return self


class Predictors(Making, Dated):
    """Makes boundary predictors: samples traces, annotates segments of them, trains, and evaluates."""

    student: Model | None = None
    """The model that writes the traces for the student's predictor."""
    teacher: Model | None = None
    """The model that writes the traces for the teacher's predictor."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        speakers = [name for name in ("student", "teacher") if getattr(self, name) or getattr(self.traces, name)]
        if not speakers:
            raise ValueError(
                "neither student nor teacher is set, nor traces of one; set a model, or traces.student or traces.teacher"
            )
        sampled = [name for name in speakers if getattr(self.traces, name) is None]
        if sampled and self.data is None:
            raise ValueError(
                f"data is missing, and there are no traces of the {' and the '.join(sampled)}; set data.path to prompts, or "
                f"traces.{sampled[0]} to responses"
            )
        return self
