"""One chat completion over the OpenAI protocol: a request, and whatever came of it as a value, never as an exception.

Knows nothing of passages or questions.
"""

from __future__ import annotations

import asyncio
import re
import string
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import quote, unquote, urlsplit

from acme_rag_pipeline.llm.reply import (
    ABOUT_FORMAT,
    ABOUT_PROMPT,
    TOO_LONG,
    Reply,
    StopReason,
    cause_of,
    content_reply,
    fault_in,
    is_about_length,
    message_of,
    named_in,
    own_name,
    retry_after,
)
from acme_rag_pipeline.llm.unreachable import connection_reply

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Messages = Sequence[Mapping[str, str]]

OPENAI_URL = "https://api.openai.com/v1"
# How the answer's form is asked for, best first: servers differ in what they know.
_JSON_SCHEMA, _JSON_OBJECT, _PLAIN = range(3)
_AZURE = (".azure.com", ".azure.us", ".azure.cn", ".azure-api.net")
# Where these are about the format they say so.
_ABOUT_OTHER_PARAMETERS = ("unsupported_parameter", "unsupported_value")
_OPENAI_HOST = "api.openai.com"
_SAFE_CODE = re.compile(r"[A-Za-z][A-Za-z0-9_.]{0,47}")
# Shorter keys and these are such as local servers are given, which nobody keeps secret, and which a question may well hold.
_LEAST_SECRET = 8
_NO_SECRETS = ("anything", "whatever", "not-needed", "no-key-required", "placeholder", "undefined", "lm-studio")


@dataclass(frozen=True, slots=True, repr=False)
class LLMConnection:
    """Where an LLM is and how it may be used; neither `repr` nor `shown_url` shows a secret.

    Attributes:
        model: The model's name at the server.
        base_url: Any OpenAI-compatible server; None: OpenAI.
        api_key: None: the server wants none.
        timeout_seconds: For one request, from sending to the last byte.
        concurrency: Most requests in flight.
        extra_body: What each request's body holds besides, for what only some servers know.
    """

    model: str
    base_url: str | None = None
    api_key: str | None = None
    timeout_seconds: float = 60.0
    concurrency: int = 16
    extra_body: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        key = "None" if self.api_key is None else "'***'"
        return (
            f"LLMConnection(model={self.model!r}, base_url={self.shown_url!r}, api_key={key}, "
            f"timeout_seconds={self.timeout_seconds}, concurrency={self.concurrency}, "
            f"extra_body={sorted(self.extra_body)})"
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


class LLMClient:
    """Requests to one server, for one event loop; remembers which form of `response_format` the server takes."""

    def __init__(self, connection: LLMConnection) -> None:
        self._connection = connection
        self._client: AsyncOpenAI | None = None
        self._key = (connection.api_key or "").strip()  # a secret from a file ends with a newline
        self._secrets = _secrets(self._key)
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
                    extra_body=dict(self._connection.extra_body) or None,
                    **_format_arguments(used, schema),
                )
                body = response.http_response.content
        except (TimeoutError, openai.APITimeoutError):
            return Reply("timeout", detail=f"no answer within {self._connection.timeout_seconds:g} s")
        except openai.APIConnectionError as error:
            return connection_reply(error)
        except openai.APIStatusError as error:
            return self._status_reply(error.response, error.status_code, own_name(error.code, error.type), used, schema)
        except Exception as error:
            # Nothing was sent: a lone surrogate in a broken file, ...
            return Reply("refused", detail=f"cannot be sent: {type(error).__name__}")
        reply = content_reply(body)
        if self._holds_secret(reply.content, messages):
            # A gateway that echoes requests. Nothing of it is kept.
            reply = replace(reply, status="bad_answer", content="", detail="the answer holds the key")
        if (fault := fault_in(body)) is not None:
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
            self._secrets += _secrets(user, user.partition(":")[2], _basic(user))
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
            "Authorization": f"Basic {_basic(user)}" if user else bearer,
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
        if code in ABOUT_PROMPT:
            return Reply("refused", detail=detail)
        if status in (400, 422) and (name := named_in(response.text, self._connection.extra_body)):
            detail = f"`{name}` of ACME_RAG_PAIRS__EXTRA_BODY ({detail})"
            return Reply("refused", detail=detail, stop="extra_body", perhaps_this_prompt=True)
        if status in (400, 413, 422) and is_about_length(response.text):
            return Reply("refused", detail=f"{within}HTTP {status} {TOO_LONG}")
        if status in (400, 422) and (stop := cause_of(response.text)) is not None:
            return Reply("refused", detail=detail, stop=stop, perhaps_this_prompt=True)
        if schema is not None and used < _PLAIN and not self._format_accepted:
            if status in (400, 404, 422, 501) and ABOUT_FORMAT.search(response.text):
                self._format = max(self._format, used + 1)
                return Reply("refused", detail=detail, next_format=used + 1)
            if status in (400, 422) and code not in _ABOUT_OTHER_PARAMETERS:
                # It does not say why. Tried, but not remembered unless it helps.
                return Reply("refused", detail=detail, next_format=used + 1)
            if status >= 500 and ABOUT_FORMAT.search(message_of(response.text)):
                # It fails over a schema. Believed only in its own words: the prompt that it sends back, or a page of a
                # proxy, may speak of anything. Not remembered either unless it helps.
                return Reply("server_error", detail=detail, next_format=used + 1)
        if status == 403:
            # Some gateways answer so to the one text that they take offence at.
            return Reply("refused", detail=detail, stop="unauthorised", perhaps_this_prompt=True)
        if status == 401:
            return Reply("refused", detail=detail, stop="unauthorised")
        if status in (404, 405):
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

    def _holds_secret(self, content: str, messages: Messages) -> bool:
        """Whether an answer holds the key, or user and password of the address, and not because the prompt does."""
        asked = "\n".join(message["content"] for message in messages)
        return any(secret in content and secret not in asked for secret in self._secrets)

    def _safe_code(self, code: object) -> str:
        if not isinstance(code, str) or not _SAFE_CODE.fullmatch(code):
            return ""
        return "" if any(secret in code for secret in (self._key, *self._secrets) if secret) else code


def _without_secrets(address: str) -> tuple[str, str, bytes]:
    """The address without what the HTTP library would log with it; its `user:password`, sent as a header; its query string."""
    parts = urlsplit(address)
    user, at, host = parts.netloc.rpartition("@")
    plain = parts._replace(netloc=host, query="", fragment="").geturl()
    return plain, unquote(user) if at else "", quote(parts.query, safe=string.punctuation).encode()


def _secrets(*candidates: str) -> list[str]:
    return [secret for secret in candidates if len(secret) >= _LEAST_SECRET and secret not in _NO_SECRETS]


def _basic(user: str) -> str:
    """`user:password` as the header has it."""
    return b64encode(user.encode()).decode()


def _format_arguments(used: int, schema: Mapping[str, Any] | None) -> dict[str, Any]:
    if schema is None or used >= _PLAIN:
        return {}
    if used == _JSON_OBJECT:
        return {"response_format": {"type": "json_object"}}
    named = {"name": "answer", "strict": True, "schema": dict(schema)}
    return {"response_format": {"type": "json_schema", "json_schema": named}}
