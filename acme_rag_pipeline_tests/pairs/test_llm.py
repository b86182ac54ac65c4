from __future__ import annotations

import asyncio
import json
import logging
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from typing import Any

import pytest

from acme_rag_pipeline.llm.reply import retry_after
from acme_rag_pipeline.pairs.llm import (
    Budget,
    LLMAnswer,
    LLMCall,
    LLMConnection,
    Pacing,
    Progress,
    ask_all,
    ask_all_blocking,
    estimate,
)
from acme_rag_pipeline.pairs.llm_pace import Pace
from acme_rag_pipeline.pairs.llm_progress import ProgressLog, Reporter
from acme_rag_pipeline.pairs.passage import Passage
from acme_rag_pipeline.pairs.prompt import PromptParameters, render
from acme_rag_pipeline_tests.llm_server import (
    Act,
    Body,
    Script,
    ScriptedLLM,
    completion,
    cut_off,
    error,
    garbage,
    hang,
    ok,
)
from acme_rag_pipeline_tests.pairs import interrupted_asking

KEY = "sk-very-secret-0123456789"
QUICK = Pacing(
    backoff_seconds=0.02,
    longest_backoff_seconds=0.1,
    cut_seconds=0.05,
    probe_seconds=5.0,
    down_seconds=0.1,
    refused_seconds=0.05,
    grace_seconds=0.2,
    patience_seconds=2.0,
)


def prompts_for(count: int, text: str = "The text of passage") -> dict[str, list[dict[str, str]]]:
    passages = [Passage(f"c{n}", "d.md", "Title", ("Heading",), f"{text} {n}.") for n in range(count)]
    return {passage.chunk_id: render(passage, PromptParameters()) for passage in passages}


def connection_to(server: ScriptedLLM, concurrency: int = 8, timeout: float = 5.0) -> LLMConnection:
    return LLMConnection("test-model", server.url, KEY, timeout, concurrency)


class Sink:
    """Keeps what is committed and checks how it is committed."""

    def __init__(self, seconds: float = 0.0, failures: int = 0) -> None:
        self.calls: list[LLMCall] = []
        self.answers: list[LLMAnswer] = []
        self.commits = 0
        self.threads: set[int] = set()
        self._seconds, self._failures = seconds, failures
        self._busy = threading.Lock()

    def commit(self, calls: list[LLMCall], answers: list[LLMAnswer]) -> None:
        assert self._busy.acquire(blocking=False), "two commits at a time"
        try:
            self.threads.add(threading.get_ident())
            time.sleep(self._seconds)
            self.commits += 1
            if self._failures:
                self._failures -= 1
                raise OSError("disk full")
            assert calls, "an empty commit"
            self.calls += calls
            self.answers += answers
        finally:
            self._busy.release()

    @property
    def statuses(self) -> Counter[str]:
        return Counter(call.status for call in self.calls)


def ask(server: ScriptedLLM, count: int, sink: Sink, concurrency: int = 8, timeout: float = 5.0, **options: Any) -> Any:
    options = {"pacing": QUICK, **options}
    return ask_all_blocking(prompts_for(count), connection_to(server, concurrency, timeout), sink, **options)


def always(act: Act) -> Script:
    return lambda number, body: act


def first(*acts: Act) -> Script:
    """These acts for the first requests, good answers for all others."""
    return lambda number, body: acts[number] if number < len(acts) else ok()


def user_message(body: Body) -> str:
    return body["messages"][1]["content"]


def test_every_prompt_is_answered_and_none_asked_again_under_faults() -> None:
    dice = random.Random(3)
    good: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    met: Counter[tuple[str, str]] = Counter()
    # Chance may hit one prompt so often that it is given up, which is another test's subject.
    most = {"429": QUICK.rate_limited_attempts, "500": QUICK.fault_attempts, "bad": QUICK.bad_answers}

    def script(number: int, body: Body) -> Act:
        drawn = dice.random()
        for share, name, act in (
            (0.2, "429", error(429, retry_after_ms="40")),
            (0.3, "500", error(500)),
            (0.35, "bad", garbage()),
        ):
            who = (user_message(body), name)
            if drawn < share and met[who] < most[name] - 1:
                met[who] += 1
                faults[name] += 1
                return act
        good[user_message(body)] += 1
        return ok(f"question {number}?")

    sink = Sink()
    with ScriptedLLM(script, latency=0.005) as server:
        outcome = ask(server, 120, sink)
    assert (outcome.answered, outcome.failed, outcome.left, outcome.stopped) == (120, 0, 0, None)
    assert sorted(answer.prompt_hash for answer in sink.answers) == sorted(prompts_for(120))
    assert set(good.values()) == {1}
    assert len(good) == 120
    assert outcome.calls == len(sink.calls) == len(server.requests) == 120 + faults.total()
    assert sink.statuses == {
        "ok": 120,
        "rate_limited": faults["429"],
        "server_error": faults["500"],
        "bad_answer": faults["bad"],
    }
    assert min(faults.values()) > 0
    assert outcome.prompt_tokens == 100 * (120 + faults["bad"])
    assert outcome.sentence == f"120 of 120 prompts answered with {outcome.calls} calls."


def test_every_message_holds_the_passage_as_data_and_the_schema() -> None:
    with ScriptedLLM(first(garbage())) as server:
        ask(server, 3, Sink())
    for body in server.requests:
        assert [message["role"] for message in body["messages"]] == ["system", "user"]
        assert body["response_format"]["type"] == "json_schema"
        assert body["response_format"]["json_schema"]["strict"] is True
        assert body["model"] == "test-model"
    assert set(server.keys) == {f"Bearer {KEY}"}


