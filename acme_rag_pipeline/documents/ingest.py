"""The `documents` stage: what the folder holds today, parsed, with a reason for everything that could not be read."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import duckdb

from acme_rag_pipeline.documents.parsers import (
    MAY_PASS,
    Parsed,
    Unreadable,
    format_of,
    parse,
    parser_for,
    refused_by_name,
)
from acme_rag_pipeline.documents.source import (
    DocumentsFolderError,
    ReadFailure,
    SourceFile,
    TooLarge,
    read_bytes,
    scan,
)
from acme_rag_pipeline.documents.state import looks_unchanged, out_of_reach, sources_hash
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY
from acme_rag_pipeline.store.stages import StageResult, record, recorded
from acme_rag_pipeline.store.warehouse import Counts, records, replace, update

STAGE = "documents"
CODE_VERSION = "1"
COMMIT_SECONDS = 30.0
LARGE_BYTES = 5_000_000
SLOW_SECONDS = 10.0
_SLOW_FORMATS = ("html", "pdf", "docx")
logger = logging.getLogger(__name__)


def ingest_documents(store: Store, settings: Settings) -> StageResult:
    """Bring the `documents` table to the state of the folder, reading only files whose size or time stamps differ.

    Raises:
        DocumentsFolderError: the folder is missing, cannot be listed, or is empty, or has nothing left but files that no
            parser reads, while the store holds documents.
    """
    files = scan(settings.documents)
    known = _known(store)
    _check_not_emptied(settings, files, known)
    now = time.time_ns()
    rows, in_store = _read(store, settings, files, known, now)
    if rows is None:
        return ingest_documents(store, settings)
    seen = {row["doc_path"] for row in rows}
    refused = out_of_reach(files)
    rows += [_not_listed(row, refused) for path, row in known.items() if path not in seen]
    data_version = content_hash(_identity(row) for row in rows if row["status"] != "deleted")
    details = _details(rows, seen) | {SETTINGS_KEY: settings_key()}
    gone = sorted(path for path in known if path not in seen)
    made_from = fingerprint(STAGE, CODE_VERSION, settings.document, data_version, details["sources"], gone)
    unchanged = recorded(store.warehouse, STAGE, made_from)
    content, before = ({row["doc_path"]: _identity(row) for row in some} for some in (rows, known.values()))
    # Rows that a killed run left of an edit that was taken back must go; new stamps can wait for a run that writes nothing
    # else just now.
    if unchanged is not None and content == before and not (_touched(files, known, now) and store.idle("writer")):
        return unchanged
    with store.writer(STAGE):
        if _known(store) != in_store:
            # Another run wrote while this one waited.
            return ingest_documents(store, settings)
        with store.warehouse.write() as connection:
            _write(connection, [row for row in rows if row is not known.get(row["doc_path"])])
            if unchanged is not None:
                return unchanged
            counts = _counts(before, content)
            details["words"] = _words(connection)
            return record(connection, StageResult(STAGE, data_version, counts, details=details), made_from)


def settings_key() -> str:
    """Hash of the code that decides the rows of given files; the largest size is told by the folder's state."""
    return fingerprint(CODE_VERSION)


def _read(
    store: Store, settings: Settings, files: Sequence[SourceFile], known: Mapping[str, dict[str, Any]], now: int
) -> tuple[list[dict[str, Any]] | None, Mapping[str, dict[str, Any]]]:
    """The rows of the files, and what the store holds of them by then: thousands of PDFs are read for longer than a kill may cost.

    What is committed on the way is not recorded as the stage's outcome, so that no stage behind it begins.

    Returns:
        No rows where another run wrote meanwhile.
    """
    max_bytes = int(settings.document.max_megabytes * 1_000_000)
    rows: list[dict[str, Any]] = []
    in_store, committed, since = known, 0, time.monotonic()
    for file in files:
        before = known.get(file.doc_path)
        if file.size >= LARGE_BYTES and (before is None or not looks_unchanged(file, before)):
            # A parser that never comes back, or takes all memory, would be known by nothing else.
            logger.info("%s: reading %.0f MB", file.doc_path, file.size / 1e6)
        rows.append(_row(file, before, max_bytes, now))
        if time.monotonic() - since < COMMIT_SECONDS:
            continue
        with store.writer(STAGE):
            if _known(store) != in_store:
                return None, in_store
            with store.warehouse.write() as connection:
                _write(connection, [row for row in rows[committed:] if row is not known.get(row["doc_path"])])
            in_store = _known(store)
        committed, since = len(rows), time.monotonic()
        logger.info("%d of %d files read", committed, len(files))
    return rows, in_store


