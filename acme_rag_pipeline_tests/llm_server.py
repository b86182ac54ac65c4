"""A real HTTP server that speaks the OpenAI protocol and misbehaves by script."""

from __future__ import annotations

import json
import re
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import trustme

from acme_rag_pipeline.store.fingerprints import fingerprint

Body = dict[str, Any]


@dataclass(frozen=True)
class Act:
    """What the server does with a request: an HTTP status and a body, or a misdeed on the wire."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0
    delay: float = 0.0
    cut_off: bool = False


Script = Callable[[int, Body], Act]


def completion(content: str | list[Any] | None, finish_reason: str = "stop", **message: Any) -> Act:
    """A chat completion with this content."""
    return Act(
        body=json.dumps(
            {
                "object": "chat.completion",
                "choices": [
                    {
                        "index": 0,
                        "finish_reason": finish_reason,
                        "message": {"role": "assistant", "content": content, **message},
                    }
                ],
                "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
            }
        ).encode()
    )


def ok(*queries: str) -> Act:
    """A good answer."""
    written = [{"query": query, "style": "question"} for query in queries or ("how do I get paid?",)]
    return completion(json.dumps({"queries": written}))


def prompt_of(body: Body) -> str:
    """Which prompt a request holds."""
    return fingerprint(body["messages"])


def in_other_words(number: int, body: Body) -> Act:
    """Two queries of a passage's own words and of the model's name: the same answer to the same prompt, whoever asks and when."""
    _, passage, _ = body["messages"][1]["content"].rsplit("\n=====data-", 2)
    words = [word for word in re.findall(r"\w+", passage.partition("\n")[2]) if len(word) > 3]
    return ok(f"{body['model']} asks about {' '.join(words[:5])}", f"what do they say of {' '.join(words[-5:])}?")


def garbage() -> Act:
    """Content that is not JSON."""
    return completion("Sure! Here are some questions")


def error(status: int, message: str = "fault on demand", code: str | None = None, **headers: str) -> Act:
    """An error as OpenAI sends it; underscores in header names stand for hyphens."""
    body = json.dumps({"error": {"message": message, "type": None, "code": code}}).encode()
    return Act(status, body, {name.replace("_", "-"): value for name, value in headers.items()})


def hang(seconds: float = 30.0) -> Act:
    """No answer until the server is closed."""
    return Act(hang=seconds)


def cut_off() -> Act:
    """A Content-Length that promises more than what is sent before the connection closes."""
    return Act(body=ok().body, cut_off=True)


class ScriptedLLM:
    """The server; a script maps the number of a request (from 0) and its body to an act.

    Attributes:
        requests: Bodies in order of arrival.
        headers: Their headers, names in lower case.
        paths: What they asked for, query string included.
        times: When they arrived.
        most_in_flight: Most requests that were open together.
    """

    def __init__(self, script: Script, latency: float = 0.0, *, tls: bool = False) -> None:
        self.requests: list[Body] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.times: list[float] = []
        self.most_in_flight = 0
        self._script, self._latency = script, latency
        self._in_flight = 0
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._scheme = "https" if tls else "http"
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._authority = trustme.CA()
            self._authority.issue_cert("localhost", "127.0.0.1").configure_cert(context)
            # The handshake where a request is handled: one that fails ends its thread, not the one that accepts.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def certificate(self, folder: Path) -> Path:
        """Write the certificate that who calls by `https` has to trust."""
        self._authority.cert_pem.write_to_path(folder / "authority.pem")
        return folder / "authority.pem"

    @property
    def url(self) -> str:
        """Base URL for a client."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}/v1"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def keys(self) -> list[str | None]:
        """The Authorization header of each request."""
        return [headers.get("authorization") for headers in self.headers]

    def act(self, body: Body, headers: dict[str, str], path: str) -> Act:
        """Note the request, and what to do with it once its time has come."""
        with self._lock:
            number = len(self.requests)
            self.requests.append(body)
            self.headers.append(headers)
            self.paths.append(path)
            self.times.append(time.monotonic())
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            act = self._script(number, body)
        self._closing.wait(self._latency + act.hang + act.delay)
        with self._lock:
            # Before the answer leaves: the client may send its next request before this thread runs again.
            self._in_flight -= 1
        return act


class _Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True
    block_on_close = False


def _handler(llm: ScriptedLLM) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            act = llm.act(body, {name.lower(): value for name, value in self.headers.items()}, self.path)
            length = len(act.body) + (1000 if act.cut_off else 0)
            head = {"Content-Type": "application/json", "Content-Length": str(length), **act.headers}
            lines = [f"HTTP/1.1 {act.status} -", *(f"{name}: {value}" for name, value in head.items())]
            self.close_connection = act.cut_off or act.hang > 0
            if not act.hang:
                # One write: two would wait for each other (Nagle and delayed acknowledgement).
                self.wfile.write(("\r\n".join(lines) + "\r\n\r\n").encode() + act.body)

    return Handler
