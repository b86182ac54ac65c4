"""What a server of the OpenAI protocol sent back, read: an answer, what it took, or why there is none.

No text that the server sent leaves through `Reply.detail`: servers quote keys and prompts in their errors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal

CallStatus = Literal[
    "ok", "empty", "rate_limited", "server_error", "timeout", "bad_answer", "connection_error", "refused"
]
StopReason = Literal[
    "unreachable",
    "unauthorised",
    "model_not_found",
    "extra_body",
    "quota",
    "rate_limited",
    "unusable",
    "failing",
    "budget",
]
ABOUT_FORMAT = re.compile(
    r"response.format|json.schema|json.object|json.mode|structured.output|schema|grammar|guided|requested parameters",
    re.IGNORECASE,
)
TOO_LONG = "context_length_exceeded"
# Codes of errors that are about what one prompt says or how long it is: no other format and no other time helps.
ABOUT_PROMPT = (
    "content_filter",
    "content_policy_violation",
    TOO_LONG,
    "exceed_context_size_error",
    "string_above_max_length",
)
# Names of causes, looked for in errors that are not kept. Gateways send HTTP 400 where OpenAI sends 401 and 404.
_ABOUT_KEY = re.compile(r"api[ _-]?key|credential|unauthori[sz]ed", re.IGNORECASE)
_ABOUT_MODEL = re.compile(
    r"\bmodel\b.{0,80}\b(not found|not exist|not a valid|not supported|not available|invalid|unknown)\b"
    r"|\b(invalid|unknown|no such|not a valid|not found)\b.{0,20}\bmodel\b",
    re.IGNORECASE,
)
_ABOUT_LENGTH = re.compile(r"maximum context length|context (?:window|size)", re.IGNORECASE)
_ABOUT_RESPONSE_FORMAT = re.compile(r"response.format|json.schema|json.object|json.mode", re.IGNORECASE)
_WHERE_NAMES_STAND = r"(?:^|['\"`]|\b(?i:parameter|argument|property|field|option|supplied)\W{1,3})"
CUT_OFF = "cut off at the server's length limit"
FILTERED = "cut off by a content filter"
NO_COMPLETION = "the body is not a chat completion"
RIGHT_ADDRESS = "Is OPENAI_BASE_URL right (does it end in /v1)?"


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one request.

    Attributes:
        status: `ok` says that the server sent content, not that the content is any good.
        content: What the model wrote.
        detail: For the log: free of secrets and of document text. Content may come with one, too: it was cut off.
        prompt_tokens: As the server counts; None where it does not say.
        completion_tokens: Likewise.
        retry_after: Seconds that the server asks to wait.
        stop: Why no other request can do better.
        next_format: Ask again with (at least) this `least_format`: the server does not know the one that was used.
        perhaps_this_prompt: `stop` may hold for this prompt alone.
    """

    status: CallStatus
    content: str = ""
    detail: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    retry_after: float | None = None
    stop: StopReason | None = None
    next_format: int | None = None
    perhaps_this_prompt: bool = False


def own_name(code: object, kind: object) -> object:
    """What an error calls itself: its code, or where that only repeats the status its type."""
    return kind if kind and (not code or str(code).isdigit()) else code


def cause_of(body: str) -> StopReason | None:
    """What an HTTP 400 says that is no fault of the prompt; None: nothing, or something about the answer's form."""
    said = message_of(body)
    if ABOUT_FORMAT.search(said):
        return None
    return "unauthorised" if _ABOUT_KEY.search(said) else "model_not_found" if _ABOUT_MODEL.search(said) else None


def message_of(body: str) -> str:
    """What an error says itself; a server may send the prompt back beside it, and that may speak of anything."""
    error = _error_in(body)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def is_about_length(body: str) -> bool:
    """Whether an error's own words say that a prompt is too long: vLLM and others have no code for it."""
    return bool(_ABOUT_LENGTH.search(message_of(body)))


