"""Text files that people write by hand or save from a spreadsheet: UTF-8, and what to say where they are not."""

from __future__ import annotations

NOT_UTF8 = "not UTF-8: save the file as UTF-8 (in a spreadsheet as `CSV UTF-8`)"


def holds_raw_bytes(text: str) -> bool:
    """Whether a text that was decoded with `surrogateescape` holds bytes that are no UTF-8."""
    return any("\udc80" <= character <= "\udcff" for character in text)
