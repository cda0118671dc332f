"""The sections of a run that makes boundary predictors, and their defaults: they stand here only."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from tessy_jax.config.base import Count, Natural, Real, Section, Text
from tessy_jax.config.sections import Data, Dated, Dtype, Model, Synthesis
from tessy_jax.config.training import NotNegative, Optimizer, Positive, Share, Training

AnnotatorKind = Literal["rules", "spans", "model", "endpoint"]

NEEDS: dict[AnnotatorKind, tuple[str, ...]] = {"rules": (), "spans": (), "model": ("model",), "endpoint": ("url", "name")}
"""What each kind of annotator cannot do without."""


class Traces(Section):
    """Responses that are there already, instead of sampling them: a run folder, or JSONL of rows, per speaker."""

    student: Text | None = None
    """The student's (null: sampled)."""
    teacher: Text | None = None
    """The teacher's (null: sampled)."""


class Segments(Section):
    """What is cut out of the thinking of a trace to be annotated."""

    words: Count = 60
    """Words of a segment, as white space separates them; a shorter trace is one segment."""
    per_trace: Count = 4
    """Segments of a trace, at random places that may overlap; fewer where it has not so many."""
    validation: Annotated[Real, Field(gt=0, lt=1)] = 0.1
    """Share of the prompts whose traces are looked at and not learnt from."""


class Annotator(Section):
    """Who says which words of a segment are style."""

    kind: AnnotatorKind = "rules"
    """A list of phrases (rules), the traces' own spans, where it is known who wrote what (spans: the student's is style), a
    language model on this mesh (model), or one behind a URL (endpoint)."""
    lexicon: Text | None = None
    """For rules: a JSON file of phrases in place of the package's own, in the same form."""
    model: Model | None = None
    """For model: an instruction-tuned one; `template` may turn its thinking off (enable_thinking: false)."""
    max_new_tokens: Count = 512
    """For model and endpoint: longest reply, in tokens."""
    temperature: Annotated[Real, Field(ge=0)] = 0.0
    """For model and endpoint: 0 is greedy."""
    batch: Count = 16
    """For model: segments at once."""
    url: Text | None = None
    """For endpoint: the base of an OpenAI-compatible server, e.g. http://localhost:8000/v1, or all of the address."""
    name: Text | None = None
    """For endpoint: what the server calls the model."""
    key: Text = "OPENAI_API_KEY"
    """For endpoint: the environment variable that holds the API key; where it is not set, none is sent."""
    request: dict[str, Any] = Field(default_factory=dict)
    """For endpoint: more fields of a request, e.g. chat_template_kwargs: {enable_thinking: false}; null leaves one out."""
    concurrency: Count = 8
    """For endpoint: requests at once."""
    retries: Natural = 5
    """For endpoint: how often a request that failed is tried again, at ever longer intervals."""
    timeout: Positive = 120.0
    """For endpoint: seconds to wait for a connection, and for a reply."""
    min_share: Share = 0.5
    """The command fails if a smaller share of the traces has thinking, or of the segments a usable annotation."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        missing = [key for key in NEEDS[self.kind] if getattr(self, key) is None]
        if missing:
            others = ", ".join(kind for kind in NEEDS if kind != self.kind)
            raise ValueError(f"kind {self.kind!r} needs {' and '.join(missing)}; set it, or use another kind ({others})")
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"url is {self.url!r}; it should begin with http:// or https://")
        if self.model is not None and self.model.sampling is not None:
            raise ValueError("model.sampling is not for an annotator; set temperature beside model instead")
        return self


class Predictor(Section):
    """What a predictor is made from."""

    backbone: Text = "Qwen/Qwen3-0.6B-Base"
    """Hugging Face folder or hub name: a causal LM, which gets a new head, or a token classifier with two labels."""
    revision: Text | None = None
    """Branch, tag or commit on the hub (null: its main branch)."""
    layers: Count | None = None
    """How many of the backbone's layers to take, the first (null: all); fewer make the decode loop faster, which asks a
    predictor at every token."""
    dtype: Dtype = "bfloat16"
    """Of the weights that are exported."""
    window: Annotated[int, Field(ge=4, multiple_of=2)] = 200
    """Tokens that a decision reads, at most; the synthesis must use the same (boundary.window)."""
    threshold: Annotated[Real, Field(gt=0, lt=1)] = 0.5
    """Of measuring, and so of the best checkpoint: the next token counts as style if its probability is above this; the
    synthesis has its own (boundary.threshold)."""


class ClassWeights(Section):
    """How much a token counts in the loss, by the kind of the token that follows."""

    style: NotNegative = 1.0
    """Style follows."""
    capability: NotNegative = 1.0
    """Capability follows."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.style + self.capability:
            raise ValueError("style and capability are both 0, so that nothing is learnt; give at least one some weight")
        return self


class PredictorOptimizer(Optimizer):
    """How a predictor's weights are changed."""

    learning_rate: Positive = 1e-5
    """The highest."""


class PredictorTraining(Training):
    """How long a predictor is trained, how much at once, and what is kept."""

    epochs: Positive = 3.0
    """How often every segment is seen."""
    max_seq_len: Count = 256
    """Tokens per row of a batch; several segments share a row, and attention costs as much as the row is long."""
    batch_size: Count = 12
    """Rows per optimizer step: with 256 tokens each, about 32 segments of 60 words."""
    eval_every: Natural = 100
    """Steps between two evaluations (0: at the end of the training only)."""
    keep_best: Natural = 1
    """and those with the best F1 of the style class."""


class Making(Section):
    """How boundary predictors are made: what traces are sampled, how they are annotated, how predictors are trained."""

    data: Data | None = None
    """The prompts that traces are sampled for."""
    synthesis: Synthesis = Synthesis()
    """Limits of the sampled traces; the recipe is not looked at, since each speaker writes alone."""
    traces: Traces = Traces()
    """Responses that are there already."""
    segments: Segments = Segments()
    annotator: Annotator = Annotator()
    predictor: Predictor = Predictor()
    weights: ClassWeights = ClassWeights()
    optimizer: PredictorOptimizer = PredictorOptimizer()
    training: PredictorTraining = PredictorTraining()
    patience: Natural = 0
    """Evaluations in a row without a better F1 of the style class before training stops (0: it never stops early)."""

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
                "synthesis.verification is set, and traces are good for their thinking whatever they answer; leave it null"
            )
        return self


class Predictors(Making, Dated):
    """Makes boundary predictors: samples traces, annotates segments of them, trains on these, and measures."""

    student: Model | None = None
    """The model whose traces the student's predictor learns from."""
    teacher: Model | None = None
    """The model whose traces the teacher's predictor learns from."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        speakers = [name for name in ("student", "teacher") if getattr(self, name) or getattr(self.traces, name)]
        if not speakers:
            raise ValueError("neither student nor teacher is set, nor traces of one; set a model, or traces.student or so")
        sampled = [name for name in speakers if getattr(self.traces, name) is None]
        if sampled and self.data is None:
            raise ValueError(
                f"data is missing, and there are no traces of the {' and the '.join(sampled)}; set data.path to prompts, or "
                f"traces.{sampled[0]} to responses"
            )
        return self
