"""The `curated_pairs` stage: people's (query, passage) pairs, resolved to the chunks of today."""

from __future__ import annotations

from collections import Counter
from typing import Any

from acme_rag_pipeline.pairs.curated_formats import CuratedPair, read_curated_pairs
from acme_rag_pipeline.pairs.curated_places import Places
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.stages import StageResult, data_versions, overtaken, record, recorded, stored_detail
from acme_rag_pipeline.store.warehouse import insert, reconcile

STAGE = "curated_pairs"
CODE_VERSION = "4"
REJECTED = "rejected in review"
REPLACED = "replaced in review"


def resolve_curated_pairs(store: Store, settings: Settings) -> StageResult:
    """Bring `curated_pairs`, its part of `pairs`, and what a review rejected to the file and the chunks of today.

    Raises:
        SettingsError: the file cannot be read.
        UpstreamMissing: `chunks` has never run.
    """
    # Quotes are looked for in whole documents: front matter, for instance, is in no chunk.
    upstream = data_versions(store.warehouse, "documents", "chunks")
    pairs, problems = read_curated_pairs(settings.curated_pairs) if settings.curated_pairs else ([], [])
    made_from = fingerprint(STAGE, CODE_VERSION, upstream, sorted(p.curated_id for p in pairs), problems)
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None:
        return unchanged
    places = Places(store.warehouse, live_passages(store.warehouse))
    rows = [_resolved(pair, places) for pair in pairs if pair.verdict != "rejected"]
    # Two lines about one query and one chunk are one training pair.
    training = {row["pair_id"]: row for row in (_training_pair(r) for r in rows if r["chunk_id"])}
    negatives = _negatives(rows, places)
    rejected = _rejected(pairs, places)
    data_version = content_hash(tuple(row.values()) for row in (*rows, *negatives, *rejected))
    named = sum(row["negative"] is not None and row["chunk_id"] is not None for row in rows)
    details = {
        "source": fingerprint(sorted(pair.curated_id for pair in pairs)),
        "file": settings.curated_pairs.name if settings.curated_pairs else "none",
        "pairs": len(rows),
        "resolved": sum(row["status"] == "resolved" for row in rows),
        "unresolved": [
            {"query": r["query"], "doc_path": r["doc_path"], "reason": r["reason"]} for r in rows if not r["chunk_id"]
        ][:200],
        "unusable_lines": problems[:200],
        "statuses": dict(sorted(Counter(row["status"] for row in rows).items())),
        "rejected": sum(pair.verdict == "rejected" for pair in pairs),
        "negatives": {"named": named, "resolved": len(negatives)},
    }
    with store.writer(STAGE):
        if overtaken(store.warehouse, upstream):
            return resolve_curated_pairs(store, settings)
        with store.warehouse.write() as connection:
            counts = reconcile(connection, "curated_pairs", "curated_id", rows)
            insert(connection, "curated_seen", places.seen)
            reconcile(connection, "curated_negatives", "negative_id", negatives)
            reconcile(connection, "rejected_pairs", "rejection_id", rejected)
            reconcile(connection, "pairs", "pair_id", list(training.values()), scope="origin = 'curated'")
            return record(connection, StageResult(STAGE, data_version, counts, details=details), made_from)


def file_differs(store: Store, settings: Settings) -> bool:
    """Whether the file of curated pairs says something else than when it was last resolved.

    Raises:
        SettingsError: it cannot be read.
    """
    pairs, _ = read_curated_pairs(settings.curated_pairs) if settings.curated_pairs else ([], [])
    source = fingerprint(sorted(pair.curated_id for pair in pairs))
    return stored_detail(store.warehouse, STAGE, "source") not in (None, source)


def _resolved(pair: CuratedPair, places: Places) -> dict[str, Any]:
    row: dict[str, Any] = {
        "curated_id": pair.curated_id,
        "query": pair.query,
        "doc_path": pair.doc_path or "",
        "quote": pair.quote,
        "start_char": pair.start,
        "end_char": pair.end,
        "negative": pair.negative,
        "status": "unresolved",
        "reason": None,
        "chunk_id": None,
        "nearest_chunk_id": None,
    }
    doc_path, span, reason = _span(pair, places)
    place = places.at(doc_path, *span, pair.query) if doc_path is not None and span is not None else None
    if doc_path is None or span is None or place is None:
        if span is not None:
            reason = f"no chunk at characters {span[0]} to {span[1]}"
        elsewhere, nearest = _nearest(pair, places)
        return row | {"reason": f"{reason}; {elsewhere} has it" if elsewhere else reason, "nearest_chunk_id": nearest}
    found = {"doc_path": doc_path, "start_char": span[0], "end_char": span[1], "chunk_id": place.chunk.chunk_id}
    return row | found | {"status": "resolved"}


