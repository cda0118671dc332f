"""The typed, frozen configuration of a run: one YAML file, dotted overrides, and errors that name the key and the remedy."""

from tessy_jax.config.analysis import Analyze
from tessy_jax.config.base import Section
from tessy_jax.config.checks import Decontamination, Verification
from tessy_jax.config.comparison import Cell, Comparison
from tessy_jax.config.evaluation import Evaluate
from tessy_jax.config.file import dump, earlier_version, from_values, load, read, reconcile
from tessy_jax.config.pipeline import Pipeline
from tessy_jax.config.predictors import Predictors
from tessy_jax.config.programs import Programs
from tessy_jax.config.recipes import RECIPES, Recipe, Roles, Writer
from tessy_jax.config.sections import (
    MAY_CHANGE,
    MESH_AXES,
    PRESETS,
    Boundary,
    Data,
    Dtype,
    Model,
    Preset,
    Repetition,
    Run,
    Sampling,
    Synthesis,
    Synthesize,
    Thinking,
    WordRule,
    differences,
)
from tessy_jax.config.training import Examples, Lora, Optimizer, Train, Training, Weights

__all__ = [
    "MAY_CHANGE",
    "MESH_AXES",
    "PRESETS",
    "RECIPES",
    "Analyze",
    "Boundary",
    "Cell",
    "Comparison",
    "Data",
    "Decontamination",
    "Dtype",
    "Evaluate",
    "Examples",
    "Lora",
    "Model",
    "Optimizer",
    "Pipeline",
    "Predictors",
    "Preset",
    "Programs",
    "Recipe",
    "Repetition",
    "Roles",
    "Run",
    "Sampling",
    "Section",
    "Synthesis",
    "Synthesize",
    "Thinking",
    "Train",
    "Training",
    "Verification",
    "Weights",
    "WordRule",
    "Writer",
    "differences",
    "dump",
    "earlier_version",
    "from_values",
    "load",
    "read",
    "reconcile",
]
