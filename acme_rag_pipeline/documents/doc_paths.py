"""How people write the path of a document, and how the store names it: POSIX, relative to the documents folder."""

from __future__ import annotations

import unicodedata
from collections.abc import Container


def plain_doc_path(written: str) -> str:
    """The path without `.` and empty parts, with `/` between the others: `.\\hr\\a.md`, `./hr//a.md` are `hr/a.md`."""
    parts = written.strip().replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def known_doc_path(written: str, documents: Container[str]) -> str | None:
    """The document that is meant, or None; a name that is exactly right is right, whatever it holds."""
    if written in documents:
        return written
    plain = plain_doc_path(written)
    # Names with accents have two spellings; macOS writes one, most others the other.
    spellings = (plain, *(unicodedata.normalize(form, plain) for form in ("NFC", "NFD")))
    return next((spelling for spelling in spellings if spelling in documents), None)
