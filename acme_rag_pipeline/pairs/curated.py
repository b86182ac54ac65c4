"""The `curated_pairs` stage: people's (query, passage) pairs, resolved to the chunks of today."""

from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.quotes import QuotableText
from acme_rag_pipeline.store.stages import StageResult, data_versions, record, recorded
from acme_rag_pipeline.store.warehouse import Warehouse, reconcile

STAGE = "curated_pairs"
CODE_VERSION = "1"


@dataclass(frozen=True)
class CuratedPair:
    """One line of the user's file."""

    query: str
    doc_path: str
    quote: str | None
    start: int | None
    end: int | None
    negative: str | None

    @property
    def curated_id(self) -> str:
        """Content-addressed: equal lines are one pair."""
        return fingerprint(self.query, self.doc_path, self.quote, self.start, self.end, self.negative)


def read_curated_pairs(path: Path) -> tuple[list[CuratedPair], list[str]]:
    """Read a JSONL or CSV file of {query, doc_path, quote | start + end, negative?}.

    Returns:
        The pairs, and one sentence for each line that is none (the others are used).

    Raises:
        SettingsError: the file cannot be read at all.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"ACME_RAG_CURATED_PAIRS: {path} cannot be read: {error}") from error
    pairs: dict[str, CuratedPair] = {}
    problems: list[str] = []
    for number, raw in _raw_rows(path, text):
        pair = _checked(raw)
        if isinstance(pair, str):
            problems.append(f"line {number}: {pair}")
        else:
            pairs.setdefault(pair.curated_id, pair)
    return list(pairs.values()), problems


def _raw_rows(path: Path, text: str) -> list[tuple[int, Any]]:
    if path.suffix.lower() == ".csv":
        return [(number, row) for number, row in enumerate(csv.DictReader(text.splitlines()), start=2)]
    rows: list[tuple[int, Any]] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                rows.append((number, f"not JSON ({error})"))
    return rows


def _checked(raw: Any) -> CuratedPair | str:
    if isinstance(raw, str):
        return raw
    if not isinstance(raw, dict):
        return "not an object"
    query, doc_path, quote = (raw.get(name) or None for name in ("query", "doc_path", "quote"))
    if not isinstance(query, str) or not query.strip():
        return "no query"
    if not isinstance(doc_path, str):
        return "no doc_path"
    if quote is not None and not isinstance(quote, str):
        return "quote is not a text"
    negative = raw.get("negative") or None
    if negative is not None and not isinstance(negative, str):
        return "negative is not a text"
    try:
        start, end = (None if raw.get(n) in (None, "") else int(raw[n]) for n in ("start", "end"))
    except (TypeError, ValueError):
        return "start and end must be character positions"
    if quote is None and (start is None or end is None or not 0 <= start < end):
        return "neither a quote nor a span (start, end)"
    return CuratedPair(" ".join(query.split()), doc_path, quote, start, end, negative)


def resolve_curated_pairs(store: Store, settings: Settings) -> StageResult:
    """Bring `curated_pairs`, and its part of `pairs`, to the file and the chunks of today.

    Raises:
        SettingsError: the file cannot be read.
        UpstreamMissing: `chunks` has never run.
    """
    upstream = data_versions(store.warehouse, "chunks")
    pairs, problems = read_curated_pairs(settings.curated_pairs) if settings.curated_pairs else ([], [])
    made_from = fingerprint(STAGE, CODE_VERSION, upstream, sorted(p.curated_id for p in pairs), problems)
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None:
        return unchanged
    passages = live_passages(store.warehouse)
    by_document: dict[str, list[LivePassage]] = {}
    for passage in passages:
        by_document.setdefault(passage.doc_path, []).append(passage)
    texts = _Texts(store.warehouse)
    rows = [_resolved(pair, by_document, texts) for pair in pairs]
    # Two lines about one query and one chunk are one training pair.
    training = {row["pair_id"]: row for row in (_training_pair(r) for r in rows if r["chunk_id"])}
    data_version = content_hash(tuple(row.values()) for row in rows)
    details = {
        "file": settings.curated_pairs.name if settings.curated_pairs else "none",
        "pairs": len(rows),
        "resolved": sum(row["status"] == "resolved" for row in rows),
        "unresolved": [
            {"query": r["query"], "doc_path": r["doc_path"], "reason": r["reason"]} for r in rows if not r["chunk_id"]
        ][:200],
        "unusable_lines": problems[:200],
        "statuses": dict(sorted(Counter(row["status"] for row in rows).items())),
    }
    with store.writer(STAGE), store.warehouse.write() as connection:
        counts = reconcile(connection, "curated_pairs", "curated_id", rows)
        reconcile(connection, "pairs", "pair_id", list(training.values()), scope="origin = 'curated'")
        return record(connection, StageResult(STAGE, data_version, counts, details=details), made_from)


class _Texts:
    """Document texts prepared for finding quotes, each once."""

    def __init__(self, warehouse: Warehouse) -> None:
        with warehouse.read() as connection:
            self._texts = dict(
                connection.execute("SELECT doc_path, text FROM documents WHERE text IS NOT NULL").fetchall()
            )
        self._prepared: dict[str, QuotableText] = {}

    def get(self, doc_path: str) -> QuotableText | None:
        if doc_path in self._texts and doc_path not in self._prepared:
            self._prepared[doc_path] = QuotableText.of(self._texts[doc_path])
        return self._prepared.get(doc_path)


def _resolved(pair: CuratedPair, by_document: dict[str, list[LivePassage]], texts: _Texts) -> dict[str, Any]:
    row: dict[str, Any] = {
        "curated_id": pair.curated_id,
        "query": pair.query,
        "doc_path": pair.doc_path,
        "quote": pair.quote,
        "start_char": pair.start,
        "end_char": pair.end,
        "negative": pair.negative,
        "status": "unresolved",
        "reason": None,
        "chunk_id": None,
        "nearest_chunk_id": None,
    }
    text = texts.get(pair.doc_path)
    if text is None:
        return row | {"reason": f"{pair.doc_path} is not among the readable documents"}
    span = text.find(pair.quote, pair.start) if pair.quote else (pair.start, pair.end)
    chunks = by_document.get(pair.doc_path, [])
    if span is None:
        nearest = _most_similar(pair.quote or "", chunks)
        return row | {
            "reason": "the quote is not in the document any more",
            "nearest_chunk_id": nearest.chunk_id if nearest else None,
        }
    start, end = int(span[0] or 0), int(span[1] or 0)
    overlaps = [(min(end, c.end_char) - max(start, c.start_char), -c.start_char, c) for c in chunks]
    overlap, _, chunk = max(overlaps, key=lambda o: o[:2], default=(0, 0, None))
    if chunk is None or overlap <= 0:
        return row | {"reason": f"no chunk at characters {start} to {end}"}
    return row | {"status": "resolved", "start_char": start, "end_char": end, "chunk_id": chunk.chunk_id}


def _most_similar(quote: str, chunks: list[LivePassage]) -> LivePassage | None:
    from rapidfuzz import fuzz

    return max(chunks, key=lambda c: (fuzz.token_set_ratio(quote, c.text), c.chunk_id), default=None)


def _training_pair(row: dict[str, Any]) -> dict[str, Any]:
    words = row["query"].split()
    style = "question" if row["query"].endswith("?") or len(words) > 5 else "keywords"
    return {
        "pair_id": sha256_text(f"curated\0{row['query']}\0{row['chunk_id']}"),
        "query": row["query"],
        "chunk_id": row["chunk_id"],
        "origin": "curated",
        "style": style,
        "method": "curated",
        "generator": "people",
        "prompt_hash": None,
    }
