"""Why no connection to a server came about, in words."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from acme_rag_pipeline.llm.reply import Reply


def connection_reply(error: BaseException) -> Reply:
    """What came of a request that reached nobody.

    The libraries between wrap what the operating system or TLS said, several times over. Nothing that is not trusted now
    will be in a minute, so a certificate leaves no other request a chance.
    """
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            said = f"its certificate is not trusted ({cause.verify_message}): SSL_CERT_FILE can name whom to trust"
            return Reply("connection_error", detail=said, stop="unreachable")
        if isinstance(cause, socket.gaierror):
            return Reply("connection_error", detail="no such host, or its name cannot be looked up")
        if isinstance(cause, ConnectionRefusedError):
            return Reply("connection_error", detail="connection refused")
    return Reply("connection_error", detail=type(error.__cause__ or error).__name__)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from or during, to the end; of several at once the first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        within = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None
        error = within or error.__cause__ or error.__context__
