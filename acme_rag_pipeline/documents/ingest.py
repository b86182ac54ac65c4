"""The `documents` stage: what the folder holds today, parsed, with a reason for everything that could not be read."""

from __future__ import annotations

import hashlib
import logging
import time
from collections import Counter
from typing import Any

from acme_rag_pipeline.documents.parsers import MAY_PASS, Parsed, Unreadable, parse, parser_for
from acme_rag_pipeline.documents.source import (
    DocumentsFolderError,
    ReadFailure,
    SourceFile,
    TooLarge,
    read_bytes,
    scan,
)
from acme_rag_pipeline.documents.state import looks_unchanged, sources_hash
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult, record, recorded
from acme_rag_pipeline.store.warehouse import Counts, reconcile, records

STAGE = "documents"
CODE_VERSION = "1"
logger = logging.getLogger(__name__)


def ingest_documents(store: Store, settings: Settings) -> StageResult:
    """Bring the `documents` table to the state of the folder, reading only files whose size or time stamps differ.

    Raises:
        DocumentsFolderError: the folder is missing, cannot be listed, or is empty, or has nothing left but files that no
            parser reads, while the store holds documents.
    """
    files = scan(settings.documents)
    known = _known(store)
    live = {path for path, row in known.items() if row["status"] != "deleted"}
    texts = {path for path in live if known[path]["text"] is not None}
    if (live and not files) or (texts and not any(_may_be_read(file) for file in files)):
        found = "holds nothing but " + ", ".join(file.doc_path for file in files[:3]) if files else "is empty"
        raise DocumentsFolderError(
            f"ACME_RAG_DOCUMENTS: {settings.documents} {found}, but the store holds {len(live)} documents. Nothing "
            "was deleted. Check the path or the mount; to really start again, delete the store."
        )
    now = time.time_ns()
    max_bytes = int(settings.document.max_megabytes * 1_000_000)
    rows = [_row(file, known.get(file.doc_path), max_bytes, now) for file in files]
    seen = {row["doc_path"] for row in rows}
    rows += [_tombstone(row) for path, row in known.items() if path not in seen]
    data_version = content_hash(_identity(row) for row in rows if row["status"] != "deleted")
    result = StageResult(STAGE, data_version, details=_details(rows))
    gone = sorted(path for path in known if path not in seen)
    made_from = fingerprint(STAGE, CODE_VERSION, settings.document, data_version, result.details["sources"], gone)
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None:
        return unchanged
    with store.writer(STAGE):
        if _known(store) != known:
            # Another run wrote while this one waited.
            return ingest_documents(store, settings)
        with store.warehouse.write() as connection:
            content = {row["doc_path"]: _identity(row) for row in rows}
            before = {path: _identity(row) for path, row in known.items()}
            reconcile(connection, "documents", "doc_path", rows)
            counts = _counts(before, content)
            return record(connection, StageResult(STAGE, data_version, counts, details=result.details), made_from)


def _known(store: Store) -> dict[str, dict[str, Any]]:
    with store.warehouse.read() as connection:
        return {row["doc_path"]: row for row in records(connection, "SELECT * FROM documents")}


def _may_be_read(file: SourceFile) -> bool:
    return file.problem is None and parser_for(file.doc_path) is not None


def _row(file: SourceFile, known: dict[str, Any] | None, max_bytes: int, now: int) -> dict[str, Any]:
    parser = parser_for(file.doc_path)
    may_be_read = file.problem is None and file.size <= max_bytes
    unchanged = known and known["status"] == "ok" and known["parser"] == parser and looks_unchanged(file, known)
    if known and may_be_read and (unchanged or _still_unreadable(file, known, parser)):
        return known
    stat = {"doc_path": file.doc_path, "size": file.size, "mtime_ns": file.mtime_ns, "scanned_at_ns": now}
    if file.problem is not None:
        return _unreadable(stat, None, file.problem, parser)
    try:
        data = read_bytes(file, max_bytes)
    except ReadFailure as failure:
        if known and known["text"] is not None:
            reason = f"cannot be read today ({failure}); its last good version stays in use"
            return known | stat | {"mtime_ns": None, "status": "unreadable", "reason": reason}
        return _unreadable(stat, None, str(failure), parser)
    except TooLarge as failure:
        return _unreadable(stat, None, str(failure), parser)
    digest = hashlib.sha256(data).hexdigest()
    if known and known["sha256"] == digest and known["parser"] == parser and known["status"] == "ok":
        # With its new time stamp, for the next time that rows are written.
        return known if known["mtime_ns"] == file.mtime_ns else known | stat
    try:
        parsed = parse(file.doc_path, data)
    except Unreadable as failure:
        return _unreadable(stat, digest, str(failure), parser)
    return _readable(stat, digest, parsed)


def _still_unreadable(file: SourceFile, known: dict[str, Any], parser: str | None) -> bool:
    """Whether these bytes were read before and no parser understood them; a package that was missing may be there by now."""
    refused = known["status"] == "unreadable" and known["sha256"] is not None and known["text"] is None
    return (
        refused
        and known["parser"] == parser
        and not any(word in known["reason"] for word in MAY_PASS)
        and looks_unchanged(file, known)
    )


def _readable(stat: dict[str, Any], digest: str, parsed: Parsed) -> dict[str, Any]:
    return stat | {
        "sha256": digest,
        "status": "ok",
        "reason": None,
        "title": parsed.title,
        "format": parsed.format,
        "parser": parsed.parser,
        "text": parsed.text,
        "text_sha256": sha256_text(parsed.text),
    }


def _unreadable(stat: dict[str, Any], digest: str | None, reason: str, parser: str | None) -> dict[str, Any]:
    logger.warning("%s: %s", stat["doc_path"], reason)
    empty = {"title": None, "format": None, "parser": parser, "text": None, "text_sha256": None}
    return stat | empty | {"sha256": digest, "status": "unreadable", "reason": reason}


def _tombstone(known: dict[str, Any]) -> dict[str, Any]:
    gone = dict.fromkeys(("title", "format", "text", "text_sha256", "mtime_ns"))
    return known | gone | {"status": "deleted", "reason": "the file is gone"}


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("doc_path", "sha256", "status", "reason", "title", "parser", "text_sha256"))


def _counts(before: dict[str, tuple[Any, ...]], after: dict[str, tuple[Any, ...]]) -> Counts:
    alive_before = {path for path, row in before.items() if row[2] != "deleted"}
    alive = {path for path, row in after.items() if row[2] != "deleted"}
    changed = {path for path in alive & alive_before if before[path] != after[path]}
    return Counts(
        added=len(alive - alive_before),
        changed=len(changed),
        removed=len(alive_before - alive),
        reused=len(alive & alive_before) - len(changed),
    )


def _sha256_read(row: dict[str, Any]) -> str | None:
    # The hash of a kept last good version is not what the folder holds: `folder_state` could not read it either.
    return None if row["status"] == "unreadable" and row["text"] is not None else row["sha256"]


def _details(rows: list[dict[str, Any]]) -> dict[str, Any]:
    alive = [row for row in rows if row["status"] != "deleted"]
    return {
        "sources": sources_hash((row["doc_path"], _sha256_read(row)) for row in alive),
        "readable": sum(row["status"] == "ok" for row in alive),
        "unreadable": sum(row["status"] == "unreadable" for row in alive),
        "words": sum(len((row["text"] or "").split()) for row in alive),
        "formats": dict(sorted(Counter(row["format"] or "unreadable" for row in alive).items())),
        "problems": [
            {"doc_path": row["doc_path"], "reason": row["reason"]} for row in alive if row["status"] == "unreadable"
        ][:200],
    }
