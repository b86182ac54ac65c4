"""What a parser says of a document that it cannot read."""

from __future__ import annotations

MISSING_PACKAGE = "install acme-rag-pipeline"


class Unreadable(Exception):
    """The document has no text that can be used; the message is one sentence that says why and what to do."""
