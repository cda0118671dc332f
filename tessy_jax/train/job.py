"""`tessy train`: conversations in, a fine-tuned student out, in a run folder that survives being killed at any instant."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import yaml
from flax import nnx
from pydantic import ValidationError

from tessy_jax import __version__
from tessy_jax.config import Train, differences, dump
from tessy_jax.errors import ConfigError
from tessy_jax.models import hf
from tessy_jax.models.export import export
from tessy_jax.models.hf_config import read_config
from tessy_jax.models.layers import LoraParam
from tessy_jax.models.transformer import Decoder
from tessy_jax.sharding import Layout, make_mesh
from tessy_jax.store import RunStore
from tessy_jax.text.chat import Chat
from tessy_jax.text.tokenizer import Tokenizer
from tessy_jax.train.checkpoint import Checkpoints
from tessy_jax.train.data import Data, Order, read
from tessy_jax.train.loop import Trainer
from tessy_jax.train.lora import add_lora, export_lora, merge_lora

log = logging.getLogger(__name__)
FOLDER, ADAPTER = "model", "adapter"


def train(
    config: Train,
    *,
    tell: Callable[[str], None] = log.info,
    on_step: Callable[[dict[str, Any], int], None] = lambda line, steps: None,
) -> dict[str, Any]:
    """Runs or continues the training of a configuration; returns the summary, which is also saved. At the end the student
    stands in the run folder as a Hugging Face folder, `model`.

    tell: gets what there is to learn. on_step: gets each step's metrics, and the number of steps.

    Raises:
        TessyError: what is wrong with configuration, input, model or output, before the first step; or the loss is none.
    """
    started = time.perf_counter()
    with RunStore(config.output) as store:
        config = settle(config, store.config())
        layout = Layout(make_mesh(config.mesh)) if config.mesh else Layout()
        training = config.training
        at_once = training.rows_at_once or training.rows
        layout.check({"lanes": (at_once, "training.rows_at_once, or training.rows,")})
        folder = hf.resolve(config.student.model, revision=config.student.revision)
        data, evaluation = examples(config, folder)
        for name, found in (("data", data), ("evaluation", evaluation)):
            if found is not None:
                tell(f"{name}: {found.described()}")
        store.save_config(dump(config))
        lora = config.lora
        model = hf.load(folder, dtype=training.dtype if lora else jnp.float32, layout=layout, stacked=True)
        if lora:
            add_lora(model, lora, config.seed)
        graph, params, frozen = nnx.split(model, LoraParam if lora else nnx.Param, ...)
        del model
        checkpoints = Checkpoints(
            f"{config.output.rstrip('/')}/checkpoints", last=training.keep_last, best=training.keep_best
        )
        order = Order(data, training.tokens, training.rows, config.seed)
        trainer = Trainer(config, graph, frozen, layout, order, evaluation, checkpoints, store.save_metrics, on_step)
        state = trainer.start(params)
        begun = int(state.step)
        state = trainer.run(state)
        done = int(state.step)
        checkpoints.close()
        if done == trainer.steps and "://" not in config.output:
            _export(config, folder, nnx.merge(graph, state.params, frozen))
        summary = {
            "steps": done,
            "steps_wanted": trainer.steps,
            "steps_of_this_start": done - begun,
            "finished": done == trainer.steps,
            "examples": len(data),
            "targets": data.targets(),
            "skipped": data.skipped,
            "cut": data.cut,
            "loss": trainer.last("loss"),
            "evaluation_loss": trainer.evaluated,
            "seconds": round(time.perf_counter() - started, 3),
            "devices": [str(device) for device in jax.devices()[:1]] + [f"{jax.device_count()} in all"],
            "versions": {"tessy_jax": __version__, "jax": jax.__version__},
        }
        store.save_summary(summary)
        return summary


def _export(config: Train, folder: Path, model: Decoder) -> None:
    """The trained student as a Hugging Face folder, and its adapter, beside the checkpoints; once."""
    place = Path(config.output)
    dtype = jnp.dtype(config.student.dtype)
    if config.lora and not (place / ADAPTER).exists():
        export_lora(model, config.lora, place / ADAPTER, base=config.student.model)
    if not (place / FOLDER).exists():
        graph, params = nnx.split(merge_lora(model) if config.lora else model)
        cast = jax.jit(lambda params: jax.tree.map(lambda x: x.astype(dtype), params))
        export(nnx.merge(graph, cast(params)), place / FOLDER, copy_from=folder)


def examples(config: Train, folder: Path) -> tuple[Data, Data | None]:
    """What is learnt from, and what is looked at."""
    vocab = read_config(folder).vocab
    section = config.student
    chat = Chat(
        Tokenizer(folder, vocab),
        open=section.thinking.open,
        close=section.thinking.close,
        variables=section.template,
        system=section.system,
        date=datetime.date.fromisoformat(config.date or ""),
    )
    size = config.training.tokens
    evaluation = None if config.evaluation is None else read(config.evaluation, chat, size)
    return read(config.data, chat, size), evaluation


def settle(config: Train, earlier: str | None) -> Train:
    """The configuration with its date filled in, checked against that of the run folder's earlier starts.

    Raises:
        ConfigError: the folder holds another kind of run, or one with other settings; names them.
    """
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    if earlier is not None:
        try:
            before = Train.model_validate(yaml.safe_load(earlier))
        except ValidationError:
            raise ConfigError(f"{config.output}: holds another kind of run; name another output") from None
        changed = [key for key in differences(before, config) if not key.startswith("training.keep_")]
        if changed:
            raise ConfigError(
                f"{config.output}: holds a training with other settings ({', '.join(changed)}); name another output, or set "
                "them as before"
            )
        today = before.date or today
    return config.model_copy(update={"date": config.date or today})
