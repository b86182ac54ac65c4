"""A review as a file: JSON Lines, or a table for a spreadsheet; what was written is read back as the same."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from acme_rag_pipeline.pairs.curated_file import Line, ReviewUnusable
from acme_rag_pipeline.pairs.curated_formats import as_verdict, raw_rows
from acme_rag_pipeline.settings import SettingsError

VARIABLE = "ACME_RAG_CURATED_PAIRS"
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
# Files without an ending are pipes and devices.
_LINES = (".jsonl", ".ndjson", "")
# A person fills these in, beside the query that they are about.
_FIRST = ("query", "verdict", "edited_query")
# A spreadsheet takes a cell that begins so for a formula, which may run programs. In full width in some countries, too.
_FORMULA = re.compile(r"[\s']*[=+\-@＝＋－＠]")


def check_ending(path: Path) -> None:
    """Refuse a name whose ending is none of a review's.

    Raises:
        ReviewUnusable: it is not.
    """
    if path.suffix.lower() not in (*_LINES, *_DELIMITERS):
        raise ReviewUnusable(
            f"{path}: a review ends in .jsonl, .csv or .tsv (a spreadsheet saves it as `CSV UTF-8`), not in {path.suffix}"
        )


def in_form(rows: Sequence[Line], path: Path | None = None) -> str:
    """The rows as the ending of a name says; without a name JSON Lines."""
    delimiter = _DELIMITERS.get(path.suffix.lower()) if path else None
    if delimiter is None:
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    known = list(rows[0]) if rows else ["query"]
    columns = [*(name for name in _FIRST if name in known), *(name for name in known if name not in _FIRST)]
    written = io.StringIO()
    writer = csv.DictWriter(written, columns, delimiter=delimiter, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    writer.writerows({name: _guarded(value) for name, value in row.items()} for row in rows)
    # The mark, without which Excel takes UTF-8 for the encoding of its country.
    return f"\ufeff{written.getvalue()}"


def reviewed_rows(path: Path) -> Iterator[tuple[str, Line]]:
    """Each row of a reviewed file with the place it stands at.

    Raises:
        ReviewUnusable: the file, or a row of it, cannot be read.
    """
    check_ending(path)
    try:
        rows = list(raw_rows(path))
    except SettingsError as error:
        raise ReviewUnusable(str(error).removeprefix(f"{VARIABLE}: ")) from error
    for where, row in rows:
        if not isinstance(row, dict):
            raise ReviewUnusable(f"{path.name} {where}: {row if isinstance(row, str) else 'not an object'}")
        is_table = path.suffix.lower() in _DELIMITERS
        yield where, {name: _as_exported(value) for name, value in row.items()} if is_table else row


def holds_verdicts(file: Path) -> bool:
    """Whether somebody has judged in a file, in any form that an import reads; what cannot be read may hold verdicts."""
    if not file.is_file():
        return False
    try:
        rows = [row for _, row in raw_rows(file)]
    except SettingsError:
        return True
    return any(isinstance(row, dict) and (as_verdict(row.get("verdict")) or row.get("edited_query")) for row in rows)


def _guarded(value: Any) -> Any:
    """A cell that no spreadsheet takes for a formula; `_as_exported` gives its text back, whatever it is."""
    return f"'{value}" if isinstance(value, str) and _FORMULA.match(value) else value


def _as_exported(cell: Any) -> Any:
    return cell[1:] if isinstance(cell, str) and cell.startswith("'") and _FORMULA.match(cell) else cell
