"""What servers of the OpenAI protocol do that OpenAI itself does not: other errors, other counts, other keys."""

from __future__ import annotations

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.llm.request import LLMConnection
from acme_rag_pipeline.pairs.llm import Budget, ask_all_blocking
from acme_rag_pipeline_tests.llm_server import Act, Body, ScriptedLLM, completion, error, ok
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


def test_a_certificate_that_is_not_trusted_costs_one_call_and_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with ScriptedLLM(always(ok()), tls=True) as server:
        refused = ask(server, 40, Sink(), concurrency=1)
        monkeypatch.setenv("SSL_CERT_FILE", str(server.certificate(tmp_path)))
        trusted = ask(server, 2, Sink())
    assert (refused.stopped, refused.calls, refused.left) == ("unreachable", 1, 40)
    assert "its certificate is not trusted (unable to get local issuer certificate): SSL_CERT_FILE" in refused.sentence
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


@pytest.mark.parametrize(
    ("extra", "message", "code", "param"),
    [
        ("max_tokens", "Unsupported parameter: 'max_tokens' is not supported with this model. Use another.",
         "unsupported_parameter", "max_tokens"),
        ("temperature", "Unsupported value: 'temperature' does not support 0.3 with this model.", "unsupported_value", None),
        ("max_tokens", "max_tokens is too large: 9000. This model's maximum context length is 8192.", None, None),
        ("seed", "Unrecognized request argument supplied: seed", None, None),
        ("reasoning", "Invalid value: 'none'", "invalid_value", "reasoning.effort"),
    ],
)  # fmt: skip
def test_what_an_extra_body_holds_in_vain_costs_three_calls_and_is_named(
    extra: str, message: str, code: str | None, param: str | None
) -> None:
    refusal = Act(400, json.dumps({"error": {"message": message, "code": code, "param": param}}).encode())
    with ScriptedLLM(lambda n, body: refusal if extra in body else ok()) as server:
        given = LLMConnection("m", server.url, extra_body={"x": 1, extra: 1})
        outcome = ask_all_blocking(prompts_for(40), given, Sink(), pacing=QUICK)
        without = ask_all_blocking(prompts_for(2), LLMConnection("m", server.url), Sink(), pacing=QUICK)
    assert (outcome.stopped, outcome.calls, outcome.answered) == ("extra_body", 3, 0)
    assert f"{server.url} refuses `{extra}` of ACME_RAG_PAIRS__EXTRA_BODY (HTTP 400" in outcome.sentence
    assert without.answered == 2


def test_a_place_that_a_server_lists_is_a_name_of_an_extra_body() -> None:
    listed = {"detail": [{"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
    with ScriptedLLM(always(Act(422, json.dumps(listed).encode()))) as server:
        given = LLMConnection("m", server.url, extra_body={"seed": 1})
        outcome = ask_all_blocking(prompts_for(9), given, Sink(), pacing=QUICK)
    assert (outcome.stopped, outcome.calls) == ("extra_body", 3)


@pytest.mark.parametrize(
    ("message", "answered"),
    [("response_format cannot be used with 'seed'", 6), ("the user has no seed here", 0)],
    ids=["about the format", "a word"],
)
def test_an_error_that_only_mentions_what_an_extra_body_holds_is_not_about_it(message: str, answered: int) -> None:
    def script(number: int, body: Body) -> Act:
        return ok() if answered and "response_format" not in body else error(400, message)

    with ScriptedLLM(script) as server:
        given = LLMConnection("m", server.url, extra_body={"seed": 1, "user": "me"})
        outcome = ask_all_blocking(prompts_for(6), given, Sink(), pacing=QUICK)
    assert (outcome.stopped, outcome.answered) == (None, answered)


@pytest.mark.parametrize("code", ["unsupported_parameter", "unsupported_value"])
def test_an_error_about_another_parameter_is_no_reason_to_ask_in_another_format(code: str) -> None:
    with ScriptedLLM(always(error(400, "not with this model", code))) as server:
        outcome = ask(server, 3, Sink())
    assert (outcome.failed, outcome.calls) == (3, 3)


def test_a_prompt_that_is_too_long_for_vllm_is_known_as_such() -> None:
    said = {
        "object": "error",
        "message": "This model's maximum context length is 512 tokens. However, you requested 900 tokens.",
        "type": "BadRequestError",
        "param": None,
        "code": 400,
    }
    sink = Sink()
    with ScriptedLLM(first(Act(400, json.dumps(said).encode()), error(400, "so", "BadRequestError"))) as server:
        outcome = ask(server, 4, sink, concurrency=1)
    assert (outcome.answered, outcome.failed) == (3, 1)
    assert [call.detail for call in sink.calls if call.detail] == [
        "HTTP 400 context_length_exceeded",
        "HTTP 400 BadRequestError",
    ]


def test_a_server_that_does_not_take_the_request_at_this_address_costs_one_call() -> None:
    with ScriptedLLM(always(Act(405, b"<html>405 Not Allowed</html>"))) as server:
        outcome = ask(server, 40, Sink())
    assert (outcome.stopped, outcome.calls) == ("model_not_found", 1)
    assert "or the address is wrong (HTTP 405)" in outcome.sentence


def test_pages_in_place_of_answers_are_a_question_about_the_address() -> None:
    page = Act(body=b"<html>Welcome</html>", headers={"Content-Type": "text/html"})
    asked = "Is OPENAI_BASE_URL right (does it end in /v1)?"
    with ScriptedLLM(always(page)) as server:
        assert asked in ask(server, 40, Sink()).sentence
    with ScriptedLLM(lambda n, body: page if "passage 0." in body["messages"][1]["content"] else ok()) as server:
        outcome = ask(server, 4, Sink())
    assert (outcome.answered, outcome.failed) == (3, 1)
    assert asked not in outcome.sentence


@pytest.mark.parametrize("secret", ["key", "password", "header"])
def test_an_answer_that_holds_the_key_is_not_kept(secret: str) -> None:
    def script(number: int, body: Body) -> Act:
        told = {"key": KEY, "password": f"pw-{KEY}", "header": server.headers[-1]["authorization"]}[secret]
        return ok(f"is {told} the key?") if number == 1 else ok("what of very-se?")

    sink = Sink()
    with ScriptedLLM(script) as server:
        url = server.url if secret == "key" else server.url.replace("//", f"//me:pw-{KEY}@")
        outcome = ask_all_blocking(prompts_for(3), LLMConnection("m", url, KEY, concurrency=1), sink, pacing=QUICK)
    assert (outcome.answered, outcome.calls) == (3, 4)
    assert [call.detail for call in sink.calls if call.status == "bad_answer"] == ["the answer holds the key"]
    assert KEY not in repr(sink.answers) + repr(sink.calls)


def test_a_key_that_is_no_secret_spoils_no_answer() -> None:
    """Local servers are given any word, and a document may hold even a longer one."""
    words = [(word, prompts_for(2)) for word in ("ollama", "anything", "not-needed")]
    named = [(name, prompts_for(2, f"How to start {name}")) for name in ("lm-studio", "LM-Studio-3")]
    for key, prompts in (*words, *named):
        with ScriptedLLM(always(ok(f"how do I start {key}?"))) as server:
            outcome = ask_all_blocking(prompts, LLMConnection("m", server.url, key), Sink(), pacing=QUICK)
        assert (outcome.answered, outcome.calls) == (2, 2)


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