def test_answers_carry_their_queries_and_an_empty_list_is_an_answer() -> None:
    def script(number: int, body: Body) -> Act:
        return completion('{"queries": []}') if "passage 1." in user_message(body) else ok("one?", "two?", "three?")

    sink = Sink()
    with ScriptedLLM(script) as server:
        outcome = ask(server, 2, sink, limit=2)
    found = {answer.prompt_hash: [written.query for written in answer.queries] for answer in sink.answers}
    assert found == {"c0": ["one?", "two?"], "c1": []}
    assert sink.statuses == {"ok": 1, "empty": 1}
    assert outcome.answered == 2
    assert {(call.model, call.prompt_tokens, call.completion_tokens) for call in sink.calls} == {
        ("test-model", 100, 20)
    }
    assert all(call.called_at.tzinfo is UTC and call.seconds > 0 for call in sink.calls)


def test_a_bad_answer_is_repaired_once_then_asked_afresh() -> None:
    sink = Sink()
    wrong_schema = completion('{"questions": ["how?"]}')
    with ScriptedLLM(first(wrong_schema, garbage(), garbage())) as server:
        outcome = ask(server, 1, sink)
    systems = [body["messages"][0]["content"] for body in server.requests]
    assert ['not an object with a list "queries"' in system for system in systems] == [False, True, False, False]
    assert ["was rejected: not JSON" in system for system in systems] == [False, False, False, True]
    assert len({user_message(body) for body in server.requests}) == 1
    assert sink.statuses == {"bad_answer": 3, "ok": 1}
    assert outcome.answered == 1


def test_a_prompt_that_gets_only_bad_answers_fails_and_many_of_them_end_the_run() -> None:
    sink = Sink()
    with ScriptedLLM(first(ok(), *[garbage()] * 400)) as server:
        outcome = ask(server, 50, sink, pacing=replace(QUICK, failed_prompts=3), concurrency=2)
    assert (outcome.answered, outcome.stopped) == (1, "failing")
    assert outcome.failed <= 4
    assert outcome.answered + outcome.failed + outcome.left == 50
    assert outcome.calls <= 1 + 4 * 4
    assert "failed (most often: not JSON: Expecting value at character 0)" in outcome.sentence


@pytest.mark.parametrize("concurrency", [1, 16])
def test_a_model_whose_answers_cannot_be_used_costs_eight_calls_and_the_outcome_says_why(concurrency: int) -> None:
    sink = Sink()
    with ScriptedLLM(always(completion('{"queries": [{"query": "how', finish_reason="length"))) as server:
        outcome = ask(server, 50, sink, concurrency)
    assert (outcome.stopped, outcome.answered, len(server.requests)) == ("unusable", 0, 8)
    assert outcome.failed + outcome.left == 50
    assert "no answer of the model 'test-model'" in outcome.sentence
    assert "cut off at the server's length limit: not JSON" in outcome.sentence
    assert "ACME_RAG_PAIRS__EXTRA_BODY" in outcome.sentence
    assert not sink.answers


def nothing_to_ask() -> Act:
    return completion('{"queries": []}')


@pytest.mark.parametrize("count", [1, 12])
def test_a_model_that_answered_before_is_not_called_unusable_over_the_passages_that_are_left(count: int) -> None:
    sink = Sink()
    with ScriptedLLM(always(garbage())) as server:
        outcome = ask(server, count, sink, answered_before=40)
    assert (outcome.stopped, outcome.failed, outcome.calls) == (None, count, 4 * count)
    left = "the passage left gets" if count == 1 else "the 12 passages left get"
    assert outcome.sentence.endswith(
        f"(most often: not JSON: Expecting value at character 0): {left} no usable answer."
    )


@pytest.mark.parametrize("concurrency", [1, 32])
def test_a_model_that_finds_nothing_to_ask_anywhere_costs_twenty_calls_and_the_outcome_says_so(
    concurrency: int,
) -> None:
    sink = Sink()
    with ScriptedLLM(always(nothing_to_ask()), latency=0.01) as server:
        outcome = ask(server, 60, sink, concurrency)
    assert (outcome.stopped, outcome.answered, outcome.empty, len(server.requests)) == ("unusable", 20, 20, 20)
    assert (outcome.left, len(sink.answers)) == (40, 20), "what is paid for is kept"
    assert "none of the first 20 answers of the model 'test-model'" in outcome.sentence
    assert "another model" in outcome.sentence
    assert "`acme-rag pairs ask-again --empty`; 20 of 60 prompts answered with 20 calls, 20 with no" in outcome.sentence


@pytest.mark.parametrize("first_question", [0, 19])
def test_passages_with_nothing_to_ask_end_no_run_of_a_model_that_asks_elsewhere(first_question: int) -> None:
    with ScriptedLLM(lambda n, body: ok() if n == first_question else nothing_to_ask()) as server:
        outcome = ask(server, 60, Sink())
    assert (outcome.stopped, outcome.answered, outcome.empty) == (None, 60, 59)
    assert outcome.sentence == "60 of 60 prompts answered with 60 calls, 59 with no question."


def test_thinking_that_leaves_no_room_for_an_answer_is_told() -> None:
    sink = Sink()
    with ScriptedLLM(first(completion(None, finish_reason="length"))) as server:
        ask(server, 1, sink)
    assert sink.calls[0].detail == "no content: cut off at the server's length limit"


def test_content_in_parts_is_an_answer() -> None:
    whole = json.loads(ok("how long?").body)["choices"][0]["message"]["content"]
    parts = [
        {"type": "thinking", "thinking": [{"type": "text", "text": "{hm"}]},
        {"type": "text", "text": whole[:9]},
        {"type": "text", "text": whole[9:]},
        {"type": "text"},
        7,
    ]
    sink = Sink()
    with ScriptedLLM(always(completion(parts))) as server:
        assert ask(server, 1, sink).calls == 1
    assert [written.query for written in sink.answers[0].queries] == ["how long?"]


