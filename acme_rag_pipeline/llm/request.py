"""One chat completion over the OpenAI protocol: a request, and whatever came of it as a value, never as an exception.

Knows nothing of passages or questions. No text that the server sent leaves through `Reply.detail`: servers quote keys
and prompts in their errors.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import string
import threading
from base64 import b64encode
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar
from urllib.parse import quote, unquote, urlsplit

if TYPE_CHECKING:
    from openai import AsyncOpenAI

CallStatus = Literal[
    "ok", "empty", "rate_limited", "server_error", "timeout", "bad_answer", "connection_error", "refused"
]
StopReason = Literal[
    "unreachable", "unauthorised", "model_not_found", "quota", "rate_limited", "unusable", "failing", "budget"
]
Messages = Sequence[Mapping[str, str]]

OPENAI_URL = "https://api.openai.com/v1"
# How the answer's form is asked for, best first: servers differ in what they know.
_JSON_SCHEMA, _JSON_OBJECT, _PLAIN = range(3)
_ABOUT_FORMAT = re.compile(
    r"response.format|json.schema|json.object|json.mode|structured.output|schema|grammar|guided|requested parameters",
    re.IGNORECASE,
)
# Names of causes, looked for in errors that are not kept. Gateways send HTTP 400 where OpenAI sends 401 and 404.
_ABOUT_KEY = re.compile(r"api[ _-]?key|credential|unauthori[sz]ed", re.IGNORECASE)
_ABOUT_MODEL = re.compile(
    r"\bmodel\b.{0,80}\b(not found|not exist|not a valid|not supported|not available|invalid|unknown)\b"
    r"|\b(invalid|unknown|no such|not a valid|not found)\b.{0,20}\bmodel\b",
    re.IGNORECASE,
)
_AZURE = (".azure.com", ".azure.us", ".azure.cn", ".azure-api.net")
_OPENAI_HOST = "api.openai.com"
_SAFE_CODE = re.compile(r"[a-z][a-z0-9_.]{0,47}")
_CUT_OFF = "cut off at the server's length limit"
FILTERED = "cut off by a content filter"
_NO_COMPLETION = "the body is not a chat completion"
# Windows takes no signal while a thread waits without end.
_SIGNAL_SECONDS = 0.5
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, repr=False)
class LLMConnection:
    """Where an LLM is and how it may be used; neither `repr` nor `shown_url` shows a secret.

    Attributes:
        model: The model's name at the server.
        base_url: Any OpenAI-compatible server; None: OpenAI.
        api_key: None: the server wants none.
        timeout_seconds: For one request, from sending to the last byte.
        concurrency: Most requests in flight.
    """

    model: str
    base_url: str | None = None
    api_key: str | None = None
    timeout_seconds: float = 60.0
    concurrency: int = 16

    def __repr__(self) -> str:
        key = "None" if self.api_key is None else "'***'"
        return (
            f"LLMConnection(model={self.model!r}, base_url={self.shown_url!r}, api_key={key}, "
            f"timeout_seconds={self.timeout_seconds}, concurrency={self.concurrency})"
        )

    @property
    def shown_url(self) -> str:
        """The server's address without user, password and query string."""
        try:
            parts = urlsplit(self.base_url or OPENAI_URL)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return "(not an address)"
        host = f"[{host}]" if ":" in host else host
        return f"{parts.scheme}://{host}{f':{port}' if port else ''}{parts.path}"


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


