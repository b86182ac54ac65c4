"""What the documents folder holds right now, as one hash: for the sensor, and to say how far the served index is behind."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from acme_rag_pipeline.documents.source import ReadFailure, SourceFile, TooLarge, read_bytes, scan
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash

# A file written in the same instant as a look may have changed after it without a newer time stamp.
RACY_NS = 2_000_000_000
_HASHES: dict[tuple[Path, int, int, int], str] = {}


def folder_state(settings: Settings) -> str:
    """Hash over (path, content) of every file; equal to the `sources` that the `documents` stage reports for it.

    Files whose size and time stamps are those of the last call in this process are not read again.

    Raises:
        DocumentsFolderError: the folder is missing or cannot be listed.
    """
    max_bytes = int(settings.document.max_megabytes * 1_000_000)
    return sources_hash((file.doc_path, _content(file, max_bytes), file.size) for file in scan(settings.documents))


def folder_changes(settings: Settings, known: Mapping[str, str | None]) -> dict[str, int]:
    """How many files are new, changed and gone since the `documents` stage, which knew them by these hashes.

    Raises:
        DocumentsFolderError: as for `folder_state`.
    """
    max_bytes = int(settings.document.max_megabytes * 1_000_000)
    now = {file.doc_path: _content(file, max_bytes) for file in scan(settings.documents)}
    changed = sum(now[path] != sha256 for path, sha256 in known.items() if path in now)
    return {"new": len(now.keys() - known.keys()), "changed": changed, "deleted": len(known.keys() - now.keys())}


def sources_hash(files: Iterable[tuple[str, str | None, int]]) -> str:
    """Hash of (path, sha256 or None, size): the size speaks for files whose content was not read."""
    return content_hash((path, sha256 or f"{size} bytes") for path, sha256, size in files)


def _content(file: SourceFile, max_bytes: int) -> str | None:
    # The limit may be lower than at the last look.
    if file.problem is not None or file.size > max_bytes:
        return None
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
