"""How far a run of an LLM is: counted while it asks, and told in as few lines as say it."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from acme_rag_pipeline.llm.reply import CallStatus, Reply

_RATE_SECONDS = 60.0
# How long a log says nothing new, or says the same again.
_QUIET_SECONDS = 30.0
_TROUBLE: dict[CallStatus, str] = {
    "rate_limited": "the server limits",
    "server_error": "the server fails",
    "timeout": "the server does not answer",
    "connection_error": "the server cannot be reached",
}


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        done: Prompts answered or failed for good.
        total: Prompts.
        rate: Prompts done a second, in the last minute.
        tokens: Used so far.
        eta_seconds: None as long as nothing is done, or nothing was in the last minute.
        completion_tokens: Of `tokens`, those of answers.
        seconds: Since the run began.
        limited: Requests that the server answered with a rate limit.
        faults: Requests that ended in a server fault, a timeout or no connection.
        trouble: What came of the last request, if it was one of those, in words.
        held_seconds: Until the next request may leave; 0: now.
    """

    done: int
    total: int
    rate: float
    tokens: int
    eta_seconds: float | None
    completion_tokens: int = 0
    seconds: float = 0.0
    limited: int = 0
    faults: int = 0
    trouble: str = ""
    held_seconds: float = 0.0


class Reporter:
    """Counts what comes back and reports at intervals; for one run, which begins now."""

    def __init__(self, on_progress: Callable[[Progress], None] | None, total: int, interval_seconds: float) -> None:
        self._on_progress, self._total, self._interval = on_progress, total, interval_seconds
        self.begun = self._reported = time.monotonic()
        self._done: deque[tuple[float, int]] = deque([(self.begun, 0)])
        self._limited = self._faults = 0
        self._trouble = ""

    @property
    def due_at(self) -> float:
        """When the next report is due; infinity: nobody wants any."""
        return float("inf") if self._on_progress is None else self._reported + self._interval

    def came(self, reply: Reply) -> None:
        """What came of one request."""
        trouble = _TROUBLE.get(reply.status)
        self._limited += reply.status == "rate_limited"
        self._faults += trouble is not None and reply.status != "rate_limited"
        self._trouble = f"{trouble} ({reply.detail})" if trouble else ""

    def report(self, now: float, done: int, prompt_tokens: int, completion_tokens: int, held_until: float) -> None:
        """Report if it is due.

        Args:
            now: As `time.monotonic()`.
            done: Prompts answered or failed for good.
            prompt_tokens: Used so far.
            completion_tokens: Likewise.
            held_until: When the next request may leave, in the time of `now`.
        """
        if self._on_progress is None or now < self.due_at:
            return
        self._reported = now
        self._done.append((now, done))
        while self._done[1][0] <= now - _RATE_SECONDS:
            self._done.popleft()
        then, before = self._done[0]
        rate = (done - before) / (now - then)
        self._on_progress(
            Progress(
                done=done,
                total=self._total,
                rate=rate,
                tokens=prompt_tokens + completion_tokens,
                eta_seconds=(self._total - done) / rate if rate else None,
                completion_tokens=completion_tokens,
                seconds=now - self.begun,
                limited=self._limited,
                faults=self._faults,
                trouble=self._trouble,
                held_seconds=max(0.0, held_until - now),
            )
        )


class ProgressLog:
    """Lines for a log: while nothing gets done only what holds the run, once, and again every half minute."""

    def __init__(self, say: Callable[[str], None], cost: Callable[[Progress], str]) -> None:
        """Write to `say`; `cost` is what is said of money, beginning with a comma, or empty."""
        self._say, self._cost = say, cost
        self._done = -1
        self._said_at = 0.0
        self._trouble_said_at: dict[str, float] = {}

    def __call__(self, progress: Progress) -> None:
        """Say what is new."""
        now, trouble = progress.seconds, progress.trouble
        unsaid = now - self._trouble_said_at.get(trouble, float("-inf")) >= _QUIET_SECONDS
        if trouble and progress.held_seconds > 0 and unsaid:
            self._say(f"{trouble}, waiting {math.ceil(progress.held_seconds)} s")
            self._trouble_said_at[trouble] = self._said_at = now
        if progress.done != self._done or now - self._said_at >= _QUIET_SECONDS:
            self._say(self._line(progress))
            self._done, self._said_at = progress.done, now

    def _line(self, progress: Progress) -> str:
        counts = [(progress.limited, "limited"), (progress.faults, "failed")]
        met = "".join(f", {count} request{'' if count == 1 else 's'} {what}" for count, what in counts if count)
        eta = f", about {progress.eta_seconds:.0f} s left" if progress.eta_seconds is not None else ""
        return (
            f"asked for {progress.done} of {progress.total} chunks, {progress.rate:.1f} chunks/s, "
            f"{progress.tokens} tokens{self._cost(progress)}{met}{eta}"
        )
