"""Text files that people write by hand or save from a spreadsheet: UTF-8, and what to say where they are not."""

from __future__ import annotations

NOT_UTF8 = "not UTF-8: save the file as UTF-8 (in a spreadsheet as `CSV UTF-8`)"


def with_raw_bytes(data: bytes) -> str:
    """The text of UTF-8 with `\\n` for every line end, and lone surrogates for other bytes, which cost their lines only."""
    text = data.decode("utf-8-sig", "surrogateescape")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def holds_raw_bytes(text: str) -> bool:
    """Whether a text from `with_raw_bytes` holds bytes that are no UTF-8."""
    return any("\udc80" <= character <= "\udcff" for character in text)
