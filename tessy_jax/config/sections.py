"""The sections and runs of a configuration, and the only place of their defaults.

A section is a frozen model that any kind of run may contain. A run is a section that is read from a file.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tessy_jax.config.base import Count, CountOrAuto, Natural, Real, Section, Text
from tessy_jax.config.checks import Decontamination, Verification
from tessy_jax.config.recipes import RECIPES, Writer

MESH_AXES = ("data", "fsdp", "tensor", "expert")

# keys that do not affect results: a run folder may be continued with other values; this also holds for these keys within
# a section of another run
MAY_CHANGE = frozenset(
    {
        "output",
        "mesh",
        "compile_cache",
        "kernels",
        "rounds",
        "variants",
        "baseline",
        "seeds",
        "students",
        "analysis",
        "boundary.mode",
        "synthesis.lanes",
        "synthesis.pass_lanes",
        "synthesis.cache_tokens",
        "synthesis.rounds_per_dispatch",
        "synthesis.snapshot_seconds",
        "synthesis.scored_responses",
        "synthesis.handover",
        "training.save_every",
        "training.keep_last",
        "training.keep_best",
        "training.keep_epochs",
        "training.tensorboard",
        "training.wandb",
        "annotator.min_share",
        "annotator.concurrency",
        "annotator.retries",
        "annotator.timeout",
        "annotator.key",
        "annotator.batch",
    }
)

WordRule = Literal["none", "discard", "extend"]
Dtype = Literal["float32", "bfloat16"]


class Preset(NamedTuple):
    """Settings in which the paper and its public code differ: tokens per proposal, and how a span ends."""

    student_step: int
    teacher_step: int
    word_rule: WordRule


PRESETS = {"paper": Preset(20, 20, "discard"), "reference": Preset(5, 10, "extend")}


def _axes(value: Any) -> Any:
    """Parses and checks mesh axes: `tensor=8,data=2`, or a mapping."""
    if isinstance(value, str):
        pairs = [piece.partition("=") for piece in value.split(",") if piece.strip()]
        sizes: dict[Any, Any] = {name.strip(): int(n) if n.strip().isdecimal() else n for name, _, n in pairs}
        if len(sizes) < len(pairs):
            raise ValueError("an axis occurs twice; give each once")
        value = sizes
    if not isinstance(value, Mapping):
        raise ValueError("should be axes and sizes, such as tensor=8,data=2 or {tensor: 8, data: 2}")
    for name, size in value.items():
        if name not in MESH_AXES:
            raise ValueError(f"axis {name!r} is unknown; the axes are {', '.join(MESH_AXES)}")
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"axis {name!r} has size {size!r}; write an integer of at least 1, such as {name}=8")
    return value


Axes = Annotated[dict[str, int], BeforeValidator(_axes)]


class Data(Section):
    """The prompts."""

    path: Text
    """JSONL, JSON, CSV, TSV or Parquet file, or the name or folder of a `datasets` data set."""
    split: Text = "train"
    """The split of a data set; a file has only one."""
    subset: Text | None = None
    """The configuration of a data set that has several, such as main of openai/gsm8k (null: its default or only one)."""
    limit: Count | None = None
    """Use only this many rows from the start (null: all)."""
    rollouts: Count = 1
    """Responses per row."""
    skip_invalid: bool = False
    """Record rows in no accepted form as failures, instead of stopping before any work."""
    prompt: Text | None = None
    """The column that holds the prompt as text, such as problem (null: rows have one of the accepted forms)."""
    decontaminate: Decontamination | None = None
    """Leave out prompts that also occur in evaluations (null: keep all)."""


class Thinking(Section):
    """How a model's thinking opens and closes, if its tokenizer does not define it. Set both or neither."""

    open: Text | None = None
    """Text that opens it, e.g. "<think>\\n"."""
    close: Text | None = None
    """Text that closes it, e.g. "\\n</think>\\n\\n"."""

    @model_validator(mode="after")
    def _both(self) -> Self:
        if (self.open is None) != (self.close is None):
            raise ValueError("open is set without close, or close without open; set both, or leave both to the tokenizer")
        return self


class Sampling(Section):
    """How tokens are sampled. The defaults are those of both presets."""

    temperature: Annotated[Real, Field(ge=0)] = 0.7
    """0 is greedy."""
    top_p: Annotated[Real, Field(gt=0, le=1)] = 0.8
    """Keep the most probable tokens up to this cumulative probability (1: all)."""
    top_k: Natural = 20
    """Keep this many of the most probable tokens (0: all)."""
    min_p: Annotated[Real, Field(ge=0, lt=1)] = 0.0
    """Drop tokens less probable than this fraction of the most probable one (0: none)."""


