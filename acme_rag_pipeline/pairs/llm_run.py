"""One run of many prompts against one server: which request leaves when, and what follows from each reply."""

from __future__ import annotations

import asyncio
import heapq
import importlib
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime

from acme_rag_pipeline.llm.reply import FILTERED, Reply, StopReason
from acme_rag_pipeline.llm.request import LLMClient, LLMConnection, Messages
from acme_rag_pipeline.pairs.llm_commit import AnswerSink, GroupCommit, LLMAnswer, LLMCall
from acme_rag_pipeline.pairs.llm_job import Job, Retry
from acme_rag_pipeline.pairs.llm_outcome import (
    TOKENS_A_QUERY,
    Budget,
    GenerationOutcome,
    estimate_prompt,
    sentence,
)
from acme_rag_pipeline.pairs.llm_pace import Pace, Pacing
from acme_rag_pipeline.pairs.llm_progress import Progress, Reporter
from acme_rag_pipeline.pairs.passage import WrittenQuery
from acme_rag_pipeline.pairs.prompt import ANSWER_SCHEMA, BadAnswer, parse_answer

# How many times what the longest answer took a request may take without going beyond the budget.
_ROOM = 4


class Run:
    """A run; lives in one event loop and is executed once."""

    def __init__(
        self,
        prompts: Mapping[str, Messages],
        connection: LLMConnection,
        sink: AnswerSink,
        budget: Budget,
        on_progress: Callable[[Progress], None] | None,
        limit: int,
        pacing: Pacing,
        answered_before: int = 0,
    ) -> None:
        # A model that is known to write questions may meet a long list of passages that have nothing to ask.
        pacing = replace(pacing, empty_answers=pacing.empty_answers + answered_before)
        self._connection, self._budget, self._pacing = connection, budget, pacing
        self._answered_before = answered_before
        self._limit = limit
        self._total = len(prompts)
        self._fresh = iter(prompts.items())
        self._next_fresh: Job | None = None
        self._retries: list[Retry] = []
        self._in_flight: dict[asyncio.Task[None], Job] = {}
        self._wake = asyncio.Event()
        self._commits = GroupCommit(sink, self._wake)
        self._client = LLMClient(connection)
        self._pace = Pace(connection.concurrency, pacing)
        self._answered = self._failed = self._calls = self._prompt_tokens = self._completion_tokens = 0
        self._empty = 0
        self._failed_in_a_row = self._forbidden = self._bad_answers = 0
        self._failures: Counter[str] = Counter()
        self._reserved: dict[str, int] = {}
        self._longest_answer = self._counted = 0
        self._stopped: StopReason | None = None
        self._stopped_at = 0.0
        self._stop_detail = ""
        self._defect: BaseException | None = None
        self._reporter = Reporter(on_progress, self._total, pacing.progress_seconds)

    async def execute(self) -> GenerationOutcome:
        """Ask until everything is answered, has failed for good, or the run has to stop."""
        try:
            if self._total:
                # Seconds on a cold machine. Imported by the first request, it would use up the time that this one goes alone.
                await asyncio.to_thread(importlib.import_module, "openai.resources.chat.completions")
            await self._dispatch()
            while not self._commits.idle:
                self._raise_defect()
                self._wake.clear()
                await self._wake.wait()
        finally:
            try:
                await self._abandon()
            finally:
                self._commits.close()
        return self._outcome()

    async def _abandon(self) -> None:
        """Cancel what is still under way; each cancelled attempt is recorded by its own task."""
        tasks = list(self._in_flight)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.__aexit__()

    async def _dispatch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            self._raise_defect()
            now = time.monotonic()
            self._start_ready(now)
            self._report(now)
            if not self._in_flight and (self._stopped or (self._peek() is None and not self._retries)):
                return
            wakes = [self._pace.changes_at(now), self._reporter.due_at]
            if self._retries and self._retries[0].ready_at > now:  # else it waits for a reply, not for a time
                wakes.append(self._retries[0].ready_at)
            if self._stopped == "unreachable":
                # Answers that are under way are paid for and waited for; a dead server's requests would hang.
                wakes = [self._stopped_at + self._pacing.grace_seconds, self._reporter.due_at]
                if now >= wakes[0]:
                    return
            timer = loop.call_later(max(0.0, min(*wakes, now + 3600.0) - now), self._wake.set)
            await self._wake.wait()
            timer.cancel()

    def _raise_defect(self) -> None:
        defect = self._defect or self._commits.failure
        if defect is not None:
            raise defect

    def _peek(self) -> Job | None:
        """The next prompt that was never asked."""
        if self._next_fresh is None:
            for prompt_hash, messages in self._fresh:
                self._next_fresh = Job(prompt_hash, messages, estimate_prompt(messages))
                break
        return self._next_fresh

    def _start_ready(self, now: float) -> None:
        # A store that does not keep up must not let paid answers pile up in memory, where a kill would lose them.
        most_waiting = 2 * self._connection.concurrency
        while not self._stopped and len(self._in_flight) < self._pace.allowed(now):
            if self._commits.answers_waiting > most_waiting:
                return
            if not self._known_to_work and self._bad_answers + len(self._in_flight) >= self._pacing.unusable_answers:
                return  # as many as may be paid before one of them can be used
            if self._only_empty and self._empty + len(self._in_flight) >= self._pacing.empty_answers:
                return  # likewise before one of them holds a question
            fresh = self._peek()
            if self._calls_left <= 0 and (fresh or self._retries):
                self._stop("budget")
                return
            retry = bool(self._retries) and self._retries[0].ready_at <= now
            job = self._retries[0].job if retry else fresh
            # What was asked already must not lose its last attempt to what never was.
            waiting = [] if retry else [other.job for other in self._retries]
            if job is None or (waiting and self._calls_left <= len(waiting)):
                return
            if self._budget.max_tokens is not None:
                if self._in_flight and len(self._in_flight) >= self._counted:
                    return  # a slow start: what answers take is known from answers alone
                wanted = self._tokens_of(job)
                reserved = sum(self._reserved.values()) + wanted
                # Beside others a request needs room for answers that are much longer than any before; alone it does not.
                reserved *= _ROOM if self._in_flight else 1
                reserved += sum(map(self._tokens_of, waiting))
                if self._prompt_tokens + self._completion_tokens + reserved > self._budget.max_tokens:
                    if not self._in_flight and not waiting:
                        self._stop("budget")
                    return  # else: what is in flight may take less than was reserved for it
                self._reserved[job.prompt_hash] = wanted
            if retry:
                heapq.heappop(self._retries)
            else:
                self._next_fresh = None
            self._calls += 1
            self._pace.sent(now)
            task = asyncio.get_running_loop().create_task(self._attempt(job))
            self._in_flight[task] = job
            task.add_done_callback(self._finished)

    @property
    def _calls_left(self) -> float:
        most = self._budget.max_calls
        return float("inf") if most is None else most - self._calls

    def _tokens_of(self, job: Job) -> int:
        """What a request may take: the longest answer so far says more than any guess."""
        return job.estimate.prompt_tokens + (self._longest_answer or TOKENS_A_QUERY * self._limit)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._reserved.pop(self._in_flight.pop(task).prompt_hash, None)
        if not task.cancelled() and task.exception() is not None:
            self._defect = task.exception()
        self._wake.set()

    async def _attempt(self, job: Job) -> None:
        called_at, sent_at = datetime.now(UTC), time.monotonic()
        reply = Reply("timeout", detail="cancelled before an answer came")
        queries: list[WrittenQuery] | None = None
        try:
            reply = await self._client.chat(job.to_send(), ANSWER_SCHEMA, job.least_format)
            if reply.status == "ok":
                queries = parse_answer(reply.content, self._limit)
                reply = reply if queries else replace(reply, status="empty")
        except BadAnswer as error:
            reason = ": ".join(filter(None, (reply.detail, error.reason)))
            # What a filter cut off would be cut off again.
            reply = replace(reply, status="refused" if reply.detail == FILTERED else "bad_answer", detail=reason)
        finally:
            # In `finally`: an attempt that is cancelled was an attempt, too.
            self._record(job, reply, queries, called_at, time.monotonic() - sent_at)
        self._settle(job, reply, sent_at)

    def _record(
        self, job: Job, reply: Reply, queries: list[WrittenQuery] | None, called_at: datetime, seconds: float
    ) -> None:
        used = (reply.prompt_tokens or 0, reply.completion_tokens or 0)
        if reply.content:
            # A server that does not count, or only one of the two.
            used = (used[0] or job.estimate.prompt_tokens, used[1] or len(reply.content) // 4)
        if reply.content or used[1]:  # what a model only thought is paid, too
            self._longest_answer = max(self._longest_answer, used[1], 1)
            self._counted += 1
        self._prompt_tokens += used[0]
        self._completion_tokens += used[1]
        model, prompt_hash = self._connection.model, job.prompt_hash
        self._commits.add(
            LLMCall(called_at, model, prompt_hash, reply.status, *used, round(seconds, 4), reply.detail),
            None if queries is None else LLMAnswer(prompt_hash, queries, *used),
        )

    def _settle(self, job: Job, reply: Reply, sent_at: float) -> None:
        now = time.monotonic()
        self._reporter.came(reply)
        if reply.next_format is not None:
            job.least_format = reply.next_format
            self._again(job, now)
            return
        about_all = not (reply.perhaps_this_prompt and self._refuses_one_prompt())
        if not about_all:
            reply = replace(reply, stop=None)
        # As long as a refusal may be the key's, the next request goes alone too.
        if reply.status not in ("timeout", "connection_error") and (about_all or self._answered):
            self._pace.reached()
        if reply.stop is not None:
            self._stop(reply.stop, reply.detail)
            self._again(job, now)
        elif reply.status in ("ok", "empty"):
            self._pace.answered()
            self._answered += 1
            self._empty += reply.status == "empty"
            self._failed_in_a_row = 0
            if self._only_empty and self._empty >= self._pacing.empty_answers:
                self._stop("unusable")
        elif reply.status == "rate_limited":
            job.limited += 1
            wait = self._pacing.wait(job.limited, reply.retry_after)
            if self._pace.limited(now, wait):
                self._stop("rate_limited", reply.detail)
            give_up = wait > self._pacing.patience_seconds or job.limited >= self._pacing.rate_limited_attempts
            self._again(job, now + wait, give_up=give_up, detail=reply.detail)
        elif reply.status in ("server_error", "timeout", "connection_error"):
            job.faults += 1
            wait = self._pacing.wait(job.faults, reply.retry_after)
            job.waited += wait
            # One broken machine behind an address may ask for an hour where the others answer.
            too_long = job.waited > self._pacing.patience_seconds
            if self._pace.failed(sent_at, now, reply.status, retry_after=reply.retry_after or 0.0, for_long=too_long):
                self._stop("unreachable", reply.detail)
            give_up = too_long or job.faults >= self._pacing.fault_attempts
            self._again(job, now + wait, give_up=give_up, detail=reply.detail)
        else:
            if about_all or self._answered:
                self._pace.answered()
            job.bad_answers += 1
            # A repair of the first, a fresh try after the second, a repair of that, ...
            job.complaint = reply.detail if reply.content and job.bad_answers % 2 else None
            give_up = reply.status == "refused" or job.bad_answers >= self._pacing.bad_answers
            self._again(job, now, give_up=give_up, detail=reply.detail)
            self._bad_answers += reply.status == "bad_answer"
            if not self._known_to_work and self._bad_answers >= self._pacing.unusable_answers:
                self._stop("unusable", reply.detail)

    @property
    def _known_to_work(self) -> bool:
        """Whether the model ever gave an answer that can be used: else bad ones may be all that it gives."""
        return self._answered_before + self._answered > 0

    @property
    def _only_empty(self) -> bool:
        """Whether no answer so far holds a question."""
        return self._empty == self._answered

    def _refuses_one_prompt(self) -> bool:
        """Whether a refusal of access may be about the text: other prompts were answered, or too few were sent to know."""
        self._forbidden += 1
        return self._answered > 0 or self._forbidden < self._pacing.forbidden_prompts

    def _again(self, job: Job, ready_at: float, *, give_up: bool = False, detail: str = "") -> None:
        if not give_up or self._stopped:
            heapq.heappush(self._retries, Retry(ready_at, self._calls, job))
            return
        self._failed += 1
        self._failures[detail] += 1
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= self._pacing.failed_prompts:
            self._stop("failing", detail)

    def _stop(self, reason: StopReason, detail: str = "") -> None:
        if self._stopped is None:
            self._stopped, self._stopped_at, self._stop_detail = reason, time.monotonic(), detail

    def _report(self, now: float) -> None:
        held_until = self._pace.held_until
        if self._retries and not self._in_flight:
            held_until = max(held_until, self._retries[0].ready_at)
        done = self._answered + self._failed
        self._reporter.report(now, done, self._prompt_tokens, self._completion_tokens, held_until)

    def _outcome(self) -> GenerationOutcome:
        left = self._total - self._answered - self._failed
        outcome = GenerationOutcome(
            answered=self._answered,
            empty=self._empty,
            failed=self._failed,
            left=left,
            calls=self._calls,
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            seconds=time.monotonic() - self._reporter.begun,
            stopped=self._stopped,
            sentence="",
        )
        failure = max(self._failures, key=self._failures.__getitem__, default="")
        told = sentence(
            outcome, self._stop_detail, failure, self._connection, self._budget, known=self._answered_before > 0
        )
        return replace(outcome, sentence=told)
