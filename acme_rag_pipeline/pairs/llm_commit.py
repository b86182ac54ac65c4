"""What is known of each LLM request and answer, and how it reaches the store: in groups, as it arrives."""

from __future__ import annotations

import asyncio
import logging
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from acme_rag_pipeline.llm.reply import CallStatus
from acme_rag_pipeline.pairs.passage import WrittenQuery

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LLMCall:
    """One HTTP attempt; `detail` holds no secret and no text of a document."""

    called_at: datetime
    model: str
    prompt_hash: str
    status: CallStatus
    prompt_tokens: int
    completion_tokens: int
    seconds: float
    detail: str


@dataclass(frozen=True, slots=True)
class LLMAnswer:
    """The validated queries for a prompt; none is an answer, too."""

    prompt_hash: str
    queries: list[WrittenQuery]
    prompt_tokens: int | None
    completion_tokens: int | None


class AnswerSink(Protocol):
    """Where calls and answers are kept."""

    def commit(self, calls: list[LLMCall], answers: list[LLMAnswer]) -> None:
        """Store all of it or, if it raises, nothing. Called from one thread, one call at a time."""


_Batch = tuple[list[LLMCall], list[LLMAnswer]]


class GroupCommit:
    """Commits whatever has arrived since the last commit in one go, in a thread of its own.

    A commit costs about 25 ms whatever its size: one commit an answer would cap a run at 40 answers a second.
    """

    def __init__(self, sink: AnswerSink, wake: asyncio.Event) -> None:
        self.failure: BaseException | None = None
        self._sink = sink
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="llm-commit")
        self._arrived: _Batch = ([], [])
        self._running: Future[None] | None = None
        self._batch: _Batch = ([], [])
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> bool:
        """Whether everything that arrived is stored."""
        return self._running is None and not self._arrived[0]

    @property
    def answers_waiting(self) -> int:
        """Answers that arrived and are not stored yet."""
        return len(self._arrived[1]) + (len(self._batch[1]) if self._running is not None else 0)

    def add(self, call: LLMCall, answer: LLMAnswer | None) -> None:
        """Take what arrived; the commit starts at once if none is running."""
        self._arrived[0].append(call)
        if answer is not None:
            self._arrived[1].append(answer)
        self._start()

    def close(self) -> None:
        """Commit the rest and return when it is stored; blocks, so that no cancellation comes between.

        Raises:
            Exception: The sink's, if the rest (with a batch that failed before) cannot be stored.
        """
        running, self._running = self._running, None
        try:
            if running is not None and running.exception() is not None:
                self._put_back(running.exception())
            if self._arrived[0]:
                self._thread.submit(self._sink.commit, *self._arrived).result()
                self._arrived = ([], [])
        finally:
            self._thread.shutdown()

    def _start(self) -> None:
        if self._running is None and self.failure is None and self._arrived[0]:
            self._batch, self._arrived = self._arrived, ([], [])
            self._running = self._thread.submit(self._sink.commit, *self._batch)
            self._running.add_done_callback(lambda done: self._loop.call_soon_threadsafe(self._committed, done))

    def _committed(self, done: Future[None]) -> None:
        if self._running is not done:
            return  # closed meanwhile
        self._running = None
        error = done.exception()
        if error is not None:
            self._put_back(error)
        self._start()
        self._wake.set()

    def _put_back(self, error: BaseException | None) -> None:
        self.failure = error
        self._arrived = (self._batch[0] + self._arrived[0], self._batch[1] + self._arrived[1])
        _log.error("a commit of %d answers failed: %s", len(self._batch[1]), type(error).__name__)