class Model(Section):
    """A language model."""

    model: Text
    """Hugging Face folder or hub name."""
    revision: Text | None = None
    """Branch, tag or commit on the hub (null: its main branch)."""
    dtype: Dtype = "bfloat16"
    """The dtype of weights, activations and cache."""
    thinking: Thinking = Thinking()
    """Thinking markers, if the tokenizer has none."""
    template: dict[str, Any] = Field(default_factory=dict)
    """Extra variables of the chat template, e.g. reasoning_effort: high."""
    system: Text | None = None
    """System message before every prompt for this model."""
    sampling: Sampling | None = None
    """How its tokens are sampled (null: as in the preset)."""


class Boundary(Section):
    """The boundary predictors, which decide after which token the speaker hands over."""

    student: Text | None = None
    """Predictor for the student's turns: folder or hub name."""
    teacher: Text | None = None
    """Predictor for the teacher's turns: folder or hub name."""
    dtype: Dtype = "bfloat16"
    """The dtype of the predictors' weights, activations and cache."""
    mode: Literal["online", "rollback"] = "online"
    """Stop as soon as the label flips (online), or write a full proposal and cut it (rollback); the responses are equal."""
    window: Annotated[int, Field(ge=4, multiple_of=2)] = 200
    """The largest number of predictor tokens that a decision reads; it reads at least half as many once they exist."""
    min_span_tokens: Count = 1
    """Tokens of a proposal, in the predictor's vocabulary, before which a label flip is ignored."""
    threshold: Annotated[Real, Field(gt=0, lt=1)] = 0.5
    """The next token counts as style if its probability of style is above this. With a higher value the student hands over
    earlier, and the teacher later."""
    label_flip_prob: Annotated[Real, Field(ge=0, le=1)] = 0.0
    """Probability that a predictor's label is flipped, per token; an ablation of predictor quality."""


class Repetition(Section):
    """When a response counts as a loop: its last `window` tokens repeat with a period of at most `period` tokens."""

    window: Natural = 200
    """Tokens at the end that are checked (0: no check)."""
    period: Count = 50
    """Longest period, in tokens."""

    @model_validator(mode="after")
    def _twice(self) -> Self:
        if 0 < self.window < 2 * self.period:
            raise ValueError(
                f"window is {self.window} and period {self.period}; make window at least {2 * self.period} (two periods), "
                "or 0 to turn the check off"
            )
        return self


class Synthesis(Section):
    """How responses are written."""

    recipe: str = "tessy"
    """The recipe: who thinks and who answers; see `tessy_jax.config.recipes`."""
    preset: Literal["paper", "reference"] = "paper"
    """The source of steps, word rule and sampling that are null here: the paper, or its public code (reference)."""
    student_step: Count | None = None
    """The largest number of student tokens per proposal (null: paper 20, reference 5)."""
    teacher_step: Count | None = None
    """The largest number of teacher tokens per proposal (null: paper 20, reference 10)."""
    word_rule: WordRule | None = None
    """How a span that would end inside a word ends (null: paper discard, reference extend)."""
    final_answer: Writer = "student"
    """The writer of the final answer after shared thinking."""
    isolation: Text | None = None
    """System message added to saved conversations; no writer sees it. It ties the learned style to this message (null:
    none)."""
    candidates: Count = 5
    """For teacher_score: responses of the student from which the teacher chooses one."""
    reference: Literal["answer", "response"] = "answer"
    """For teacher_reference: the part of the teacher's response that the student sees."""
    rewrite: Text = (
        "{prompt}\n\nA reference solution:\n\n{reference}\n\nSolve the task yourself, in your own words, without mentioning "
        "the reference."
    )
    """For teacher_reference: the student's prompt; {prompt} and {reference} are filled in."""
    max_prompt_tokens: Count = 8192
    """The longest prompt, in each model's tokens; longer prompts fail."""
    max_response_tokens: Count = 32768
    """The longest response, in each model's tokens; a response that reaches it is a failed attempt."""
    max_attempts: Count = 3
    """Attempts before a response is recorded as failed."""
    lanes: CountOrAuto = 32
    """Responses that are written in parallel. auto: as many as memory holds, with cache space for the longest prompt and
    half the longest response each; at most 256 on each shard of the lanes, and at most the number of responses that are
    left, rounded up to fill the shards. If a device does not report its memory, auto starts from 32."""
    pass_lanes: Count | None = None
    """Responses that a forward pass continues on each shard of the lanes, at most (null: all). If there
    are more lanes than that, a lane that waits for the other model leaves its share of the pass to another lane."""
    cache_tokens: Count | None = None
    """Tokens that the cache of each model holds, all lanes together (null: the longest prompt and response for every lane,
    or what memory holds if that is less; with `lanes: auto`, half a response for every lane). When the cache is full,
    lanes wait."""
    repetition: Repetition = Repetition()
    """When a response is a loop, which makes it a failed attempt."""
    rounds_per_dispatch: Count = 64
    """Rounds of the device loop per dispatch; the host acts between dispatches."""
    snapshot_seconds: Annotated[Real, Field(ge=0)] = 60.0
    """Seconds between two snapshots of unfinished responses."""
    scored_responses: Natural = 8
    """The number of responses, from the first, whose token probabilities under each model the report shows (0: none)."""
    handover: Annotated[Real, Field(gt=0, le=1)] = 0.5
    """A turn ends early once this fraction of its lanes has handed over; the other lanes continue in the next round."""
    verification: Verification | None = None
    """Verify the answers of finished responses (null: keep all)."""

    @field_validator("rewrite")
    @classmethod
    def _parts(cls, value: str) -> str:
        missing = [part for part in ("{prompt}", "{reference}") if part not in value]
        if missing:
            raise ValueError(f"lacks {' and '.join(missing)}; put each where its text should appear")
        return value

    @field_validator("recipe")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in RECIPES:
            raise ValueError(f"unknown recipe; the recipes are {', '.join(RECIPES)}")
        return value

    @model_validator(mode="after")
    def _again(self) -> Self:
        if self.verification is not None and self.verification.wrong == "resample" and self.max_attempts == 1:
            raise ValueError(
                "verification.wrong is resample and max_attempts 1, which leaves no second attempt; set max_attempts to 2 "
                "or more, or wrong to drop"
            )
        return self