class LLMClient:
    """Requests to one server, for one event loop; remembers which form of `response_format` the server takes."""

    def __init__(self, connection: LLMConnection) -> None:
        self._connection = connection
        self._client: AsyncOpenAI | None = None
        self._key = (connection.api_key or "").strip()  # a secret from a file ends with a newline
        self._query = b""
        self._headers: dict[str, Any] = {}
        self._format = _JSON_SCHEMA
        self._format_accepted = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.close()

    async def chat(self, messages: Messages, schema: Mapping[str, Any] | None = None, least_format: int = 0) -> Reply:
        """One attempt; raises nothing but cancellation.

        Args:
            messages: The chat.
            schema: JSON schema of the answer; None: free text.
            least_format: `Reply.next_format` of the attempt before.
        """
        import openai

        if not (self._key.isascii() and self._key.isprintable()):
            # Not left to the HTTP library: it logs the header that it cannot send.
            return Reply("refused", detail="the key holds characters that cannot be sent", stop="unauthorised")
        used = _PLAIN if schema is None else max(self._format, least_format)
        try:
            client = self._open()
        except Exception as error:  # an address that is none
            return Reply("connection_error", detail=type(error).__name__, stop="unreachable")
        try:
            async with asyncio.timeout(self._connection.timeout_seconds):
                response = await client.chat.completions.with_raw_response.create(
                    model=self._connection.model,
                    messages=messages,  # type: ignore[arg-type]
                    extra_headers=self._headers,
                    **_format_arguments(used, schema),
                )
                body = response.http_response.content
        except (TimeoutError, openai.APITimeoutError):
            return Reply("timeout", detail=f"no answer within {self._connection.timeout_seconds:g} s")
        except openai.APIConnectionError as error:
            return Reply("connection_error", detail=type(error.__cause__ or error).__name__)
        except openai.APIStatusError as error:
            return self._status_reply(error.response, error.status_code, _named(error.code, error.type), used, schema)
        except Exception as error:
            # Nothing was sent: a lone surrogate in a broken file, ...
            return Reply("refused", detail=f"cannot be sent: {type(error).__name__}")
        reply = _content_reply(body)
        if (fault := _fault_in(body)) is not None:
            failed = self._status_reply(response.http_response, *fault, used, schema)
            return replace(failed, prompt_tokens=reply.prompt_tokens, completion_tokens=reply.completion_tokens)
        if schema is not None:
            self._format, self._format_accepted = max(used, self._format), True
        return reply

    def _open(self) -> AsyncOpenAI:
        import openai

        if self._client is None:
            address, user, self._query = _without_secrets(self._connection.base_url or OPENAI_URL)
            self._headers = self._who_asks(address, user)
            self._client = openai.AsyncOpenAI(
                # Never None: the client would look for key and address in the environment.
                api_key=self._key or "none",
                base_url=address,
                timeout=self._connection.timeout_seconds,
                max_retries=0,
                http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": [self._for_this_server]}),
            )
        return self._client

    def _who_asks(self, address: str, user: str) -> dict[str, Any]:
        """Who asks; stated one by one, because the client takes what is not stated from `OPENAI_...` variables."""
        import openai

        bearer = f"Bearer {self._key}" if self._key else openai.Omit()
        headers: dict[str, Any] = {
            "Authorization": f"Basic {b64encode(user.encode()).decode()}" if user else bearer,
        }
        host = urlsplit(address).hostname or ""
        if host != _OPENAI_HOST and not host.endswith(f".{_OPENAI_HOST}"):
            # What names an account at OpenAI is nobody else's business.
            headers |= {"OpenAI-Organization": openai.Omit(), "OpenAI-Project": openai.Omit()}
        if self._key and (b"api-version=" in self._query or "/openai/deployments/" in address):
            headers["api-key"] = self._key
            if not user and host.endswith(_AZURE):
                headers["Authorization"] = openai.Omit()  # there it would be a token of Entra
        return headers

    async def _for_this_server(self, request: Any) -> None:
        """Send what is for this server alone, and not where it redirects to: the key, and the query string of the address.

        That goes past the URL: the HTTP library logs URLs, and this may hold a secret.
        """
        assert self._client is not None
        request.extensions.pop("target", None)  # that of the request before a redirect
        if request.url.netloc != self._client.base_url.netloc:
            request.headers.pop("api-key", None)
        elif self._query and not request.url.query:
            request.extensions["target"] = request.url.raw_path + b"?" + self._query

    def _status_reply(
        self, response: Any, status: int, code: object, used: int, schema: Mapping[str, Any] | None
    ) -> Reply:
        code = self._safe_code(code)
        within = "" if response.status_code == status else f"HTTP {response.status_code} with an error like "
        detail = f"{within}HTTP {status} {code}".strip()
        wait = retry_after(response.headers)
        if code == "json_validate_failed":
            return Reply("bad_answer", detail=detail)  # Groq's word for an answer of the model that is not as asked
        if status in (400, 422) and (stop := _cause(response.text)) is not None:
            return Reply("refused", detail=detail, stop=stop, perhaps_this_prompt=True)
        if schema is not None and used < _PLAIN and not self._format_accepted and status in (400, 404, 422, 501):
            if _ABOUT_FORMAT.search(response.text):
                self._format = max(self._format, used + 1)
                return Reply("refused", detail=detail, next_format=used + 1)
            if status in (400, 422) and code != "context_length_exceeded":
                # It does not say why. Tried, but not remembered unless it helps.
                return Reply("refused", detail=detail, next_format=used + 1)
        if status == 403:
            # Some gateways answer so to the one text that they take offence at.
            return Reply("refused", detail=detail, stop="unauthorised", perhaps_this_prompt=True)
        if status == 401:
            return Reply("refused", detail=detail, stop="unauthorised")
        if status == 404:
            return Reply("refused", detail=detail, stop="model_not_found")
        if status == 402:
            return Reply("refused", detail=detail, stop="quota")
        if status == 429:
            quota: StopReason | None = "quota" if code == "insufficient_quota" else None
            return Reply("rate_limited", detail=detail, retry_after=wait, stop=quota)
        if status == 408:
            return Reply("timeout", detail=detail, retry_after=wait)
        if status in (409, 425) or status >= 500:
            return Reply("server_error", detail=detail, retry_after=wait)
        return Reply("refused", detail=detail)

    def _safe_code(self, code: object) -> str:
        if not isinstance(code, str) or not _SAFE_CODE.fullmatch(code):
            return ""
        return "" if self._key and self._key in code else code


