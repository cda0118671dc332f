"""The names of a token classifier's labels. They say what a label means, so they must agree with the order that is used."""

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
    label2id has such generic names, the other one counts.

    Raises:
        ConfigError: id2label is not a name for each label from 0 on, or num_labels or label2id contradict it.
    """
    forward = {str(i): str(name) for i, name in s.object("id2label").items()}
    backward = {str(i): str(name) for name, i in s.object("label2id").items()}
    if len(backward) != len(s.object("label2id")):
        raise ConfigError(
            f"label2id is {json.dumps(s.raw['label2id'])}, expected a number of its own for each label; correct it"
        )
    named = [names for names in (forward, backward) if names and names != _generic(len(names))]
    names = named[0] if named else forward or backward
    if any(other != names for other in named):
        raise ConfigError(
            f"label2id {json.dumps(s.raw['label2id'])} contradicts id2label {json.dumps(forward)}; correct one"
        )
    count = s.size("num_labels", len(names) or 2)
    names = names or _generic(count)
    if names.keys() != _generic(count).keys() or len(set(names.values())) != count:
        raise ConfigError(
            f"id2label is {json.dumps(names)}, expected one name for each of the labels 0 to {count - 1}, whose number is "
            f"{'num_labels' if 'num_labels' in s else 'that of its entries'}; correct it"
        )
    return [names[str(i)] for i in range(count)]


def _generic(count: int) -> dict[str, str]:
    return {str(i): f"LABEL_{i}" for i in range(count)}


def check_labels(config: ModelConfig, expected: Sequence[str], folder: object) -> None:
    """Checks that a token classifier has the expected labels in their order. Generic names (`LABEL_0`) pass.

    folder: named in the message.

    Raises:
        ConfigError: another number of labels, or other names, such as the expected ones in another order.
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
            "this order; if only the names differ, correct id2label and label2id, else give another model"
        )