@pytest.mark.parametrize(
    ("act", "status"),
    [
        (cut_off(), "connection_error"),
        (Act(body=b"<html>proxy</html>", headers={"Content-Type": "text/html"}), "bad_answer"),
        (Act(body=b'{"error": {"message": "overloaded"}}'), "server_error"),
        (Act(body=b'{"choices": []}'), "bad_answer"),
        (completion(None), "bad_answer"),
        (error(503, retry_after="0"), "server_error"),
        (error(408), "timeout"),
        (error(429, retry_after="soon"), "rate_limited"),
        (hang(), "timeout"),
    ],
)
def test_a_single_fault_is_retried(act: Act, status: str) -> None:
    sink = Sink()
    with ScriptedLLM(first(act)) as server:
        outcome = ask(server, 2, sink, timeout=5.0 if act.hang else 10.0)
    assert (outcome.answered, outcome.calls) == (2, 3)
    assert sink.statuses == {status: 1, "ok": 2}


def test_what_the_model_or_the_server_refuses_fails_alone() -> None:
    def script(number: int, body: Body) -> Act:
        if "passage 1." in user_message(body):
            return completion(None, refusal="I cannot help with that")
        return error(413) if "passage 2." in user_message(body) else ok()

    sink = Sink()
    with ScriptedLLM(script) as server:
        outcome = ask(server, 4, sink)
    assert (outcome.answered, outcome.failed, outcome.left, outcome.stopped) == (2, 2, 0, None)
    assert sink.statuses == {"ok": 2, "refused": 2}
    assert "2 failed" in outcome.sentence


def test_a_passage_that_cannot_be_encoded_fails_alone() -> None:
    prompts = {"broken": render(Passage("c", "d.md", "", (), "a \ud800 b"), PromptParameters()), **prompts_for(1)}
    sink = Sink()
    with ScriptedLLM(always(ok())) as server:
        outcome = ask_all_blocking(prompts, connection_to(server), sink, pacing=QUICK)
    assert (outcome.answered, outcome.failed) == (1, 1)
    assert [call.detail for call in sink.calls if call.status == "refused"] == ["cannot be sent: UnicodeEncodeError"]


def test_retry_after_is_honoured() -> None:
    with ScriptedLLM(first(error(429, retry_after_ms="400"))) as server:
        assert ask(server, 1, Sink()).answered == 1
    assert server.times[1] - server.times[0] >= 0.4


