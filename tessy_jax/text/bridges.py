"""Chooses the bridge of a tokenizer.json, and joins those of several vocabularies."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from tessy_jax.text.bridge import DeviceBridge, device_bridge
from tessy_jax.text.encoding import ClosedWords
from tessy_jax.text.host_bridge import HostBridge
from tessy_jax.text.sentencepiece_bridge import SentencePieceBridge, sentencepiece_bridge
from tessy_jax.text.vocab import Vocabulary

logger = logging.getLogger(__name__)

AnyBridge = DeviceBridge | SentencePieceBridge | HostBridge


def make_bridge(content: dict[str, Any], vocabulary: Vocabulary, folder: Path) -> AnyBridge:
    """The bridge of a tokenizer.json: on the device if it supports the rule and settings, else on the host."""
    bridge = device_bridge(content) or sentencepiece_bridge(content)
    if bridge is not None:
        return bridge
    logger.info("%s: the tokenizer's rules or settings are not supported on the device; the host tokenizes text", folder)
    return HostBridge.of(content, vocabulary)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SeparateBridges:
    """The bridges of several vocabularies that share no tables, with the interface of one."""

    bridges: tuple[AnyBridge, ...]

    @property
    def narrow(self) -> bool:
        """See `DeviceBridge`."""
        return all(bridge.narrow for bridge in self.bridges)

    def splits(self, bytes_BP: jax.Array, counts_B: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        """See `DeviceBridge.splits`."""
        return [found for bridge in self.bridges for found in bridge.splits(bytes_BP, counts_B)]

    def closed(
        self, bytes_BP: jax.Array, counts_B: jax.Array, ended_B: jax.Array, v_B: jax.Array, *, widest: bool
    ) -> ClosedWords:
        """See `DeviceBridge.closed`."""
        words = []
        for v, bridge in enumerate(self.bridges):
            own_B = jnp.where(v_B == v, counts_B, 0)

            def read(bridge: AnyBridge = bridge, own_B: jax.Array = own_B) -> ClosedWords:
                return bridge.closed(bytes_BP, own_B, ended_B, jnp.zeros_like(v_B), widest=widest)

            nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(read))
            words.append(jax.lax.cond((own_B > 0).any(), read, lambda nothing=nothing: nothing))

        def chosen(a: tuple[int, ClosedWords], b: tuple[int, ClosedWords]) -> tuple[int, ClosedWords]:
            uses_B = v_B >= b[0]
            return b[0], jax.tree.map(lambda x, y: jnp.where(uses_B.reshape(-1, *(1,) * (x.ndim - 1)), y, x), a[1], b[1])

        return reduce(chosen, enumerate(words))[1]


def joined(bridges: Sequence[AnyBridge]) -> AnyBridge | SeparateBridges:
    """One bridge into the vocabularies of these bridges, which are numbered in this order. A bridge that occurs twice counts
    once. If only one bridge remains, its vocabulary has the number 0."""
    distinct = list({id(bridge): bridge for bridge in bridges}.values())
    if len(distinct) == 1:
        return distinct[0]
    on_device = [bridge for bridge in distinct if isinstance(bridge, DeviceBridge)]
    return DeviceBridge.joined(on_device) if len(on_device) == len(distinct) else SeparateBridges(tuple(distinct))
