"""Unfinished responses as one blob: a JSON index, and their token ids as arrays."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessy_jax.decode.response_state import ResponseState, TokenizedView
from tessy_jax.records import Key

NUMBERS = ("thinkers", "answerer", "sample", "attempt", "speaker", "phase", "thinking_bytes", "switches", "status")


@dataclass(frozen=True)
class InFlight:
    """A response that was begun: which one, the attempt it is in, what there is of it (None: nothing), and for how long it
    has been written."""

    key: Key
    attempt: int
    state: ResponseState | None
    seconds: float


def pack(begun: Sequence[InFlight]) -> bytes:
    """The blob."""
    index: list[dict[str, Any]] = []
    arrays: dict[str, Any] = {}
    for i, one in enumerate(begun):
        item: dict[str, Any] = {"key": list(one.key), "attempt": one.attempt, "seconds": one.seconds, "entry": None}
        if one.state is not None:
            state = one.state
            item["entry"] = {name: getattr(state, name) for name in NUMBERS}
            item["entry"] |= {"generated": state.generated, "discarded": state.discarded}
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
    """What `pack` was given."""
    with np.load(io.BytesIO(blob), allow_pickle=False) as data:
        result = []
        for i, item in enumerate(json.loads(data["index"].tobytes())):
            state = None
            if item["entry"] is not None:
                views = tuple(
                    TokenizedView(data[f"tokens{i}.{m}"].tolist(), prompt, data[f"ends{i}.{m}"].tolist())
                    for m, prompt in enumerate(item["prompts"])
                )
                values: dict[str, Any] = {name: item["entry"][name] for name in NUMBERS}
                values |= {name: tuple(item["entry"][name]) for name in ("generated", "discarded")}
                values |= {name: data[f"{name}{i}"].tobytes() for name in ("text", "sources")}
                state = ResponseState(views=views, **values)
            result.append(InFlight((item["key"][0], item["key"][1]), item["attempt"], state, item["seconds"]))
        return result
