"""How fast an LLM may be asked: requests in flight, waits between attempts, and when to give it up."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Fault = Literal["server_error", "timeout", "connection_error"]
# From this attempt on a prompt waits as long as without a word of the server, if that is longer.
_BELIEVED = 3


@dataclass(frozen=True, slots=True)
class Pacing:
    """Waits and limits of a run; tests make them small.

    Attributes:
        backoff_seconds: Longest first wait after a fault; it doubles with each fault.
        longest_backoff_seconds: Where the doubling ends. A longer `Retry-After` is honoured.
        fault_attempts: Attempts of one prompt that may end in a server fault, timeout or broken connection.
        rate_limited_attempts: Attempts of one prompt that may be rate limited.
        bad_answers: Unusable answers of one prompt; every second one is a repair of the one before.
        patience_seconds: A server that only limits for so long ends the run, and so does one that asks for a longer wait
            before it has answered anything or for several requests in a row; a prompt whose waits after faults add up to
            more, or which is to wait longer after a limit, is given up.
        cut_seconds: After a rate limit halved the concurrency, others do not halve it again for so long: they
            answer requests that were sent before.
        probe_seconds: The first request goes alone for so long: a wrong key or model costs one request, not all.
        down_requests: Requests in a row without any answer that make a server unreachable ...
        down_rounds: ... if they stem from so many rounds: requests that fail together are one (a timeout: three) ...
        down_seconds: ... and if nothing has come since so long: a server that loads a model answers with faults until then.
        refused_seconds: The same where no connection comes about: a restart takes less, and an address may be wrong.
        forbidden_prompts: 403s without any answer that are the key's and not a prompt's.
        unusable_answers: Unusable answers, without any other, that end the run.
        empty_answers: Answers without a question, and none with one, that end the run.
        failed_prompts: Prompts in a row that failed for good and end the run.
        grace_seconds: How long a run waits for the answers that are under way once the server cannot be reached.
        progress_seconds: Least time between two reports of progress.
    """

    backoff_seconds: float = 0.5
    longest_backoff_seconds: float = 30.0
    fault_attempts: int = 6
    rate_limited_attempts: int = 40
    bad_answers: int = 4
    patience_seconds: float = 600.0
    cut_seconds: float = 1.0
    probe_seconds: float = 2.0
    down_requests: int = 5
    down_rounds: int = 5
    down_seconds: float = 60.0
    refused_seconds: float = 10.0
    forbidden_prompts: int = 3
    unusable_answers: int = 8
    empty_answers: int = 20
    failed_prompts: int = 20
    grace_seconds: float = 5.0
    progress_seconds: float = 1.0

    def wait(self, attempt: int, retry_after: float | None) -> float:
        """Seconds before the next attempt: exponential with full jitter, never earlier than the server asks.

        Args:
            attempt: Of those that ended so, from 1.
            retry_after: Seconds that the server asks to wait; None: it does not say.
        """
        most = min(self.longest_backoff_seconds, self.backoff_seconds * 2.0 ** min(attempt - 1, 30))
        if retry_after is not None:
            # Jitter on top of it: everybody who was told the same second would come back in the same second.
            asked = retry_after + random.uniform(0, min(most, self.backoff_seconds))
            # It was not so the times before: `Retry-After: 0` is no reason to knock without end.
            return asked if attempt < _BELIEVED else max(asked, random.uniform(0, most))
        return random.uniform(0, most)


class Pace:
    """Requests that may be in flight: additive increase, multiplicative decrease, and pauses for all."""

    def __init__(self, concurrency: int, pacing: Pacing) -> None:
        self._most = max(1, concurrency)
        self._pacing = pacing
        self._limit = float(self._most)
        self._cut_again_at = 0.0
        self._ever_answered = False
        self._limited_in_a_row = 0
        self._limited_since: float | None = None
        self._failed_in_a_row = 0
        self._failing_since: float | None = None
        self._rounds = 0
        self._round_ended = 0.0
        self._sent_at: float | None = None
        self._probing = True
        self._held_until = 0.0

    @property
    def held_until(self) -> float:
        """Before it no request may leave."""
        return self._held_until

    def allowed(self, now: float) -> int:
        """How many requests may be in flight."""
        if now < self._held_until:
            return 0
        # A server that gives no answer is asked by one request at a time: attempts are left for when it is back.
        down = self._failed_in_a_row >= self._pacing.down_requests
        return 1 if down or now < self._probe_ends() else int(self._limit)

    def changes_at(self, now: float) -> float:
        """When `allowed` grows by itself; infinity: not before the next reply."""
        if now < self._held_until:
            return self._held_until
        end = self._probe_ends()
        return end if self._sent_at is not None and now < end else float("inf")

    def sent(self, now: float) -> None:
        """A request leaves."""
        if self._sent_at is None:
            self._sent_at = now

    def reached(self) -> None:
        """Any reply over HTTP but "not in this format": the way is known, others may follow."""
        self._probing = False

    def answered(self) -> None:
        """The model answered: one more request in flight per round of answers."""
        self._limit = min(self._most, self._limit + 1 / self._limit)
        self._ever_answered = True
        self._limited_in_a_row = self._failed_in_a_row = self._rounds = 0
        self._limited_since = self._failing_since = None

    def limited(self, now: float, wait: float) -> bool:
        """The server limits the rate; True: it has done, or will do, nothing else for longer than patience lasts."""
        self._failed_in_a_row = self._rounds = 0
        self._failing_since = None
        self._limited_in_a_row += 1
        if self._limited_since is None:
            self._limited_since = now
        self._halve(now)
        # No longer one request too many but a closed door: knocking only costs calls.
        closed = self._limited_in_a_row >= max(3, int(self._limit))
        if closed:
            self._hold(now + wait)
        # One broken machine behind an address may ask for an hour where the others answer.
        long_wait = wait > self._pacing.patience_seconds and (closed or not self._ever_answered)
        return long_wait or now - self._limited_since > self._pacing.patience_seconds

    def failed(
        self, sent_at: float, now: float, status: Fault, *, retry_after: float = 0.0, for_long: bool = False
    ) -> bool:
        """A server fault, a timeout or no connection; True: the server is down.

        Args:
            sent_at: When the request left.
            now: When it failed.
            status: A timeout counts as three rounds.
            retry_after: Seconds that the server asks to wait.
            for_long: The server itself says that it will not be back in time: nothing more is needed to believe it.
        """
        pacing, timed_out = self._pacing, status == "timeout"
        self._failed_in_a_row += 1
        self._sent_at = None
        if self._failing_since is None:
            self._failing_since = sent_at
        if timed_out:
            self._halve(now)
        if for_long:
            self._rounds = max(self._rounds, pacing.down_rounds)
        elif sent_at >= self._round_ended:
            self._rounds += 3 if timed_out else 1
            self._round_ended = now
        if self._failed_in_a_row >= 2:
            # Not jittered: the sum of these waits is how long a restarting server may take.
            own = pacing.backoff_seconds / 2 * 2.0 ** min(self._rounds - 1, 30)
            self._hold(now + min(pacing.longest_backoff_seconds, max(own, retry_after)))
        least = {
            "server_error": pacing.down_seconds,
            "connection_error": pacing.refused_seconds,
            "timeout": pacing.down_seconds,
        }
        long_enough = for_long or now - self._failing_since >= least[status]
        return long_enough and self._failed_in_a_row >= pacing.down_requests and self._rounds >= pacing.down_rounds

    def _probe_ends(self) -> float:
        if not self._probing:
            return 0.0
        return float("inf") if self._sent_at is None else self._sent_at + self._pacing.probe_seconds

    def _halve(self, now: float) -> None:
        if now >= self._cut_again_at:
            self._limit = max(1.0, self._limit / 2)
            self._cut_again_at = now + self._pacing.cut_seconds

    def _hold(self, until: float) -> None:
        self._held_until = max(self._held_until, until)