def check_not_emptied(store: Store, settings: Settings) -> None:
    """Raise the `DocumentsFolderError` with which `ingest_documents` would refuse to delete everything."""
    _check_not_emptied(settings, scan(settings.documents), _known(store))


def _check_not_emptied(settings: Settings, files: Sequence[SourceFile], known: Mapping[str, Mapping[str, Any]]) -> None:
    refused = out_of_reach(files)
    live = {path for path, row in known.items() if row["status"] != "deleted" and not path.startswith(refused)}
    texts = {path for path in live if known[path]["has_text"]}
    if (live and not files) or (texts and not any(_may_be_read(file) for file in files)):
        found = "holds nothing but " + ", ".join(file.doc_path for file in files[:3]) if files else "is empty"
        raise DocumentsFolderError(
            f"ACME_RAG_DOCUMENTS: {settings.documents} {found}, but the store holds {len(live)} documents. Nothing "
            "was deleted. Check the path or the mount; to really start again, delete the store."
        )


def _known(store: Store) -> dict[str, dict[str, Any]]:
    """The rows of `documents` without their texts, which nothing asks for while nothing changes."""
    with store.warehouse.read() as connection:
        rows = records(
            connection, "SELECT * EXCLUDE (text, words), text IS NOT NULL AS has_text FROM documents ORDER BY doc_path"
        )
    return {row["doc_path"]: row for row in rows}


def _touched(files: Sequence[SourceFile], known: Mapping[str, Mapping[str, Any]], now: int) -> bool:
    """Whether a file would be read again in each run: its stamps were set since it was read, or the clock was set back."""
    return any(
        row["scanned_at_ns"] < max(file.mtime_ns, file.ctime_ns) <= now or row["scanned_at_ns"] > now
        for file in files
        if (row := known.get(file.doc_path)) is not None and row["sha256"] is not None
    )


