"""Judged queries as people and other programs write them: `queries.jsonl` and `qrels.jsonl`; a bad line costs that line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeGuard

from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.store.text_files import NOT_UTF8, holds_raw_bytes, with_raw_bytes

# Graded judgements go to 3 or 4 as a rule; a gain of 2 ** relevance must stay a number.
MOST_RELEVANT = 100


def read_golden(folder: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]], list[str]]:
    """Read a judged set.

    Returns:
        Queries by id, judgements in file order without repetitions, and a sentence for each line that is not used.

    Raises:
        SettingsError: a file is missing or not readable text.
    """
    queries: dict[str, dict[str, Any]] = {}
    qrels: list[dict[str, Any]] = []
    problems: list[str] = []
    for where, row in _lines(folder / "queries.jsonl", problems):
        query_id, query, style = _name(row.get("query_id")), row.get("query"), row.get("style")
        if query_id is None or not _is_text(query) or not query.strip():
            problems.append(f"{where}: needs query_id and query")
        elif query_id in queries:
            problems.append(f"{where}: query_id {query_id} is there twice, the first one is used")
        elif style is not None and not _is_text(style):
            problems.append(f"{where}: style is not a text")
        else:
            queries[query_id] = {"query": " ".join(query.split()), "style": style}
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for where, row in _lines(folder / "qrels.jsonl", problems):
        span = (row.get("start"), row.get("end"))
        relevance = row.get("relevance", 1)
        query_id = _name(row.get("query_id"))
        if query_id not in queries or not _is_text(row.get("doc_path")):
            problems.append(f"{where}: needs the query_id of a query, and doc_path")
        elif any(row.get(name) is not None and not _is_text(row[name]) for name in ("quote", "sha256")):
            problems.append(f"{where}: quote and sha256 must be texts")
        elif not _is_span(*span):
            problems.append(f"{where}: start and end must be character positions, start before end")
        elif type(relevance) not in (int, float) or not 0 <= relevance <= MOST_RELEVANT or relevance != int(relevance):
            problems.append(f"{where}: relevance must be a whole number from 0 to {MOST_RELEVANT}")
        else:
            names = ("doc_path", "start", "end", "quote", "sha256")
            qrel = {"query_id": query_id} | {n: row.get(n) for n in names} | {"relevance": int(relevance)}
            # Each is a piece of evidence to the metrics: twice the same would count a single hit as two.
            known = first.setdefault((query_id, row["doc_path"], *span, row.get("quote") or None), qrel)
            if known is qrel:
                qrels.append(qrel)
            else:
                known["relevance"] = max(known["relevance"], qrel["relevance"])
                problems.append(f"{where}: this judgement of {query_id} is there twice, the larger relevance is used")
    return queries, qrels, problems


def _name(value: Any) -> str | None:
    """An id as a text; other programs write numbers."""
    if type(value) is int:
        return str(value)
    return value if _is_text(value) else None


def _is_text(value: Any) -> TypeGuard[str]:
    """A text that can be stored: half a character (a lone surrogate) cannot."""
    return isinstance(value, str) and not any("\ud800" <= character <= "\udfff" for character in value)


def _is_span(start: Any, end: Any) -> bool:
    if start is None and end is None:
        return True
    return type(start) is int and type(end) is int and 0 <= start < end < 2**31


def _lines(path: Path, problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    try:
        text = with_raw_bytes(path.read_bytes())
    except OSError as error:
        raise SettingsError(f"ACME_RAG_GOLDEN: {path} cannot be read: {error}") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path.name} line {number}"
        if holds_raw_bytes(line):
            problems.append(f"{where}: {NOT_UTF8}")
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"{where}: not JSON ({error})")
            continue
        if isinstance(row, dict):
            rows.append((where, row))
        else:
            problems.append(f"{where}: not an object")
    return rows
