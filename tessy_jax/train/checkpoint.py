"""Checkpoints of a training run, by Orbax: written in the background, atomically, for any mesh."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from tessy_jax.errors import CheckpointError
from tessy_jax.store.files import local

SCORE = "score"


def _rank(metrics: Any) -> tuple[float, int]:
    return metrics[SCORE], metrics["step"]


def _reason(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _not_raised(record: logging.LogRecord) -> bool:
    """False for what Orbax's threads log, tracebacks and all, of an error that `Checkpoints` raises as well."""
    return record.levelno != logging.ERROR or f"{os.sep}orbax{os.sep}" not in record.pathname


class Checkpoints:
    """The checkpoints under a folder or address. last, best: how many are kept of the newest, and of those with the
    lowest score, the first of equals. always: steps that are always kept. A checkpoint holds arrays and, as JSON,
    additional state. write: false makes no folder and removes nothing."""

    def __init__(self, folder: str, *, last: int, best: int, always: Sequence[int] = (), write: bool = True) -> None:
        path = local(folder)
        self.folder = folder if path is None else str(path.absolute())
        policies: list[Any] = [keep.LatestN(last), keep.CustomSteps(always)]
        if best:
            policies.append(keep.BestN(get_metric_fn=_rank, reverse=True, n=best, keep_checkpoints_without_metrics=False))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep.AnyPreservationPolicy(policies),
            # without best_fn, Orbax does not save scores; with it, a run without scores gets a warning
            best_fn=(lambda metrics: metrics[SCORE]) if best else None,
            best_mode="min",
            create=write,
            read_only=not write,
            cleanup_tmp_directories=write,
        )
        logging.getLogger("absl").addFilter(_not_raised)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def latest(self) -> int | None:
        """The step of the newest complete checkpoint."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """The steps that have a complete checkpoint."""
        return sorted(self._manager.all_steps())

    def path(self, step: int) -> str:
        """Where a step's checkpoint is."""
        return os.path.join(self.folder, str(step))

    def save(self, step: int, arrays: Any, notes: dict[str, Any], score: float | None) -> None:
        """Begins to write the present values of the arrays. score: the lower, the better; None: not known.

        Raises:
            CheckpointError: it cannot be written, or an earlier one could not.
        """
        args = ocp.args.Composite(arrays=ocp.args.StandardSave(arrays), notes=ocp.args.JsonSave(notes))
        metrics = None if score is None else {SCORE: score, "step": step}
        with self._writing():
            self._manager.save(step, args=args, metrics=metrics, force=True)

    def notes(self, step: int) -> dict[str, Any]:
        """The notes saved with the arrays.

        Raises:
            CheckpointError: the checkpoint cannot be read.
        """
        try:
            notes: dict[str, Any] = self._manager.restore(step, args=ocp.args.Composite(notes=ocp.args.JsonRestore()))[
                "notes"
            ]
        except Exception as error:
            raise self._unreadable(step, error) from error
        return notes

    def restore(self, step: int, like: Any) -> Any:
        """The arrays, placed as those of `like` are, which may be abstract.

        Raises:
            CheckpointError: the checkpoint cannot be read, or is of another model.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        try:
            args = ocp.args.Composite(arrays=ocp.args.StandardRestore(abstract))
            return self._manager.restore(step, args=args)["arrays"]
        except Exception as error:  # Orbax raises anything from KeyError to XlaRuntimeError
            raise self._unreadable(step, error) from error

    def restore_params(self, step: int, like: Any) -> Any:
        """The parameters alone, placed as those of `like` are.

        Raises:
            CheckpointError: as `restore`.
        """
        target = {"params": jax.tree.map(ocp.utils.to_shape_dtype_struct, like)}
        places = ocp.checkpoint_utils.construct_restore_args(target)
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
                args = ocp.args.PyTreeRestore(target, restore_args=places, partial_restore=True)
                return reader.restore(f"{self.path(step)}/arrays", args=args)["params"]
        except Exception as error:
            raise self._unreadable(step, error) from error

    def checked(self, step: int | None) -> int:
        """A step that has a checkpoint; None: the newest.

        Raises:
            CheckpointError: there is none.
        """
        steps = self.steps()
        if not steps or step not in (None, *steps):
            available = f"the steps {', '.join(map(str, steps))}" if steps else "no checkpoint"
            mismatch = "" if step is None else f", not {step}"
            raise CheckpointError(f"{self.folder}: has {available}{mismatch}; train first, or name one that is there")
        return steps[-1] if step is None else step

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
            CheckpointError: something cannot be written.
        """
        with self._writing():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits until everything is written, then closes the manager.

        Raises:
            CheckpointError: something cannot be written.
        """
        with self._writing():
            self._manager.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax raises anything from OSError to XlaRuntimeError, and late
            raise CheckpointError(
                f"{self.folder}: a checkpoint cannot be written ({_reason(error)}); free space or remove the "
                "cause, then run again: complete checkpoints are kept"
            ) from error

    def _unreadable(self, step: int, error: Exception) -> CheckpointError:
        return CheckpointError(
            f"{self.path(step)}: cannot be restored into this model and optimizer ({_reason(error)}); continue with "
            "the settings it was written with, delete it to continue from an older one, or name another output"
        )
