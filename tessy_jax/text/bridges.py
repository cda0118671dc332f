"""Chooses the bridge of a tokenizer.json."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tessy_jax.text.bridge import DeviceBridge, device_bridge
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
