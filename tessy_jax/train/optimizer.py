"""An Optax optimizer by name, its schedule, and clipping."""

from __future__ import annotations

import inspect
from typing import Any

import optax

from tessy_jax.config import Optimizer
from tessy_jax.errors import ConfigError


def schedule(config: Optimizer, steps: int) -> optax.Schedule:
    """The learning rate at every step of `steps`: a linear warm-up, then the configured decay."""
    peak, end = config.learning_rate, config.learning_rate * config.min_lr_ratio
    warmup_steps = round(config.warmup * steps)
    rest = max(steps - warmup_steps, 1)
    decays: dict[str, optax.Schedule] = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, end, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest, config.min_lr_ratio),
    }
    decay = decays[config.schedule]
    if not warmup_steps:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), decay], [warmup_steps])


def build(config: Optimizer, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps, with its schedule and clipping.

    Raises:
        ConfigError: Optax has no such optimizer, or the optimizer does not accept an option.
    """
    make: Any = getattr(optax, config.name, None)
    if not callable(make) or "learning_rate" not in _arguments(make):
        known = [name for name in dir(optax) if name.islower() and "learning_rate" in _arguments(getattr(optax, name))]
        raise ConfigError(f"optimizer.name is {config.name!r}; Optax has {', '.join(known)}")
    unknown = sorted(set(config.options) - set(_arguments(make)))
    if unknown:
        takes = ", ".join(name for name in _arguments(make) if name != "learning_rate")
        raise ConfigError(f"optimizer.options: {config.name} takes no {', '.join(unknown)}; it takes {takes}")
    try:
        built = make(schedule(config, steps), **config.options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer.options: {config.name} refuses them ({error})") from None
    return optax.chain(optax.clip_by_global_norm(config.max_grad_norm), built) if config.max_grad_norm else built


def _arguments(make: Any) -> list[str]:
    try:
        return list(inspect.signature(make).parameters)
    except (TypeError, ValueError):
        return []