def named_in(body: str, names: Iterable[str]) -> str:
    """Which of these names of a request's body an error is about; empty: none, or rather `response_format`."""
    error, said = _error_in(body), message_of(body)
    param = error.get("param") if isinstance(error, dict) else None
    if _ABOUT_RESPONSE_FORMAT.search(f"{param} {said}"):
        return ""
    places = _places_in(error)
    for name in names:
        if isinstance(param, str) and param:
            named = re.split(r"[.\[]", param)[0] == name
        else:
            # Some names are words that an error may hold for another reason: those count in quotes, or where a name stands.
            before = "" if "_" in name else _WHERE_NAMES_STAND
            named = name in places or bool(re.search(rf"{before}(?<![\w-]){re.escape(name)}(?![\w-])", said))
        if named:
            return name
    return ""


def _error_in(body: str) -> Any:
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return error.get("error", error) if isinstance(error, dict) else error


def _places_in(error: Any) -> set[str]:
    """Where in the request the faults are, as FastAPI and Mistral list them: `{"detail": [{"loc": ["body", "seed"], ...}]}`."""
    holders = [error, error.get("message")] if isinstance(error, dict) else []
    lists = [holder.get("detail") for holder in holders if isinstance(holder, dict)]
    faults = [fault for faults in lists if isinstance(faults, list) for fault in faults if isinstance(fault, dict)]
    places = [fault["loc"] for fault in faults if isinstance(fault.get("loc"), list)]
    return {part for place in places for part in place[:2] if isinstance(part, str)}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `Retry-After` (seconds or HTTP date) or `retry-after-ms`; None if it does not say."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return seconds if 0 <= seconds < float("inf") else None
    until = _date(headers.get("retry-after"))
    if until is None:
        return None
    # The server's own clock, where it tells the time: ours may differ by more than the wait.
    now = _date(headers.get("date")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _date(text: str | None) -> datetime | None:
    """An HTTP date; None where it is none, or lies beyond the years that there are."""
    try:
        found = parsedate_to_datetime(text or "")
        # `-0000` says no zone and means UTC.
        return (found.replace(tzinfo=UTC) if found.tzinfo is None else found).astimezone(UTC)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None


def fault_in(body: bytes) -> tuple[int, object] | None:
    """Status and code of an error in a body that came with HTTP 200; None: there is none.

    Gateways send so what befell the model behind them once they had begun to answer. Without a status it is a fault of
    the server.
    """
    try:
        completion = json.loads(body)
        choices = completion.get("choices")
        choice = choices[0] if choices else {}
        fault = choice.get("error") or (not choices and completion.get("error"))
        failed = bool(fault) or choice.get("finish_reason") == "error"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
    if not failed:
        return None
    named = fault if isinstance(fault, dict) else {}
    code = str(named.get("code") or "")
    return int(code) if re.fullmatch("[45][0-9]{2}", code) else 500, own_name(code, named.get("type"))


def content_reply(body: bytes) -> Reply:
    """What a chat completion says and took; a body that is none is a bad answer."""
    try:
        completion = json.loads(body)
        tokens = _tokens(completion.get("usage"))
    except (ValueError, AttributeError, RecursionError):
        return Reply("bad_answer", detail=NO_COMPLETION)
    try:
        choice = completion["choices"][0]
        finish_reason, message = choice.get("finish_reason"), choice.get("message") or {}
        content, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        return Reply("bad_answer", "", NO_COMPLETION, *tokens)
    if isinstance(content, list):
        # Parts, as some servers send them; what a model thinks is a part of another type.
        parts = [part for part in content if isinstance(part, dict) and part.get("type", "text") == "text"]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    incomplete = {"length": CUT_OFF, "content_filter": FILTERED}.get(str(finish_reason), "")
    if not isinstance(content, str) or not content.strip():
        if refusal or finish_reason == "content_filter":
            return Reply("refused", "", "the model declines to answer", *tokens)
        return Reply("bad_answer", "", ": ".join(filter(None, ("no content", incomplete))), *tokens)
    return Reply("ok", content, incomplete, *tokens)


def _tokens(usage: Any) -> tuple[int | None, int | None]:
    """Tokens of prompt and completion as the server counts them."""
    counted = [
        usage.get(name) if isinstance(usage, dict) else None
        for name in ("prompt_tokens", "completion_tokens", "total_tokens")
    ]
    prompt, completion, total = (n if type(n) is int and 0 <= n < 2**31 else None for n in counted)
    if prompt and completion is not None and total is not None:
        # Some servers count what a model thought in the total alone, and bill it as completion.
        completion = max(completion, total - prompt)
    return prompt, completion
