"""What the documents folder holds right now, as one hash: for the sensor, and to say how far the served index is behind."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from acme_rag_pipeline.documents.source import ReadFailure, SourceFile, TooLarge, read_bytes, scan
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.warehouse import records

# A file written in the same instant as a look may have changed after it without a newer time stamp.
RACY_NS = 2_000_000_000
_HASHES: dict[tuple[Path, int, int, int], str] = {}


def folder_state(settings: Settings, store: Store | None = None) -> str:
    """Hash over (path, content) of every file; equal to the `sources` that the `documents` stage reports for it.

    Files whose size and time stamps are those of the last call in this process, or of the last `documents` stage, are not
    read again.

    Args:
        settings: name the folder.
        store: what the `documents` stage knows; None: every file is read once in this process.

    Raises:
        DocumentsFolderError: the folder is missing or cannot be listed.
    """
    max_bytes = int(settings.document.max_megabytes * 1_000_000)
    known = {} if store is None else _known(store)
    return sources_hash((file.doc_path, _content(file, max_bytes, known)) for file in scan(settings.documents))


def folder_changes(settings: Settings, store: Store) -> dict[str, int]:
    """How many files are new, changed and gone since the `documents` stage.

    Raises:
        DocumentsFolderError: as for `folder_state`.
    """
    max_bytes = int(settings.document.max_megabytes * 1_000_000)
    known = _known(store)
    files = scan(settings.documents)
    now = {file.doc_path: _content(file, max_bytes, known) for file in files}
    refused = out_of_reach(files)
    gone = [path for path in known if path not in now and not path.startswith(refused)]
    changed = sum(now[path] != row["sha256"] for path, row in known.items() if path in now)
    return {"new": len(now.keys() - known.keys()), "changed": changed, "deleted": len(gone)}


def out_of_reach(files: Sequence[SourceFile]) -> tuple[str, ...]:
    """The folders that may not be listed today, each with a slash: nobody can tell if a document whose path begins so is gone."""
    return tuple(f"{file.doc_path}/" for file in files if file.is_refused_folder)


def sources_hash(files: Iterable[tuple[str, str | None]]) -> str:
    """Hash of (path, sha256), which is None for files that cannot be read: a log that grows changes nothing."""
    return content_hash((path, sha256 or "not read") for path, sha256 in files)


def looks_unchanged(file: SourceFile, known: Mapping[str, Any]) -> bool:
    """Whether a file's size and time stamps are those with which its row of `documents` was read."""
    return (
        known["size"] == file.size
        and known["mtime_ns"] == file.mtime_ns
        # Archives, copies and reproducible builds set time stamps; when they did, they cannot set.
        and max(known["mtime_ns"], file.ctime_ns) < known["scanned_at_ns"] - RACY_NS
        # By a clock that was ahead the file may have been read before that.
        and known["scanned_at_ns"] <= time.time_ns()
    )


def _known(store: Store) -> dict[str, dict[str, Any]]:
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT doc_path, sha256, size, mtime_ns, scanned_at_ns, status FROM documents WHERE status <> 'deleted'",
        )
    return {row["doc_path"]: row for row in rows}


def _content(file: SourceFile, max_bytes: int, known: Mapping[str, Mapping[str, Any]]) -> str | None:
    # The limit may be lower than at the last look.
    if file.problem is not None or file.size > max_bytes:
        return None
    row = known.get(file.doc_path)
    # Also of those that no parser could read: their bytes are known.
    if row is not None and row["sha256"] is not None and looks_unchanged(file, row):
        return row["sha256"]
    key = (file.path, file.size, file.mtime_ns, file.ctime_ns)
    if key in _HASHES:
        return _HASHES[key]
    now = time.time_ns()
    try:
        content = hashlib.sha256(read_bytes(file, max_bytes)).hexdigest()
    except (ReadFailure, TooLarge):
        return None
    if now - max(file.mtime_ns, file.ctime_ns) > RACY_NS:
        _HASHES[key] = content
    return content
