"""How people write the path of a document, and how the store names it: POSIX, relative to the documents folder."""

from __future__ import annotations

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
    return plain if plain in documents else None
