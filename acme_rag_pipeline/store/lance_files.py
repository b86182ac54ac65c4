"""What a LanceDB table needs on disk, read from a manifest: a few kilobytes, without LanceDB.

A manifest ends with the position of its protobuf message and `LANC`; the message names data files, deletion files and
the section of the indexes (lance/protos/table.proto). LanceDB itself says nothing about a lost file before a query needs it,
and importing it costs 2 s of a run that has nothing to do.
"""

from __future__ import annotations

import contextlib
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from acme_rag_pipeline.store.layout import flush_to_disk

_Fields = list[tuple[int, Any]]


def newest_version(folder: Path, name: str) -> str:
    """The newest manifest of a table by name and size; empty if there is no such table.

    Manifests are never rewritten, so a table whose newest manifest is known holds the rows that were counted then.
    """
    newest = _newest_manifest(folder, name)
    return f"{newest.name}:{newest.stat().st_size}" if newest else ""


def has_version(folder: Path, name: str, version: int) -> bool:
    """Whether a table has a manifest of that version."""
    return _manifest(folder, name, version) is not None


def lost_files(folder: Path, name: str, version: int | None = None) -> list[str]:
    """Files that a version of a table needs and that are missing or have another size; [] if there is no such version.

    Looks at names and sizes only. A manifest in a form that is not known counts as a whole table.

    Args:
        folder: of the tables.
        name: of the table.
        version: None: the newest.
    """
    manifest = _newest_manifest(folder, name) if version is None else _manifest(folder, name, version)
    if manifest is None:
        return []
    table = folder / f"{name}.lance"
    content = manifest.read_bytes()
    if content[-4:] != b"LANC":
        return [manifest.relative_to(table).as_posix()]
    try:
        needed = list(_needed(content))
    except (LookupError, ValueError, TypeError, AttributeError, struct.error):
        return []
    return sorted(path for path, size in needed if not _has_size(table / path, size))


def flush_version(folder: Path, name: str, version: int) -> None:
    """Have what a version of a table needs survive a power cut, before something that does is made to name it.

    LanceDB leaves that to the operating system, which may write a name long before the content.
    """
    manifest = _manifest(folder, name, version)
    if manifest is None:
        return
    table = folder / f"{name}.lance"
    with contextlib.suppress(LookupError, ValueError, TypeError, AttributeError, struct.error):
        files = [table / path for path, _ in _needed(manifest.read_bytes()) if (table / path).is_file()]
        for path in [*files, *sorted({path.parent for path in files}), manifest, manifest.parent, table, folder]:
            flush_to_disk(path)


def _newest_manifest(folder: Path, name: str) -> Path | None:
    # Lance names them by the distance to the largest number, so that the newest comes first.
    return min((folder / f"{name}.lance" / "_versions").glob("*.manifest"), default=None)


def _manifest(folder: Path, name: str, version: int) -> Path | None:
    # Tables of older versions of Lance count upwards.
    names = (f"{2**64 - 1 - version:020}.manifest", f"{version}.manifest")
    paths = [folder / f"{name}.lance" / "_versions" / known for known in names]
    return next((path for path in paths if path.is_file()), None)


def _has_size(path: Path, size: int | None) -> bool:
    try:
        found = path.stat().st_size
    except OSError:
        return False
    return found == size if size else found > 0


def _needed(content: bytes) -> Iterator[tuple[str, int | None]]:
    """Path and size (None: not recorded) of each file."""
    for field, value in _message_at(content, struct.unpack("<Q", content[-16:-8])[0]):
        if field == 2:
            yield from _of_fragment(_fields(value))
        elif field == 6:
            for _, index in _message_at(content, value):
                yield from _of_index(_fields(index))


def _of_fragment(fragment: _Fields) -> Iterator[tuple[str, int | None]]:
    number = dict(fragment).get(1, 0)
    for field, value in fragment:
        if field == 2:
            file = dict(_fields(value))
            yield f"data/{file[1].decode()}", file.get(6)
        elif field == 3:
            # Deleted rows: a list of numbers, or a bitmap.
            file = dict(_fields(value))
            ending = "bin" if file.get(1) else "arrow"
            yield f"_deletions/{number}-{file.get(2, 0)}-{file.get(3, 0)}.{ending}", None


def _of_index(index: _Fields) -> Iterator[tuple[str, int | None]]:
    folder = uuid.UUID(bytes=dict(_fields(dict(index)[1]))[1])
    for field, value in index:
        if field == 10:
            file = dict(_fields(value))
            yield f"_indices/{folder}/{file[1].decode()}", file.get(2)


def _message_at(content: bytes, position: int) -> _Fields:
    length = struct.unpack("<I", content[position : position + 4])[0]
    return _fields(content[position + 4 : position + 4 + length])


def _fields(message: bytes) -> _Fields:
    """The fields of a protobuf message in order: (number, value), nested messages and texts as bytes."""
    found: _Fields = []
    place = 0

    def number() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        field, kind = divmod(number(), 8)
        if kind == 0:
            found.append((field, number()))
            continue
        length = number() if kind == 2 else {1: 8, 5: 4}[kind]
        found.append((field, message[place : place + length]))
        place += length
    return found
