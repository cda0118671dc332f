"""The label names of token classifiers. They define what a label means, so they must have the order that the code uses."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tessy_jax.errors import ConfigError
from tessy_jax.models.config import ModelConfig
from tessy_jax.models.settings import Settings

CLASSES = ("capability", "style")
"""The labels of a boundary predictor, 0 and 1."""


def label_names(s: Settings) -> list[str]:
    """The name of every label, in order; `LABEL_0`, `LABEL_1` … if a config.json names none. If only one of id2label and
    label2id has such generic names, the other counts.

    Raises:
        ConfigError: id2label does not name each label from 0 on, or num_labels or label2id contradicts it.
    """
    forward = {str(i): str(name) for i, name in s.object("id2label").items()}
    backward = {str(i): str(name) for name, i in s.object("label2id").items()}
    if len(backward) != len(s.object("label2id")):
        raise ConfigError(
            f"label2id is {json.dumps(s.raw['label2id'])}, expected a different number for each label; correct it"
        )
    named = [names for names in (forward, backward) if names and names != _generic(len(names))]
    names = named[0] if named else forward or backward
    if any(other != names for other in named):
        raise ConfigError(
            f"label2id {json.dumps(s.raw['label2id'])} contradicts id2label {json.dumps(forward)}; correct one of them"
        )
    count = s.size("num_labels", len(names) or 2)
    names = names or _generic(count)
    if names.keys() != _generic(count).keys() or len(set(names.values())) != count:
        raise ConfigError(
            f"id2label is {json.dumps(names)}, expected a different name for each of the labels 0 to {count - 1} (the "
            f"number of labels is {'num_labels' if 'num_labels' in s else 'that of the entries'}); correct it"
        )
    return [names[str(i)] for i in range(count)]


def _generic(count: int) -> dict[str, str]:
    return {str(i): f"LABEL_{i}" for i in range(count)}


def check_labels(config: ModelConfig, expected: Sequence[str], folder: object) -> None:
    """Checks that a token classifier has the expected labels, in this order. Generic names (`LABEL_0`) pass.

    folder: the model's folder, for the message.

    Raises:
        ConfigError: the number of labels differs, or a name, as when the expected names have another order.
    """
    if config.labels != len(expected):
        raise ConfigError(
            f"{folder}: is a token classifier with {config.labels} labels, expected {len(expected)} "
            f"({', '.join(f'{i} {name}' for i, name in enumerate(expected))}); give another model"
        )
    names = label_names(Settings(json.loads(config.raw)))
    generic = list(_generic(len(names)).values())
    if [name.lower() for name in names] != list(expected) and names != generic:
        raise ConfigError(
            f"{folder}: id2label of its config.json names the labels {', '.join(names)}, expected {', '.join(expected)} in "
            "this order; if only the names differ, correct id2label and label2id; otherwise give another model"
        )
