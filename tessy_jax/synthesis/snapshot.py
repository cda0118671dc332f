"""Unfinished responses as one blob: a JSON index, and their token ids as arrays."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from tessy_jax.decode.response_state import ResponseState, TokenizedView
from tessy_jax.decode.state import LaneScalars
from tessy_jax.errors import DataError
from tessy_jax.records import Key


@dataclass(frozen=True)
class InFlight:
    """An unfinished response: its key, its attempt, its state (None before the first insertion), and its time in lanes in
    seconds."""

    key: Key
    attempt: int
    state: ResponseState | None
    seconds: float


SCALARS = frozenset(field.name for field in fields(LaneScalars))


def pack(unfinished: Sequence[InFlight]) -> bytes:
    """The blob of these responses."""
    index: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for i, response in enumerate(unfinished):
        item: dict[str, Any] = {
            "key": list(response.key),
            "attempt": response.attempt,
            "seconds": response.seconds,
            "entry": None,
        }
        if (state := response.state) is not None:
            item["entry"] = asdict(state.scalars)
            item["prompts"] = [view.prompt for view in state.views]
            arrays[f"text{i}"] = np.frombuffer(state.text, np.uint8)
            arrays[f"sources{i}"] = np.frombuffer(state.sources, np.uint8)
            for m, view in enumerate(state.views):
                arrays[f"tokens{i}.{m}"] = np.array(view.tokens, np.int32)
                arrays[f"ends{i}.{m}"] = np.array(view.ends, np.int32)
        index.append(item)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, index=np.frombuffer(json.dumps(index).encode(), np.uint8), **arrays)
    return buffer.getvalue()


def unpack(blob: bytes) -> list[InFlight]:
    """The responses of a blob. A scalar that an older version did not store has its default.

    Raises:
        DataError: the blob stores a scalar that is unknown here.
    """
    with np.load(io.BytesIO(blob), allow_pickle=False) as data:
        result = []
        for i, item in enumerate(json.loads(data["index"].tobytes())):
            state = None
            if item["entry"] is not None:
                unknown = sorted(item["entry"].keys() - SCALARS)
                if unknown:
                    raise DataError(
                        f"the snapshot stores {', '.join(unknown)}, so another version of tessy_jax wrote it; continue the "
                        "run with that version, or name another output"
                    )
                views = tuple(
                    TokenizedView(data[f"tokens{i}.{m}"].tolist(), prompt, data[f"ends{i}.{m}"].tolist())
                    for m, prompt in enumerate(item["prompts"])
                )
                scalars = {name: tuple(x) if isinstance(x, list) else x for name, x in item["entry"].items()}
                text, sources = data[f"text{i}"].tobytes(), data[f"sources{i}"].tobytes()
                state = ResponseState(views, LaneScalars(**scalars), text, sources)
            result.append(InFlight((item["key"][0], item["key"][1]), item["attempt"], state, item["seconds"]))
        return result