def _write(connection: duckdb.DuckDBPyConnection, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows: whole ones where their text is given, else what may change while it stays."""
    replace(connection, "documents", [_without(row, "has_text") for row in rows if "text" in row])
    stamps = ("doc_path", "size", "mtime_ns", "scanned_at_ns", "status", "reason")
    kept = [{name: row[name] for name in stamps} for row in rows if "text" not in row]
    update(connection, "documents", "doc_path", kept)


def _words(connection: duckdb.DuckDBPyConnection) -> int:
    """Words of all texts; counted here where a row of an earlier version does not say its own."""
    uncounted = records(connection, "SELECT doc_path, text FROM documents WHERE words IS NULL AND text IS NOT NULL")
    counted = [{"doc_path": row["doc_path"], "words": len(row["text"].split())} for row in uncounted]
    update(connection, "documents", "doc_path", counted)
    return int(connection.execute("SELECT coalesce(sum(words), 0) FROM documents").fetchall()[0][0])


def _without(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {other: value for other, value in row.items() if other != name}


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
        return _unreadable(stat, None, file.problem, parser, known)
    try:
        data = read_bytes(file, max_bytes)
    except ReadFailure as failure:
        if known and known["has_text"]:
            return known | stat | {"mtime_ns": None, "status": "unreadable", "reason": _kept_because(str(failure))}
        return _unreadable(stat, None, str(failure), parser, known)
    except TooLarge as failure:
        return _unreadable(stat, None, str(failure), parser, known)
    digest = hashlib.sha256(data).hexdigest()
    if known and known["sha256"] == digest and known["parser"] == parser and known["status"] == "ok":
        # With the time of this look, so that the next one need not read it.
        return known | stat
    try:
        with named_when_slow(file.doc_path):
            parsed = parse(file.doc_path, data)
    except Unreadable as failure:
        return _unreadable(stat, digest, str(failure), parser, known)
    if parsed.note and (known is None or known["reason"] != parsed.note):
        logger.warning("%s: %s", file.doc_path, parsed.note)
    return _readable(stat, digest, parsed)


@contextlib.contextmanager
def named_when_slow(doc_path: str) -> Iterator[None]:
    """Log the document's name once it has been parsed for long: of a run that hangs or dies there, it is all that is known."""
    if format_of(doc_path) not in _SLOW_FORMATS:
        yield
        return
    timer = threading.Timer(SLOW_SECONDS, logger.info, ("%s: is still being parsed", doc_path))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _still_unreadable(file: SourceFile, known: dict[str, Any], parser: str | None) -> bool:
    """Whether these bytes were read before and no parser understood them; a package that was missing may be there by now."""
    refused = known["status"] == "unreadable" and known["sha256"] is not None and not known["has_text"]
    return (
        refused
        and known["parser"] == parser
        # What is said of a name that no parser reads has no version.
        and (parser is not None or known["reason"] == refused_by_name(file.doc_path))
        and not any(word in known["reason"] for word in MAY_PASS)
        and looks_unchanged(file, known)
    )


def _readable(stat: dict[str, Any], digest: str, parsed: Parsed) -> dict[str, Any]:
    return stat | {
        "sha256": digest,
        "status": "ok",
        # Of a document that is there in part.
        "reason": parsed.note or None,
        "title": parsed.title,
        "format": parsed.format,
        "parser": parsed.parser,
        "text": parsed.text,
        "has_text": True,
        "words": len(parsed.text.split()),
        "text_sha256": sha256_text(parsed.text),
    }


def _unreadable(
    stat: dict[str, Any], digest: str | None, reason: str, parser: str | None, known: Mapping[str, Any] | None
) -> dict[str, Any]:
    # Each is an event of Dagster's log: thousands of pictures in a folder must not be told of in every run.
    if known is None or (known["status"], known["reason"]) != ("unreadable", reason):
        logger.warning("%s: %s", stat["doc_path"], reason)
    empty = {
        "title": None,
        "format": None,
        "parser": parser,
        "text": None,
        "has_text": False,
        "words": None,
        "text_sha256": None,
    }
    return stat | empty | {"sha256": digest, "status": "unreadable", "reason": reason}


def _not_listed(known: dict[str, Any], refused: tuple[str, ...]) -> dict[str, Any]:
    if known["status"] == "deleted" or not known["doc_path"].startswith(refused):
        return _tombstone(known)
    if not known["has_text"]:
        return known
    today = {"mtime_ns": None, "status": "unreadable", "reason": _kept_because("its folder may not be listed")}
    return known if known["reason"] == today["reason"] else known | today


def _kept_because(failure: str) -> str:
    return f"cannot be read today ({failure}); its last good version stays in use"


def _tombstone(known: dict[str, Any]) -> dict[str, Any]:
    if known["status"] == "deleted":
        return known
    gone = dict.fromkeys(("title", "format", "text", "words", "text_sha256", "mtime_ns"))
    return known | gone | {"has_text": False, "status": "deleted", "reason": "the file is gone"}


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
    return None if row["status"] == "unreadable" and row["has_text"] else row["sha256"]


def _details(rows: list[dict[str, Any]], seen: Set[str]) -> dict[str, Any]:
    alive = [row for row in rows if row["status"] != "deleted"]
    return {
        "sources": sources_hash((row["doc_path"], _sha256_read(row)) for row in alive if row["doc_path"] in seen),
        "readable": sum(row["status"] == "ok" for row in alive),
        "unreadable": sum(row["status"] == "unreadable" for row in alive),
        "incomplete": sum(row["status"] == "ok" and row["reason"] is not None for row in alive),
        "formats": dict(sorted(Counter(row["format"] or "unreadable" for row in alive).items())),
        "problems": [
            {"doc_path": row["doc_path"], "reason": row["reason"]} for row in alive if row["status"] == "unreadable"
        ][:200],
    }