def test_retry_after_is_read_in_all_its_forms() -> None:
    now = datetime.now(UTC)
    assert retry_after({"retry-after": "7"}) == 7
    assert retry_after({"retry-after": "1.5", "retry-after-ms": "250"}) == 0.25
    assert retry_after({"retry-after": format_datetime(now + timedelta(seconds=60), usegmt=True)}) == pytest.approx(
        60, abs=2
    )
    # A server whose clock is an hour ahead: its own Date header tells.
    ahead = {
        "date": format_datetime(now + timedelta(hours=1), usegmt=True),
        "retry-after": format_datetime(now + timedelta(hours=1, seconds=30), usegmt=True),
    }
    assert retry_after(ahead) == 30
    assert retry_after({"retry-after": format_datetime(now - timedelta(hours=1), usegmt=True)}) == 0
    for no_date in ("", "now", "Wed, 99 Foo", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT"):
        headers = {"date": no_date, "retry-after": format_datetime(now + timedelta(seconds=60), usegmt=True)}
        assert retry_after(headers) == pytest.approx(60, abs=2), "a clock that tells nothing is not asked"
    without_zone = {"date": "Mon, 01 Jan 2024 00:00:00 -0000", "retry-after": "Mon, 01 Jan 2024 00:00:30 GMT"}
    assert retry_after(without_zone) == 30
    beyond = ("Mon, 01 Jan 99999 00:00:00 GMT", "Mon, 01 Jan 99999999999999999999 00:00:00 GMT")
    for useless in ("", "soon", "-1", "nan", "inf", "Wed, 99 Foo", "Fri, 31 Dec 9999 23:59:59 -1400", *beyond):
        assert retry_after({"retry-after": useless}) is None
    assert retry_after({}) is None


@pytest.mark.parametrize("max_calls", [0, 1, 7])
def test_budget_of_calls_is_exact(max_calls: int) -> None:
    def script(number: int, body: Body) -> Act:
        return error(500) if number % 3 == 1 else ok()

    sink = Sink()
    with ScriptedLLM(script, latency=0.01) as server:
        outcome = ask(server, 20, sink, budget=Budget(max_calls=max_calls))
    assert len(server.requests) == outcome.calls == len(sink.calls) == max_calls
    assert outcome.answered == len(sink.answers) == sum(n % 3 != 1 for n in range(max_calls))
    assert outcome.left == 20 - outcome.answered
    assert outcome.stopped == "budget"
    assert f"{outcome.left} left" in outcome.sentence


@pytest.mark.parametrize("of", ["calls", "tokens"])
def test_a_budget_is_kept_back_for_what_waits_for_another_attempt(of: str) -> None:
    budget = (
        Budget(max_calls=5) if of == "calls" else Budget(max_tokens=2 * estimate(prompts_for(1).values()).total + 9)
    )
    sink = Sink()
    with ScriptedLLM(first(error(429, retry_after_ms="500"))) as server:
        outcome = ask(server, 200, sink, concurrency=1, budget=budget, limit=3)
    assert "c0" in {answer.prompt_hash for answer in sink.answers}
    assert outcome.stopped == "budget"
    used = outcome.calls if of == "calls" else outcome.prompt_tokens + outcome.completion_tokens
    assert used <= (budget.max_calls or budget.max_tokens)


def test_a_budget_that_just_suffices_is_no_stop() -> None:
    with ScriptedLLM(always(ok())) as server:
        outcome = ask(server, 5, Sink(), budget=Budget(max_calls=5))
    assert (outcome.answered, outcome.stopped) == (5, None)


def test_budget_of_tokens_is_not_exceeded_by_what_is_in_flight() -> None:
    sink = Sink()
    each = estimate(prompts_for(1).values()).total
    with ScriptedLLM(always(ok()), latency=0.02) as server:
        outcome = ask(server, 30, sink, budget=Budget(max_tokens=4 * each))
    used = outcome.prompt_tokens + outcome.completion_tokens
    # The server counts 120 tokens a call, far fewer than the estimate: what was reserved in vain is used after all.
    assert 3 * each < used <= 4 * each
    assert outcome.stopped == "budget"
    assert outcome.answered == len(sink.answers) == len(server.requests) == used // 120


def answer_of(tokens: int) -> Act:
    """A good answer that the server counts as so many tokens, prompt aside."""
    act = ok("How long is it?")
    usage = {"prompt_tokens": 100, "completion_tokens": tokens}
    return replace(act, body=json.dumps(json.loads(act.body) | {"usage": usage}).encode())


def test_a_budget_of_tokens_holds_for_a_model_that_answers_at_length() -> None:
    # A thinking model: 1,500 tokens an answer, and eight requests may be under way.
    with ScriptedLLM(always(answer_of(1500)), latency=0.02) as server:
        outcome = ask(server, 30, Sink(), budget=Budget(max_tokens=10_000))
    used = outcome.prompt_tokens + outcome.completion_tokens
    assert 6_000 < used <= 10_000
    assert outcome.stopped == "budget"


def test_a_budget_of_tokens_knows_what_answers_cost_that_hold_nothing() -> None:
    # A thinking model that is cut off before its first word of an answer.
    def thought(number: int, body: Body) -> Act:
        act = answer_of(3000)
        said = json.loads(act.body)
        said["choices"][0] |= {"finish_reason": "length", "message": {"role": "assistant", "content": ""}}
        return replace(act, body=json.dumps(said).encode())

    with ScriptedLLM(lambda n, body: thought(n, body) if n else ok(), latency=0.02) as server:
        outcome = ask(server, 60, Sink(), budget=Budget(max_tokens=20_000))
    assert outcome.stopped == "budget"
    assert outcome.prompt_tokens + outcome.completion_tokens == 120 + 6 * 3_100 < 20_000


@pytest.mark.parametrize("budget", [5_000, 10_000, 40_000])
def test_a_budget_of_tokens_holds_for_answers_that_get_longer(budget: int) -> None:
    def growing(number: int, body: Body) -> Act:
        return answer_of(round(50 * 1.25 ** min(number, 20)))

    with ScriptedLLM(growing, latency=0.1) as server:
        outcome = ask(server, 200, Sink(), concurrency=16, budget=Budget(max_tokens=budget))
        assert server.most_in_flight > 1
    used = outcome.prompt_tokens + outcome.completion_tokens
    assert outcome.stopped == "budget"
    # Alone at the end, an answer may be a quarter longer than the longest before.
    assert 0.5 * budget < used <= budget + 0.25 * 50 * 1.25**20


def test_with_a_budget_of_tokens_no_more_is_in_flight_than_was_answered() -> None:
    # The fourth timeout ends the run: whatever the order, nothing leaves between it and the three before.
    pacing, budget = replace(QUICK, down_requests=4), Budget(max_tokens=10**7)
    with ScriptedLLM(_hang_from(3)) as server:
        outcome = ask(server, 40, Sink(), concurrency=16, timeout=2.0, pacing=pacing, budget=budget)
        # Three that timed out, which the server still holds, and three after them.
        assert server.most_in_flight <= 6
    assert (outcome.answered, outcome.stopped) == (3, "unreachable")


@pytest.mark.parametrize(("budget", "short"), [(5_000, 1), (20_000, 1), (20_000, 8)])
def test_answers_that_are_suddenly_long_exceed_a_budget_of_tokens_by_no_more_than_is_promised(
    budget: int, short: int
) -> None:
    long, expected = 4_000, estimate(prompts_for(1).values()).prompt_tokens + 50
    with ScriptedLLM(lambda n, body: answer_of(50 if n < short else long), latency=0.02) as server:
        outcome = ask(server, 200, Sink(), concurrency=16, budget=Budget(max_tokens=budget))
    used = outcome.prompt_tokens + outcome.completion_tokens
    left = budget - short * 150
    assert outcome.stopped == "budget"
    assert used <= budget + max(((long + 100) / expected / 4 - 1) * left, long + 100)
    # Sixteen in flight would have taken all of these.
    assert used < short * 150 + 16 * (long + 100)


def test_a_403_for_one_passage_is_that_passage_s_and_the_others_are_answered() -> None:
    def offended(_number: int, body: Body) -> Act:
        return error(403, code="moderation") if "passage 0." in user_message(body) else ok("how long is it")

    for _ in range(2):
        sink = Sink()
        with ScriptedLLM(offended) as server:
            outcome = ask(server, 20, sink, concurrency=4)
        assert (outcome.answered, outcome.failed, outcome.stopped) == (19, 1, None)


def within_200(error: Any, **choice: Any) -> Act:
    """An error as gateways send it, with HTTP 200: in place of the choices, or in a choice that the model broke off."""
    if not choice:
        return Act(body=json.dumps({"error": error}).encode())
    body = json.loads(completion('{"queries": [').body)
    body["choices"][0] |= choice | ({"error": error} if error else {})
    return Act(body=json.dumps(body).encode())


@pytest.mark.parametrize(
    ("usage", "sent", "received"),
    [
        (None, None, 16),
        ({"total_tokens": 120}, None, 16),
        ({"prompt_tokens": 100, "completion_tokens": None}, 100, 16),
        ({"prompt_tokens": 0, "completion_tokens": 20}, None, 20),
        ("unknown", None, 16),
    ],
)
def test_what_a_server_does_not_count_is_estimated(usage: Any, sent: int | None, received: int) -> None:
    act = Act(body=json.dumps(json.loads(ok().body) | {"usage": usage}).encode())
    with ScriptedLLM(always(act)) as server:
        outcome = ask(server, 1, Sink())
    guess = estimate(prompts_for(1).values()).prompt_tokens
    assert (outcome.answered, outcome.prompt_tokens, outcome.completion_tokens) == (1, sent or guess, received)


@pytest.mark.parametrize(
    ("act", "status", "detail"),
    [
        (within_200({"code": 429, "message": "slow down"}), "rate_limited", "HTTP 200 with an error like HTTP 429"),
        (within_200({"code": "502"}, finish_reason="error"), "server_error", "HTTP 200 with an error like HTTP 502"),
        (within_200(None, finish_reason="error"), "server_error", "HTTP 200 with an error like HTTP 500"),
        (within_200("overloaded"), "server_error", "HTTP 200 with an error like HTTP 500"),
        (within_200({"code": "overloaded"}), "server_error", "HTTP 200 with an error like HTTP 500 overloaded"),
    ],
)
def test_an_error_within_a_200_is_waited_for_as_under_its_own_status(act: Act, status: str, detail: str) -> None:
    # More than answers to one prompt that may be unusable.
    sink = Sink()
    with ScriptedLLM(first(*[act] * 4)) as server:
        outcome = ask(server, 1, sink)
    assert (outcome.answered, outcome.calls, outcome.stopped) == (1, 5, None)
    assert {(call.status, call.detail) for call in sink.calls if call.status != "ok"} == {(status, detail)}
    # What the model took until it broke off is paid for.
    assert outcome.prompt_tokens == (500 if b"choices" in act.body else 100)


def test_a_wrong_key_within_a_200_ends_the_run_and_an_error_that_is_null_does_not() -> None:
    with ScriptedLLM(always(within_200({"code": 401, "message": f"no such key {KEY}"}))) as server:
        outcome = ask(server, 3, Sink())
    assert (outcome.stopped, outcome.calls) == ("unauthorised", 1)
    good = json.dumps(json.loads(ok().body) | {"error": None}).encode()
    with ScriptedLLM(always(Act(body=good))) as server:
        assert ask(server, 1, Sink()).answered == 1


def test_a_key_that_may_do_nothing_costs_three_calls() -> None:
    with ScriptedLLM(always(error(403))) as server:
        outcome = ask(server, 40, Sink(), concurrency=16)
    assert (outcome.stopped, outcome.calls, outcome.answered) == ("unauthorised", 3, 0)


def test_a_server_that_is_down_is_an_outcome_after_few_calls() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    sink = Sink()
    outcome = ask_all_blocking(prompts_for(500), LLMConnection("m", url, KEY, 5.0, 32), sink, pacing=QUICK)
    assert (outcome.stopped, outcome.answered, outcome.failed, outcome.left) == ("unreachable", 0, 0, 500)
    assert outcome.calls == len(sink.calls) < 50
    assert set(sink.statuses) == {"connection_error"}
    assert "cannot be reached" in outcome.sentence


@pytest.mark.parametrize("url", ["localhost:1/v1", "http://[bad/v1", "nonsense"])
def test_a_wrong_address_is_an_outcome(url: str) -> None:
    outcome = ask_all_blocking(prompts_for(30), LLMConnection("m", url), Sink(), pacing=QUICK)
    assert outcome.stopped == "unreachable"
    assert outcome.left == 30


@pytest.mark.parametrize("act", [hang(), error(500), error(502)])
def test_a_server_that_only_hangs_or_fails_is_an_outcome(act: Act) -> None:
    with ScriptedLLM(always(act)) as server:
        outcome = ask(server, 100, Sink(), timeout=0.2)
    assert outcome.stopped == "unreachable"
    assert outcome.left + outcome.failed == 100
    assert outcome.calls < 60


@pytest.mark.parametrize("status", [408, 503])
@pytest.mark.parametrize("wait", ["3600", "Fri, 31 Dec 2049 23:59:59 GMT"])
def test_a_server_fault_that_asks_for_an_hour_costs_its_chunk_and_not_an_hour(status: int, wait: str) -> None:
    with ScriptedLLM(first(error(status, retry_after=wait))) as server:
        outcome = ask(server, 12, Sink())
    assert (outcome.answered, outcome.failed, outcome.calls, outcome.stopped) == (11, 1, 12, None)
    with ScriptedLLM(always(error(status, retry_after=wait))) as server:
        outcome = ask(server, 40, Sink())
    assert outcome.stopped == "unreachable"
    assert outcome.calls < 20
    assert str(status) in outcome.sentence


def test_waits_that_add_up_beyond_patience_give_a_chunk_up() -> None:
    with ScriptedLLM(always(error(503, retry_after_ms="150"))) as server:
        outcome = ask(server, 1, Sink(), pacing=replace(QUICK, patience_seconds=0.4))
    assert (outcome.failed, outcome.calls) == (1, 3)


def test_a_server_that_restarts_is_waited_for() -> None:
    down = {"until": 0.0}

    def script(number: int, body: Body) -> Act:
        if number == 20:
            down["until"] = time.monotonic() + 0.15
        return error(503) if time.monotonic() < down["until"] else ok()

    with ScriptedLLM(script, latency=0.005) as server:
        outcome = ask(server, 60, Sink(), pacing=replace(QUICK, backoff_seconds=0.1, longest_backoff_seconds=1.0))
    assert (outcome.answered, outcome.stopped) == (60, None)


@pytest.mark.parametrize(
    ("act", "stopped", "status"),
    [
        (error(401, code="invalid_api_key"), "unauthorised", "refused"),
        (error(404, "The model `x` does not exist", "model_not_found"), "model_not_found", "refused"),
        (error(402), "quota", "refused"),
        (error(429, code="insufficient_quota"), "quota", "rate_limited"),
        (error(429, retry_after="3600"), "rate_limited", "rate_limited"),
    ],
)
def test_what_no_retry_can_help_costs_one_call_and_is_an_outcome(act: Act, stopped: str, status: str) -> None:
    sink = Sink()
    with ScriptedLLM(always(act)) as server:
        outcome = ask(server, 40, sink, concurrency=16)
    assert (outcome.stopped, outcome.calls, outcome.left) == (stopped, 1, 40)
    assert sink.statuses == {status: 1}
    assert str(act.status) in outcome.sentence


# Prints for each request whether the client was there before it counted as sent; a process that has not imported it yet.
FIRST_REQUEST = """
import sys
from acme_rag_pipeline.pairs import llm, llm_pace

class Nowhere:
    def commit(self, calls, answers): pass

def sent(pace, now, before=llm_pace.Pace.sent):
    print("openai.resources.chat.completions" in sys.modules)
    before(pace, now)

llm_pace.Pace.sent = sent
prompts = {str(n): [{"role": "system", "content": "s"}, {"role": "user", "content": str(n)}] for n in range(40)}
print("openai" in sys.modules)
print(llm.ask_all_blocking(prompts, llm.LLMConnection("m", sys.argv[1], "wrong"), Nowhere()).stopped)
"""


def test_the_import_of_the_client_takes_none_of_the_time_that_the_first_request_goes_alone() -> None:
    """Else a machine that imports for longer than `probe_seconds` sends a wrong key sixteen times."""
    with ScriptedLLM(always(error(401))) as server:
        command = [sys.executable, "-c", FIRST_REQUEST, server.url]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split()[:2] == ["False", "True"], done.stderr
    assert done.stdout.split()[-1] == "unauthorised"


def test_rate_limits_without_end_are_an_outcome_and_do_not_hammer() -> None:
    with ScriptedLLM(always(error(429, retry_after_ms="100"))) as server:
        outcome = ask(server, 100, Sink(), pacing=replace(QUICK, patience_seconds=0.8))
    assert outcome.stopped == "rate_limited"
    assert outcome.calls < 40


def test_one_limit_that_asks_for_an_hour_beside_good_answers_costs_its_chunk_and_not_the_run() -> None:
    sink = Sink()
    with ScriptedLLM(lambda n, body: error(429, retry_after="3600") if n % 6 == 5 else ok()) as server:
        outcome = ask(server, 40, sink, concurrency=4)
    limited = sink.statuses["rate_limited"]
    assert (outcome.stopped, outcome.left, outcome.failed) == (None, 0, limited)
    assert (outcome.answered, outcome.calls) == (40 - limited, 40)
    assert limited >= 6
    # A door that closes for all is believed.
    with ScriptedLLM(lambda n, body: ok() if n < 10 else error(429, retry_after="3600")) as server:
        outcome = ask(server, 40, Sink(), concurrency=1)
    assert (outcome.stopped, outcome.answered, outcome.failed, outcome.calls) == ("rate_limited", 10, 2, 13)
    assert outcome.left == 28


def test_a_server_that_asks_for_no_wait_time_and_again_is_waited_for_as_if_it_had_said_nothing() -> None:
    pacing = Pacing()
    longest = [max(pacing.wait(attempt, 0.0) for _ in range(200)) for attempt in (1, 2, 3, 6)]
    assert max(longest[:2]) <= pacing.backoff_seconds, "it may know better"
    assert 1.0 < longest[2] <= 2.0
    assert 8.0 < longest[3] <= 16.0
    assert all(pacing.wait(40, 600.0) >= 600.0 for _ in range(20))


def test_an_unauthorised_server_in_the_middle_keeps_what_is_answered() -> None:
    sink = Sink()
    with ScriptedLLM(lambda n, body: ok() if n < 10 else error(401), latency=0.01) as server:
        outcome = ask(server, 40, sink)
    assert outcome.stopped == "unauthorised"
    assert (outcome.answered, len(sink.answers), outcome.left) == (10, 10, 30)


@pytest.mark.parametrize(
    ("status", "message"),
    [(400, "Unknown parameter: response_format"), (422, "json_schema: unexpected"), (400, "bad request")],
)
@pytest.mark.parametrize("known", ["json_object", None])
def test_response_format_falls_back_and_is_remembered(status: int, message: str, known: str | None) -> None:
    def form(body: Body) -> str | None:
        return body["response_format"]["type"] if "response_format" in body else None

    def script(number: int, body: Body) -> Act:
        return ok() if form(body) in (known, None) else error(status, message)

    sink = Sink()
    with ScriptedLLM(script, latency=0.01) as server:
        outcome = ask(server, 12, sink)
    refused = 1 if known else 2
    assert (outcome.answered, outcome.calls) == (12, 12 + refused)
    assert [form(body) for body in server.requests] == ["json_schema", "json_object", None][:refused] + [known] * 12
    assert sink.statuses == {"refused": refused, "ok": 12}


def test_a_prompt_that_is_too_long_does_not_change_the_format_for_all() -> None:
    def script(number: int, body: Body) -> Act:
        return error(400, "schema of the maximum context length", "context_length_exceeded") if number == 3 else ok()

    with ScriptedLLM(script) as server:
        outcome = ask(server, 8, Sink(), concurrency=1)
    assert (outcome.answered, outcome.failed) == (7, 1)
    assert {body["response_format"]["type"] for body in server.requests} == {"json_schema"}


@pytest.mark.parametrize(("concurrency", "count"), [(1, 6), (5, 24)])
def test_concurrency_is_used_and_never_exceeded(concurrency: int, count: int) -> None:
    def script(number: int, body: Body) -> Act:
        return error(500) if number % 4 == 3 else ok()

    with ScriptedLLM(script, latency=0.3) as server:
        outcome = ask(server, count, Sink(), concurrency=concurrency)
    assert server.most_in_flight == concurrency
    assert outcome.answered == count


def test_pace_halves_on_limits_once_a_wave_and_grows_slowly() -> None:
    pace = Pace(16, Pacing())
    pace.sent(0.0)
    assert pace.allowed(0.1) == 1, "the first request goes alone"
    assert pace.allowed(2.5) == 16, "but nobody waits for it for long"
    pace.reached()
    assert not pace.limited(3.0, 0.1)
    pace.limited(3.1, 0.1)
    assert pace.allowed(3.2) == 8, "both answered the same wave"
    pace.answered()
    pace.limited(4.5, 0.1)
    assert pace.allowed(4.6) == 4
    for _ in range(4):
        pace.answered()
    assert pace.allowed(4.6) == 4
    pace.answered()
    assert pace.allowed(4.6) == 5
    for _ in range(1000):
        pace.answered()
    assert pace.allowed(4.6) == 16
    for number in range(16):
        pace.limited(5.0 + number, 20.0)
    assert pace.allowed(20.5) == 0, "limits in a row close the door for all"
    assert pace.changes_at(20.5) == 40.0
    assert pace.limited(5.0 + 601, 0.0), "patience is at its end"


def test_commits_are_groups_in_one_other_thread() -> None:
    sink = Sink(seconds=0.1)
    with ScriptedLLM(always(ok())) as server:
        ask(server, 100, sink, concurrency=16)
    assert len(sink.answers) == 100
    assert sink.commits < 60
    assert len(sink.threads) == 1
    assert threading.get_ident() not in sink.threads


def test_no_more_is_asked_than_the_store_keeps_up_with() -> None:
    class Stuck(Sink):
        """Stores nothing until it may, and says how many were asked by then."""

        def commit(self, calls: list[LLMCall], answers: list[LLMAnswer]) -> None:
            if not self.commits:
                # Long enough for hundreds of requests; what is waited for is that none comes any more.
                before = -1
                while before != len(server.requests):
                    before = len(server.requests)
                    time.sleep(0.3)
                self.asked = before
            super().commit(calls, answers)

    sink = Stuck()
    with ScriptedLLM(always(ok())) as server:
        outcome = ask(server, 200, sink, concurrency=4)
    assert sink.asked <= 2 * 4 + 4 + 1
    assert outcome.answered == len(sink.answers) == 200


def _hang_from(number: int) -> Script:
    return lambda n, body: ok() if n < number else hang()


async def _cancelled_after(server: ScriptedLLM, sink: Sink) -> None:
    run = asyncio.create_task(ask_all(prompts_for(40), connection_to(server, 4), sink, pacing=QUICK))
    while len(server.requests) < 16:  # 12 are answered, 4 hang
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    run.cancel()
    await run


def test_what_arrived_is_committed_when_the_run_is_cancelled() -> None:
    sink = Sink(seconds=0.3)  # so slow that most of it waits for its commit when the cancellation comes
    with ScriptedLLM(_hang_from(12)) as server, pytest.raises(asyncio.CancelledError):
        asyncio.run(_cancelled_after(server, sink))
    assert len(sink.answers) == 12
    assert sink.statuses == {"ok": 12, "timeout": 4}, "cancelled attempts were attempts, too"


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT for one process there")
@pytest.mark.parametrize("how", ["plain", "notebook", "dagster"])
def test_what_arrived_is_committed_on_ctrl_c(how: str) -> None:
    """In a process of its own: a signal to the tests' process that comes at the wrong moment ends all of them."""
    with ScriptedLLM(_hang_from(12)) as server:
        command = [sys.executable, "-m", interrupted_asking.__name__, server.url, "40", "4", how]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as asking:
            while len(server.requests) < 16 and asking.poll() is None:
                time.sleep(0.01)
            time.sleep(0.05)
            asking.send_signal(signal.SIGINT)
            printed, errors = asking.communicate(timeout=300)
    assert asking.returncode == interrupted_asking.INTERRUPTED, errors
    assert json.loads(printed) == {"answers": 12, "statuses": {"ok": 12, "timeout": 4}}


def test_a_sink_that_fails_ends_the_run_and_is_offered_everything_once_more() -> None:
    sink = Sink(failures=1)
    with ScriptedLLM(always(ok()), latency=0.02) as server, pytest.raises(OSError, match="disk full"):
        ask(server, 500, sink)
    assert len(server.requests) < 100
    assert len(sink.answers) >= 1
    broken = Sink(failures=99)
    with ScriptedLLM(always(ok())) as server, pytest.raises(OSError, match="disk full"):
        ask(server, 500, broken)


def test_the_blocking_call_works_where_a_loop_is_running() -> None:
    async def main() -> Any:
        return ask(server, 3, Sink())

    with ScriptedLLM(always(ok())) as server:
        assert asyncio.run(main()).answered == 3


def test_progress_is_reported_at_intervals() -> None:
    seen: list[Progress] = []
    with ScriptedLLM(always(ok()), latency=0.02) as server:
        outcome = ask(server, 40, Sink(), concurrency=2, on_progress=seen.append,
            pacing=replace(QUICK, progress_seconds=0.1))  # fmt: skip
    assert 2 <= len(seen) <= outcome.seconds / 0.1
    # When the run says that it reported: a clock of the test's own would be read later, sometimes much later. Of a report
    # with nothing done it cannot be told.
    times = [0.0, *(progress.done / progress.rate for progress in seen if progress.done)]
    assert all(later - earlier >= 0.1 - 1e-6 for earlier, later in pairwise(times))
    last = seen[-1]
    assert last.total == 40
    # On a busy machine nothing may be done yet at the first report.
    assert 0 <= seen[0].done < 40
    assert max(1, seen[0].done) <= last.done <= 40
    assert last.rate > 0
    assert last.tokens == 120 * last.done
    assert last.eta_seconds is not None
    assert last.eta_seconds < 10


def test_a_log_says_once_that_a_server_limits_and_repeats_no_line_meanwhile() -> None:
    lines: list[str] = []
    limited_from: list[float] = []

    def script(number: int, body: Body) -> Act:
        if number >= 6:
            limited_from.append(time.monotonic())
            if limited_from[-1] - limited_from[0] < 0.8:
                return error(429, retry_after_ms="400")
        return ok()

    with ScriptedLLM(script) as server:
        outcome = ask(server, 12, Sink(), concurrency=2, on_progress=ProgressLog(lines.append, lambda progress: ", free"),
            pacing=replace(QUICK, progress_seconds=0.05))  # fmt: skip
    assert outcome.answered == 12
    waits = [line for line in lines if line.startswith("the server")]
    assert len(waits) == 1, lines
    assert re.fullmatch(r"the server limits \(HTTP 429\), waiting 1 s", waits[0])
    told = [
        re.match(r"asked for (\d+) of 12 chunks, .*, \d+ tokens, free", line) for line in lines if line not in waits
    ]
    assert all(told), lines
    done = [int(match[1]) for match in told if match]
    assert len(done) == len(set(done)), "while nothing gets done nothing is said of it"


def test_a_log_repeats_what_holds_a_run_every_half_minute() -> None:
    lines: list[str] = []
    log = ProgressLog(lines.append, lambda progress: "")
    for second in range(1, 101):
        log(Progress(7, 9, 0.0, 10, None, seconds=second, limited=3, trouble="the server limits (HTTP 429)",
            held_seconds=101 - second))  # fmt: skip
    log(Progress(8, 9, 0.0, 10, None, seconds=101, limited=3, faults=1))
    assert lines == [
        "the server limits (HTTP 429), waiting 100 s",
        "asked for 7 of 9 chunks, 0.0 chunks/s, 10 tokens, 3 requests limited",
        *(f"the server limits (HTTP 429), waiting {left} s" for left in (70, 40, 10)),
        "asked for 8 of 9 chunks, 0.0 chunks/s, 10 tokens, 3 requests limited, 1 request failed",
    ]


def test_the_rate_is_that_of_the_last_minute() -> None:
    seen: list[Progress] = []
    reporter = Reporter(seen.append, 1000, 1.0)
    for second in range(1, 301):
        done = min(second * 2, 200)
        reporter.report(reporter.begun + second, done, 0, 0, 0.0)
    rates = [progress.rate for progress in seen]
    assert rates[10] == rates[90] == pytest.approx(2.0)
    assert (rates[129], rates[299]) == (pytest.approx(1.0), 0.0)
    assert seen[90].eta_seconds == pytest.approx((1000 - 182) / 2)
    assert seen[299].eta_seconds is None


def test_nothing_to_ask() -> None:
    outcome = ask_all_blocking({}, LLMConnection("m", "http://127.0.0.1:1/v1"), Sink(), pacing=QUICK)
    assert (outcome.answered, outcome.calls, outcome.stopped) == (0, 0, None)


def test_no_secret_and_no_document_text_leaves(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    echo = f"Incorrect API key provided: {KEY}. Your prompt was: The text of passage 0."
    acts = [
        error(500, echo, code=echo),
        error(400, echo, code="Text-of.passage"),
        error(429, echo, code=KEY),
        completion(echo),
    ]
    sink = Sink()
    with ScriptedLLM(lambda n, body: acts[n] if n < len(acts) else error(401, echo, code=KEY)) as server:
        connection = connection_to(server, concurrency=1)
        outcome = ask_all_blocking(prompts_for(3), connection, sink, pacing=QUICK)
    assert outcome.stopped == "unauthorised"
    assert len(sink.calls) == len(server.requests) == len(acts) + 1
    # openai 2 shows requests, never keys, to whoever turns its own debug log on.
    informed = "\n".join(record.getMessage() for record in caplog.records if record.levelno >= logging.INFO)
    for shown in (repr(connection), str(connection), repr(outcome), repr(sink.calls), informed):
        assert KEY not in shown
        assert "passage 0" not in shown
    assert KEY not in caplog.text


def test_user_password_and_query_of_an_address_are_sent_but_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with ScriptedLLM(always(ok())) as server:
        address = server.url.replace("http://", f"http://me:{KEY}%21@") + f"?key={KEY}&api-version=2024-10-21 \u00e9"
        connection = LLMConnection("m", address)
        outcome = ask_all_blocking(prompts_for(1), connection, Sink(), pacing=QUICK)
    assert outcome.answered == 1
    assert server.keys == ["Basic " + b64encode(f"me:{KEY}!".encode()).decode()]
    assert server.paths == [f"/v1/chat/completions?key={KEY}&api-version=2024-10-21%20%C3%A9"]
    assert connection.shown_url == server.url
    assert "HTTP Request: POST" in caplog.text
    assert KEY not in caplog.text + repr(connection) + outcome.sentence


def test_an_ipv6_address_is_shown_as_it_can_be_used() -> None:
    assert LLMConnection("m", "http://me:pw@[::1]:8000/v1?key=x").shown_url == "http://[::1]:8000/v1"
    assert LLMConnection("m", "http://[fe80::1]/v1").shown_url == "http://[fe80::1]/v1"


def test_the_query_of_an_address_is_not_sent_to_where_its_server_redirects() -> None:
    with ScriptedLLM(always(ok())) as other:
        moved = Act(307, headers={"Location": f"{other.url}/chat/completions"})
        with ScriptedLLM(always(moved)) as server:
            outcome = ask_all_blocking(
                prompts_for(1), LLMConnection("m", f"{server.url}?key={KEY}"), Sink(), pacing=QUICK
            )
    assert outcome.answered == 1
    assert server.paths == [f"/v1/chat/completions?key={KEY}"]
    assert other.paths == ["/v1/chat/completions"]


@pytest.mark.parametrize("key", [f"{KEY}\nX-Other: 1", f"{KEY}\u00e9"])
def test_a_key_that_cannot_be_sent_is_an_outcome(key: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with ScriptedLLM(always(ok())) as server:
        outcome = ask_all_blocking(prompts_for(3), LLMConnection("m", server.url, key), Sink(), pacing=QUICK)
        trailing = ask_all_blocking(prompts_for(1), LLMConnection("m", server.url, f" {KEY}\n"), Sink(), pacing=QUICK)
    assert outcome.stopped == "unauthorised"
    assert trailing.answered == 1
    assert server.keys == [f"Bearer {KEY}"]
    assert KEY not in caplog.text


def test_no_key_is_sent_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/v1")
    with ScriptedLLM(always(ok())) as server:
        outcome = ask_all_blocking(prompts_for(1), LLMConnection("m", server.url), Sink(), pacing=QUICK)
    assert outcome.answered == 1
    assert server.keys == [None]


def test_estimate_counts_all_scripts() -> None:
    def tokens(text: str) -> int:
        return estimate([[{"role": "user", "content": text}]]).prompt_tokens

    assert 90 <= tokens("word " * 80) <= 120
    assert 100 <= tokens("\u6f22\u5b57" * 50) <= 200
    assert tokens("\ud800") > 0
    assert estimate(prompts_for(3).values()).total == 3 * estimate(prompts_for(1).values()).total
