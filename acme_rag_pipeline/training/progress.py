"""How far a long pass over texts is, for the log."""

from __future__ import annotations

import logging
import time

LOG_SECONDS = 10.0
logger = logging.getLogger(__name__)


class Progress:
    """Says every `LOG_SECONDS` how many texts are read, how fast, and about how long the rest takes.

    Args:
        texts: how many there are.
        tokens: how many they hold; short texts come first, so the time left goes by these.
    """

    def __init__(self, texts: int, tokens: int) -> None:
        self._texts, self._tokens = texts, tokens
        self._read_texts = self._read_tokens = 0
        self._started = self._logged = time.monotonic()

    def add(self, texts: int, tokens: int) -> None:
        """So many more are read."""
        self._read_texts += texts
        self._read_tokens += tokens
        now = time.monotonic()
        if now - self._logged <= LOG_SECONDS:
            return
        self._logged = now
        seconds = now - self._started
        left = seconds * (self._tokens - self._read_tokens) / max(1, self._read_tokens)
        logger.info(
            "read %d of %d texts, %.0f texts/s, about %.0f s left",
            self._read_texts, self._texts, self._read_texts / seconds, left,
        )  # fmt: skip