def _named(code: object, kind: object) -> object:
    """What an error calls itself: its code, or where that only repeats the status its type."""
    return kind if kind and (not code or str(code).isdigit()) else code


def _cause(body: str) -> StopReason | None:
    """What an HTTP 400 says that is no fault of the prompt; None: nothing, or something about the answer's form."""
    said = _message(body)
    if _ABOUT_FORMAT.search(said):
        return None
    return "unauthorised" if _ABOUT_KEY.search(said) else "model_not_found" if _ABOUT_MODEL.search(said) else None


def _message(body: str) -> str:
    """What an error says itself; a server may send the prompt back beside it, and that may speak of anything."""
    try:
        error = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    error = error.get("error", error) if isinstance(error, dict) else error
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by `Retry-After` (seconds or HTTP date) or `retry-after-ms`; None if it does not say."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        return seconds if 0 <= seconds < float("inf") else None
    try:
        until = parsedate_to_datetime(headers["retry-after"])
        # The server's own clock, where it tells the time: ours may differ by more than the wait.
        now = parsedate_to_datetime(headers["date"]) if "date" in headers else datetime.now(UTC)
        return max(0.0, (until - now).total_seconds())
    except (KeyError, ValueError, TypeError):
        return None


def run_blocking(start: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
    """Run a coroutine to its end from any thread, also from one whose event loop is running (a notebook).

    Interrupted while it waits, it cancels the coroutine, lets it clean up, and only then raises.
    """
    interrupted = threading.Event()
    cancel: list[Callable[[], object]] = []

    async def main() -> _T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        cancel.append(lambda: loop.call_soon_threadsafe(task.cancel))
        if interrupted.is_set():
            raise asyncio.CancelledError
        return await start()

    # Always a thread of its own: Dagster's signal handlers raise wherever the main thread is, and an event loop only logs
    # what is raised in one of its callbacks. Here the main thread does nothing but wait.
    with ThreadPoolExecutor(1) as thread:
        try:
            running = thread.submit(lambda: asyncio.run(main()))
            while not wait([running], timeout=_SIGNAL_SECONDS).done:
                pass
            return running.result()
        except BaseException:
            interrupted.set()
            for stop in cancel:
                with contextlib.suppress(RuntimeError):  # the loop is closed: the exception is the coroutine's own
                    stop()
            raise


def _without_secrets(address: str) -> tuple[str, str, bytes]:
    """The address without what the HTTP library would log with it; its `user:password`, sent as a header; its query string."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    plain = parts._replace(netloc=host, query="", fragment="").geturl()
    return plain, unquote(user) if at else "", quote(parts.query, safe=string.punctuation).encode()


def _format_arguments(used: int, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    if schema is None or used >= _PLAIN:
        return {}
    if used == _JSON_OBJECT:
        return {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "strict": True, "schema": dict(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def _fault_in(body: bytes) -> tuple[int, object] | None:
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
    return int(code) if re.fullmatch("[45][0-9]{2}", code) else 500, _named(code, named.get("type"))


def _content_reply(body: bytes) -> Reply:
    try:
        completion = json.loads(body)
        tokens = _tokens(completion.get("usage"))
    except (ValueError, AttributeError, RecursionError):
        return Reply("bad_answer", detail=_NO_COMPLETION)
    try:
        choice = completion["choices"][0]
        finish_reason, message = choice.get("finish_reason"), choice.get("message") or {}
        content, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        return Reply("bad_answer", "", _NO_COMPLETION, *tokens)
    if isinstance(content, list):
        # Parts, as some servers send them; what a model thinks is a part of another type.
        parts = [part for part in content if isinstance(part, dict) and part.get("type", "text") == "text"]
        content = "".join(part["text"] for part in parts if isinstance(part.get("text"), str))
    incomplete = {"length": _CUT_OFF, "content_filter": FILTERED}.get(str(finish_reason), "")
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
