"""What servers of the OpenAI protocol do that OpenAI itself does not: other errors, other counts, other keys."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from typing import Any

import pytest

from acme_rag_pipeline.llm.request import LLMConnection
from acme_rag_pipeline.pairs.llm import Budget, ask_all_blocking
from acme_rag_pipeline_tests.llm_server import SELF_SIGNED, Act, Body, ScriptedLLM, completion, error, ok
from acme_rag_pipeline_tests.pairs.test_llm import KEY, QUICK, Sink, always, ask, first, prompts_for


@pytest.mark.parametrize(
    ("message", "stopped"),
    [
        ("gpt-4o-mini is not a valid model ID", "model_not_found"),
        ("/chat/completions: Invalid model name passed in model=gpt-4o-mini", "model_not_found"),
        ("API key not valid. Please pass a valid API key.", "unauthorised"),
        ("The model gemini-1.5-flash is not found", "model_not_found"),
    ],
    ids=["OpenRouter", "LiteLLM", "Gemini", "a name with a dot"],
)
def test_a_wrong_model_or_key_under_400_costs_three_calls_and_is_named(message: str, stopped: str) -> None:
    with ScriptedLLM(always(error(400, message, "400"))) as server:
        outcome = ask(server, 40, Sink(), concurrency=16)
    assert (outcome.stopped, outcome.calls, outcome.answered) == (stopped, 3, 0)


def test_a_400_about_the_model_and_a_format_is_about_the_format() -> None:
    message = "Invalid parameter: response_format json_schema is not supported with this model"

    def script(number: int, body: Body) -> Act:
        return error(400, message) if body.get("response_format", {}).get("type") == "json_schema" else ok()

    with ScriptedLLM(script) as server:
        outcome = ask(server, 6, Sink())
    assert (outcome.answered, outcome.calls) == (6, 7)


@pytest.mark.parametrize("status", [500, 503])
@pytest.mark.parametrize("known", ["json_object", None])
def test_a_server_that_fails_over_a_schema_and_says_so_is_asked_for_another_format(
    status: int, known: str | None
) -> None:
    def script(number: int, body: Body) -> Act:
        used = body.get("response_format", {}).get("type")
        return ok() if used in (known, None) else error(status, f"failed to compile the grammar of {used}")

    with ScriptedLLM(script) as server:
        outcome = ask(server, 6, Sink())
    assert (outcome.answered, outcome.failed, outcome.calls) == (6, 0, 6 + (1 if known else 2))


@pytest.mark.parametrize(
    "said",
    [{"error": {"message": "out of memory"}, "prompt": "Which JSON schema does it take?"}, "<p>No schema</p>"],
    ids=["the prompt beside the error", "a page"],
)
def test_a_fault_that_only_quotes_a_format_changes_none(said: Any) -> None:
    body = said.encode() if isinstance(said, str) else json.dumps(said).encode()
    with ScriptedLLM(first(Act(500, body))) as server:
        outcome = ask(server, 3, Sink(), concurrency=1)
    assert (outcome.answered, outcome.calls) == (3, 4)
    assert {body["response_format"]["type"] for body in server.requests} == {"json_schema"}


@pytest.mark.parametrize("code", ["content_filter", "context_length_exceeded"])
def test_a_code_that_is_about_the_prompt_is_no_reason_to_ask_in_another_format(code: str) -> None:
    with ScriptedLLM(first(error(400, "refused", code))) as server:
        outcome = ask(server, 3, Sink(), concurrency=1)
    assert (outcome.answered, outcome.failed, outcome.calls) == (2, 1, 3)
    assert {body["response_format"]["type"] for body in server.requests} == {"json_schema"}


def test_a_certificate_that_is_not_trusted_costs_one_call_and_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with ScriptedLLM(always(ok()), tls=True) as server:
        refused = ask(server, 40, Sink(), concurrency=16)
        monkeypatch.setenv("SSL_CERT_FILE", str(SELF_SIGNED))
        trusted = ask(server, 2, Sink())
    assert (refused.stopped, refused.calls, refused.left) == ("unreachable", 1, 40)
    assert "its certificate is not trusted (self-signed certificate): SSL_CERT_FILE" in refused.sentence
    assert (trusted.answered, trusted.calls) == (2, 2)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("no-such-host.invalid", "no such host"),
        ("127.0.0.1", "connection refused"),
        ("localhost", "connection refused"),
    ],
)
def test_why_no_connection_comes_about_is_said(host: str, said: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://{host}:{free.getsockname()[1]}/v1"
    outcome = ask_all_blocking(prompts_for(2), LLMConnection("m", url), Sink(), pacing=QUICK)
    assert outcome.stopped == "unreachable"
    assert f"cannot be reached or does not work ({said}" in outcome.sentence


def test_what_only_this_server_knows_is_sent_with_every_request_and_never_shown() -> None:
    extra = {"max_tokens": 7, "chat_template_kwargs": {"enable_thinking": False}, "token": KEY}
    with ScriptedLLM(first(error(400, "no json_schema here"))) as server:
        connection = LLMConnection("m", server.url, extra_body=extra)
        outcome = ask_all_blocking(prompts_for(2), connection, Sink(), pacing=QUICK)
    assert outcome.answered == 2
    for body in server.requests:
        assert {name: body[name] for name in extra} == extra
        assert body["model"] == "m"
    assert "extra_body=['chat_template_kwargs', 'max_tokens', 'token']" in repr(connection)
    assert KEY not in repr(connection) + outcome.sentence


def test_a_prompt_that_a_server_sends_back_says_nothing_about_the_key() -> None:
    """FastAPI quotes what it got; without a cause of their own such errors give their prompts up one by one."""
    quoted = {
        "detail": [{"msg": "Input should be a string", "input": "How do I rotate my API key? The model is unknown."}]
    }
    with ScriptedLLM(always(Act(422, json.dumps(quoted).encode()))) as server:
        outcome = ask(server, 3, Sink())
    assert (outcome.stopped, outcome.failed) == (None, 3)


@pytest.mark.parametrize("reason", [{"type": "stop"}, ["stop"], None])
def test_an_odd_reason_to_finish_is_no_reason_to_fail(reason: Any) -> None:
    body = json.loads(ok().body)
    body["choices"][0]["finish_reason"] = reason
    with ScriptedLLM(always(Act(body=json.dumps(body).encode()))) as server:
        assert ask(server, 2, Sink()).answered == 2


def test_an_answer_of_the_model_that_the_server_rejects_is_asked_for_again_in_the_same_format() -> None:
    message = "Generated JSON does not match the expected schema"
    with ScriptedLLM(first(error(400, message, "json_validate_failed"))) as server:
        outcome = ask(server, 6, Sink(), concurrency=1)
    assert (outcome.answered, outcome.failed, outcome.calls) == (6, 0, 7)
    assert {body["response_format"]["type"] for body in server.requests} == {"json_schema"}


def test_a_quota_is_seen_where_the_code_only_repeats_the_status() -> None:
    spent = Act(429, json.dumps({"error": {"type": "insufficient_quota", "code": "429", "message": "-"}}).encode())
    with ScriptedLLM(always(spent)) as server:
        outcome = ask(server, 40, Sink())
    assert (outcome.stopped, outcome.calls) == ("quota", 1)


def with_usage(act: Act, **usage: int) -> Act:
    return replace(act, body=json.dumps(json.loads(act.body) | {"usage": usage}).encode())


def test_thoughts_that_only_the_total_counts_are_paid_from_the_budget() -> None:
    act = with_usage(ok(), prompt_tokens=600, completion_tokens=60, total_tokens=3660)
    with ScriptedLLM(always(act)) as server:
        outcome = ask(server, 100, Sink(), budget=Budget(max_tokens=30_000))
    assert outcome.stopped == "budget"
    assert outcome.completion_tokens == outcome.calls * 3060
    assert outcome.prompt_tokens + outcome.completion_tokens <= 30_000


@pytest.mark.parametrize("choices", [[], [{"index": 0, "finish_reason": "content_filter"}]])
def test_what_an_answer_without_content_took_is_counted(choices: list[Any]) -> None:
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    act = Act(body=json.dumps({"choices": choices, "usage": usage}).encode())
    with ScriptedLLM(first(act)) as server:
        outcome = ask(server, 2, Sink(), concurrency=1)
    assert outcome.completion_tokens == 20 * outcome.answered + 7
    assert outcome.failed == len(choices), "a filter will say the same again; no choice at all is a mishap"


def test_what_a_filter_cut_off_is_not_asked_for_again() -> None:
    with ScriptedLLM(first(completion('{"queries": [{"query": "how do I ge', "content_filter"))) as server:
        outcome = ask(server, 4, Sink(), concurrency=1)
    assert (outcome.answered, outcome.failed, outcome.calls) == (3, 1, 4)
    assert "cut off by a content filter" in outcome.sentence


@pytest.mark.parametrize("fault", [error(503), error(503, retry_after_ms="150")], ids=["silent", "tells when"])
def test_a_server_that_loads_its_model_for_long_is_waited_for_with_single_requests(fault: Act) -> None:
    begun: list[float] = []

    def script(number: int, body: Body) -> Act:
        begun.append(time.monotonic())
        return fault if begun[-1] - begun[0] < 0.6 else ok()

    # The waits of five rounds add up to a third of that time.
    pacing = replace(QUICK, backoff_seconds=0.01, longest_backoff_seconds=0.2, down_seconds=30.0, patience_seconds=60.0)
    with ScriptedLLM(script) as server:
        outcome = ask(server, 60, Sink(), concurrency=16, pacing=pacing)
    assert (outcome.answered, outcome.failed, outcome.stopped) == (60, 0, None)
    # Sixteen that were under way when the first failed, then one at a time.
    assert outcome.calls - 60 < 40


def test_answers_under_way_when_another_request_ends_the_run_are_kept() -> None:
    def script(number: int, body: Body) -> Act:
        # Four are in flight when one of them is refused at once, long before the answers to the others.
        return error(404) if number == 12 else replace(ok(), delay=0.4 if number in (9, 10, 11) else 0.0)

    sink = Sink()
    with ScriptedLLM(script) as server:
        outcome = ask(server, 40, sink, concurrency=4)
    assert outcome.stopped == "model_not_found"
    assert sink.statuses == {"ok": outcome.calls - 1, "refused": 1}
    assert len(sink.answers) == outcome.calls - 1 >= 12


def test_the_key_is_that_of_the_settings_and_accounts_at_openai_are_nobody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OPENAI_ORG_ID", "org-ambient")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-ambient")
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "Authorization: Bearer ambient\nX-Corp: 1")
    with ScriptedLLM(always(ok())) as server:
        for key in (KEY, None):
            ask_all_blocking(prompts_for(1), LLMConnection("m", server.url, key), Sink(), pacing=QUICK)
    assert server.keys == [f"Bearer {KEY}", None]
    for headers in server.headers:
        assert headers["x-corp"] == "1"
        assert not {"openai-organization", "openai-project", "api-key"} & headers.keys()


@pytest.mark.parametrize("tail", ["/openai/deployments/mini", "?api-version=2024-10-21"])
def test_an_address_as_azure_has_them_gets_the_key_as_azure_wants_it(tail: str) -> None:
    with ScriptedLLM(always(ok())) as server:
        outcome = ask_all_blocking(prompts_for(1), LLMConnection("m", f"{server.url}{tail}", KEY), Sink(), pacing=QUICK)
    assert outcome.answered == 1
    assert server.headers[0]["api-key"] == KEY


def test_the_key_of_an_address_as_azure_has_them_is_not_sent_to_where_its_server_redirects() -> None:
    with ScriptedLLM(always(ok())) as other:
        moved = Act(307, headers={"Location": f"{other.url}/chat/completions"})
        with ScriptedLLM(always(moved)) as server:
            address = f"{server.url}/openai/deployments/mini"
            outcome = ask_all_blocking(prompts_for(1), LLMConnection("m", address, KEY), Sink(), pacing=QUICK)
    assert outcome.answered == 1
    assert server.headers[0]["api-key"] == KEY
    assert KEY not in repr(other.headers)