def _nearest(pair: CuratedPair, places: Places) -> tuple[str | None, str | None]:
    """The other document that has the quote of a pair that does not resolve, if one has, and the chunk to show.

    That is the quote's chunk there, else the one most like the quote; without a quote the one about the query.
    """
    doc_path = places.document(pair.doc_path or "")
    if pair.quote is None:
        found = places.about(pair.query, doc_path or "")
        return None, found.chunk_id if found else None
    moved = places.anywhere(pair.quote) if pair.doc_path is not None else None
    if moved is not None and moved[0] != doc_path and (place := places.at(*moved, pair.query)) is not None:
        return moved[0], place.chunk.chunk_id
    found = places.nearest(pair.quote, doc_path)
    return None, found.chunk_id if found else None


def _span(pair: CuratedPair, places: Places) -> tuple[str | None, tuple[int, int] | None, str]:
    """Document and span of the pair's passage, or why there is none."""
    if pair.doc_path is None:
        found = places.anywhere(pair.quote or "")
        if found is None:
            return None, None, "the quote is in none of the documents"
        return found[0], found[1:], ""
    doc_path = places.document(pair.doc_path)
    if doc_path is None:
        return None, None, f"{pair.doc_path} is not among the readable documents"
    if pair.quote is None:
        if not places.unchanged(pair.curated_id, doc_path):
            return None, None, "the document changed, and without a quote its span cannot be found again"
        return doc_path, (int(pair.start or 0), int(pair.end or 0)), ""
    span = places.span(doc_path, pair.quote, pair.start)
    return doc_path, span, "the quote is not in the document any more"


def _training_pair(row: dict[str, Any]) -> dict[str, Any]:
    words = row["query"].split()
    style = "question" if row["query"].endswith("?") or len(words) > 5 else "keywords"
    return {
        "pair_id": _pair_id(row),
        "query": row["query"],
        "chunk_id": row["chunk_id"],
        "origin": "curated",
        "style": style,
        "method": "curated",
        "generator": "people",
        "prompt_hash": None,
    }


def _pair_id(row: dict[str, Any]) -> str:
    return sha256_text(f"curated\0{row['query']}\0{row['chunk_id']}")


def _negatives(rows: list[dict[str, Any]], places: Places) -> list[dict[str, Any]]:
    """The chunks of the passages that people named as wrong for a query; what is found nowhere is left out."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["chunk_id"] is None or row["negative"] is None:
            continue
        doc_path, span = row["doc_path"], places.span(row["doc_path"], row["negative"])
        if span is None and (elsewhere := places.anywhere(row["negative"])) is not None:
            doc_path, span = elsewhere[0], elsewhere[1:]
        place = places.at(doc_path, *span, row["query"]) if span else None
        if place is not None and place.chunk.chunk_id != row["chunk_id"]:
            pair_id, chunk_id = _pair_id(row), place.chunk.chunk_id
            negative_id = sha256_text(f"{pair_id}\0{chunk_id}")
            found[negative_id] = {"negative_id": negative_id, "pair_id": pair_id, "chunk_id": chunk_id}
    return list(found.values())


def _rejected(pairs: list[CuratedPair], places: Places) -> list[dict[str, Any]]:
    """What a review took out of a generator's pairs: rejected pairs, and wordings that a reviewer replaced."""
    rows: dict[str, dict[str, Any]] = {}
    for pair in pairs:
        out = [(pair.query, REJECTED)] if pair.verdict == "rejected" else []
        out += [(pair.replaces, REPLACED)] if pair.replaces else []
        if not out:
            continue
        doc_path, span, _ = _span(pair, places)
        for query, reason in out:
            place = places.at(doc_path, *span, query) if doc_path is not None and span is not None else None
            rejection_id = sha256_text(f"{reason}\0{query}\0{pair.curated_id}")
            rows[rejection_id] = {
                "rejection_id": rejection_id,
                "query": query,
                "doc_path": doc_path or pair.doc_path or "",
                "chunk_id": place.chunk.chunk_id if place else None,
                "reason": reason,
            }
    return list(rows.values())
