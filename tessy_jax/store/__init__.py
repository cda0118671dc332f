"""Durable storage of a run: a folder on a path or on an object store, with one writer and any number of readers."""

from tessy_jax.store.run import RunReader, RunStore

__all__ = ["RunReader", "RunStore"]