class Run(Section):
    """The keys of every configuration file. Each kind of run adds its sections."""

    output: Text
    """Run folder: a path, or an address such as gs://bucket/run."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0
    """The seed of all random numbers."""
    mesh: Axes = Field(default_factory=dict)
    """Axis sizes of the device mesh, e.g. {tensor: 8, data: 2} or "tensor=8,data=2" (empty: one device)."""
    compile_cache: bool | Text = True
    """Where JAX's compilation cache keeps compiled programs for later starts: the user's cache directory (true), this local
    folder, or nowhere (false)."""
    kernels: Literal["auto", "xla"] = "auto"
    """How attention reads the cache: by this package's kernels on TPUs and NVIDIA GPUs and by plain XLA elsewhere (auto), or
    by plain XLA everywhere (xla), which is slower."""

    def resolved(self) -> Self:
        """A copy with every value filled in that follows from other keys."""
        return self


class Dated(Run):
    """A run that renders chat templates."""

    date: str | None = None
    """The current date in chat templates, YYYY-MM-DD (null: the day of the first start, which later starts keep)."""

    @field_validator("date", mode="before")
    @classmethod
    def _day(cls, value: Any) -> Any:
        if type(value) is datetime.date:  # unquoted in YAML
            return value.isoformat()
        try:
            valid = value is None or datetime.date.fromisoformat(value).isoformat() == value
        except (TypeError, ValueError):
            valid = False
        if not valid:
            raise ValueError("should be a day as YYYY-MM-DD, such as 2025-06-28, or null")
        return value


class Synthesize(Dated):
    """Writes responses to prompts."""

    data: Data
    student: Model | None = None
    """The model that the data is for; it writes style and the final answer."""
    teacher: Model | None = None
    """The stronger model; it writes the capability text."""
    boundary: Boundary = Boundary()
    synthesis: Synthesis = Synthesis()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        recipe = self.synthesis.recipe
        missing = [key for key in RECIPES[recipe].requirements if _value(self, key) is None]
        if missing:
            others = ", ".join(name for name in RECIPES if name != recipe)
            raise ValueError(f"recipe {recipe!r} needs {' and '.join(missing)}; set it, or use another recipe ({others})")
        return self

    def resolved(self) -> Self:
        """A copy with steps, word rule and sampling that are None filled in from the preset. The job fills in the date."""
        return self.model_copy(update=preset_values(self))


def preset_values(run: Any) -> dict[str, Any]:
    """Updates of a run with synthesis, student and teacher: these sections, with None replaced by the preset's values."""
    synthesis: Synthesis = run.synthesis
    preset = PRESETS[synthesis.preset]._asdict()
    unset = {key: value for key, value in preset.items() if getattr(synthesis, key) is None}
    update: dict[str, Any] = {"synthesis": synthesis.model_copy(update=unset)}
    for writer in get_args(Writer):
        model = getattr(run, writer)
        if model is not None and model.sampling is None:
            update[writer] = model.model_copy(update={"sampling": Sampling()})
    return update


def differences(a: Run, b: Run) -> list[str]:
    """The dotted keys that affect results and whose resolved values differ between two runs.

    A date that is None equals every date, because the first start fills it in.
    """
    return list(_differing(a.resolved(), b.resolved(), ""))


def _differing(a: Section, b: Section, prefix: str) -> Iterator[str]:
    for name in type(a).model_fields:
        key, x, y = prefix + name, getattr(a, name), getattr(b, name, None)
        if {key, key.partition(".")[2]} & MAY_CHANGE or (key == "date" and None in (x, y)):
            continue
        if isinstance(x, Section) and isinstance(y, Section):
            yield from _differing(x, y, key + ".")
        elif x != y:
            yield key


def _value(config: Section, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
