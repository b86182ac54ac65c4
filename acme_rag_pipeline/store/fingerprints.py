"""Content hashes: the one way in which inputs, configuration and code become a fingerprint."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel


def sha256_text(text: str) -> str:
    """Hex sha256 of a string; lone surrogates are hashed too instead of raising."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def normalised(text: str) -> str:
    """The form in which two texts count as equal: NFC, every run of whitespace one space."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def fingerprint(*parts: Any) -> str:
    """Hex sha256 of the canonical JSON of the parts; pydantic models and paths are allowed inside."""
    return sha256_text(json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain))


def content_hash(rows: Iterable[Iterable[Any]]) -> str:
    """Hex sha256 of a table's rows in a canonical order: equal for equal content, whatever the history."""
    digest = hashlib.sha256()
    # `json.dumps` with options makes an encoder for each row.
    encoded = json.JSONEncoder(ensure_ascii=False, default=_plain).encode
    for line in sorted(encoded(list(row)) for row in rows):
        digest.update(line.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} cannot be part of a fingerprint")
