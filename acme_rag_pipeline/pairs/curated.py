"""The `curated_pairs` stage: people's (query, passage) pairs, resolved to the chunks of today."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from acme_rag_pipeline.pairs.curated_formats import CuratedPair, read_curated_pairs
from acme_rag_pipeline.pairs.curated_places import WORDS_OF_A_QUOTE, Place, Places, Quoted
from acme_rag_pipeline.pairs.plain_text import words
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.retrained_files import differs_from_retrained
from acme_rag_pipeline.store.stages import StageResult, data_versions, overtaken, record, recorded
from acme_rag_pipeline.store.warehouse import insert, reconcile

STAGE = "curated_pairs"
CODE_VERSION = "9"
REJECTED = "rejected in review"
REPLACED = "replaced in review"
_SHOWN = 200


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
    rejected, lost_rejections, moved_rejections = _rejected(pairs, places)
    rows, ambiguous = _pair_rows(pairs, places, rejected)
    resolved = [row for row in rows if row["status"] == "resolved"]
    moved = [*_said(row for row in resolved if row["reason"]), *moved_rejections]
    # Two lines about one query and one chunk are one training pair.
    training = {row["pair_id"]: row for row in map(_training_pair, resolved)}
    negatives, lost_negatives = _negatives(resolved, places)
    data_version = content_hash(tuple(row.values()) for row in (*rows, *negatives, *rejected))
    details = {
        "source": _source(pairs),
        SETTINGS_KEY: settings_key(),
        "file": settings.curated_pairs.name if settings.curated_pairs else "none",
        "pairs": len(rows),
        "resolved": len(resolved),
        "unresolved": [*_said(row for row in rows if row["status"] == "unresolved"), *lost_rejections][:_SHOWN],
        "moved": moved[:_SHOWN],
        "ambiguous": ambiguous[:_SHOWN],
        "unusable_lines": problems[:_SHOWN],
        "counted": {
            "unusable_lines": len(problems),
            "ambiguous": len(ambiguous),
            "moved": len(moved),
            "negatives_not_found": len(lost_negatives),
        },
        "statuses": dict(sorted(Counter(row["status"] for row in rows).items())),
        "rejected": sum(pair.verdict == "rejected" for pair in pairs),
        "negatives": {"named": sum(len(row["negatives"]) for row in resolved), "resolved": len(negatives)},
        "negatives_not_found": lost_negatives[:_SHOWN],
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


def settings_key() -> str:
    """Hash of the code that resolves given pairs."""
    return fingerprint(CODE_VERSION)


def file_differs(store: Store, settings: Settings) -> bool:
    """Whether the file of curated pairs says something else than when the last retrain dealt with it.

    Raises:
        SettingsError: it cannot be read.
    """
    pairs, _ = read_curated_pairs(settings.curated_pairs) if settings.curated_pairs else ([], [])
    return differs_from_retrained(store.warehouse, STAGE, _source(pairs))


def _source(pairs: Iterable[CuratedPair]) -> str:
    return fingerprint(sorted(pair.curated_id for pair in pairs))


@dataclass(frozen=True, slots=True)
class _Passage:
    """What a pair's passage was resolved to; without a place the reason says why, and where it moved, from where."""

    doc_path: str | None
    span: tuple[int, int] | None
    place: Place | None
    reason: str = ""
    ambiguous: bool = False
    moved: bool = False


def _pair_rows(
    pairs: list[CuratedPair], places: Places, rejected: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `curated_pairs`, and what to say about those whose quote stands in several passages."""
    # A review shows lines about one query and one chunk as the one pair that they are, and rejects or replaces all of them.
    wordings: dict[tuple[str, str, str], set[str]] = {}
    for row in rejected:
        if row["chunk_id"]:
            about = (query_key(row["query"]), row["chunk_id"])
            wordings.setdefault((row["reason"], *about), set()).add(row["query"])
    rows: list[dict[str, Any]] = []
    ambiguous: list[dict[str, Any]] = []
    for pair in pairs:
        if pair.verdict == "rejected":
            continue
        passage = _passage(pair, pair.query, places)
        row = _resolved(pair, passage, places)
        about = (query_key(pair.query), row["chunk_id"] or "")
        out, replaced = (wordings.get((reason, *about), set()) for reason in (REJECTED, REPLACED))
        # Of two wordings that count as one a review may keep one and reject the other.
        if pair.query in out or (out and pair.verdict is None):
            row |= {"status": "rejected", "reason": "another line rejects this query for this passage"}
        elif pair.query in replaced and pair.query != pair.replaces and pair.verdict is None:
            row |= {"status": "rejected", "reason": "another line replaces this wording for this passage"}
        elif passage.ambiguous and passage.place is not None:
            several = "the quote stands in several passages, and the query does not tell which is meant"
            ambiguous += _said([row | {"reason": several}])
        rows.append(row)
    return rows, ambiguous


def _said(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"query": row["query"], "doc_path": row["doc_path"], "reason": row["reason"]} for row in rows]


def _resolved(pair: CuratedPair, passage: _Passage, places: Places) -> dict[str, Any]:
    row: dict[str, Any] = {
        "curated_id": pair.curated_id,
        "query": pair.query,
        "doc_path": pair.doc_path or "",
        "quote": pair.quote,
        "start_char": pair.start,
        "end_char": pair.end,
        "negative": next(iter(pair.negatives), None),
        "negatives": list(pair.negatives),
        "sha256": pair.sha256,
        "status": "unresolved",
        "reason": None,
        "chunk_id": None,
        "nearest_chunk_id": None,
    }
    if passage.place is None or passage.span is None:
        elsewhere, nearest = _nearest(pair, passage, places)
        reason = f"{passage.reason}; {elsewhere} has it" if elsewhere else passage.reason
        return row | {"reason": reason, "nearest_chunk_id": nearest}
    start, end = passage.span
    found = {"doc_path": passage.doc_path, "start_char": start, "end_char": end}
    found["reason"] = passage.reason if passage.moved else None
    return row | found | {"chunk_id": passage.place.chunk.chunk_id, "status": "resolved"}


def _nearest(pair: CuratedPair, passage: _Passage, places: Places) -> tuple[str | None, str | None]:
    """The other document that has the quote of a pair that does not resolve, if one has, and the chunk to show.

    That is the quote's chunk there, else the one most like the quote; without a quote the one about the query.
    """
    doc_path = places.document(pair.doc_path or "")
    if pair.quote is None:
        found = places.about(pair.query, doc_path or "")
        return None, found.chunk_id if found else None
    missed = pair.doc_path is not None and not passage.ambiguous
    moved = places.anywhere(pair.quote, pair.query) if missed else None
    if moved is not None and moved.doc_path != doc_path:
        place = places.at(moved.doc_path, moved.start, moved.end, pair.query)
        if place is not None:
            return moved.doc_path, place.chunk.chunk_id
    found = places.nearest(pair.quote, doc_path)
    return None, found.chunk_id if found else None


def _passage(pair: CuratedPair, query: str, places: Places) -> _Passage:
    """Where the passage of the pair stands for a query: its own, or one that it replaces."""
    if pair.quote is None:
        return _passage_of_span(pair, query, places)
    if pair.doc_path is None:
        found = places.anywhere(pair.quote, query)
        return _quoted(found, pair.quote, query, places, "the quote is in none of the documents")
    doc_path = places.document(pair.doc_path)
    if doc_path is None:
        return _followed(pair, pair.quote, query, places)
    found = places.verbatim(pair.quote, query, doc_path, pair.start)
    # A passage that is like the quote is another one where the quote itself stands somewhere else.
    if found is None and _moved(pair.quote, query, places) is None:
        found = places.similar(pair.quote, doc_path, pair.start)
    passage = _quoted(found, pair.quote, query, places, "the quote is not in the document any more")
    return replace(passage, doc_path=doc_path)


def _followed(pair: CuratedPair, quote: str, query: str, places: Places) -> _Passage:
    """The passage of a document that is gone, where another one has it now: the file was renamed, or parts of it moved."""
    missing = _Passage(None, None, None, f"{pair.doc_path} is not among the readable documents")
    if not places.gone(pair.doc_path or "") or len(words(quote)) < WORDS_OF_A_QUOTE:
        return missing
    found = places.followed(quote, query)
    if found is None:
        return missing
    if found.ambiguous:
        return replace(missing, reason=f"{missing.reason}, and the quote stands in several passages")
    passage = _at(found.doc_path, (found.start, found.end), query, places)
    return _as_moved(pair, passage) if passage.place else missing


def _as_moved(pair: CuratedPair, passage: _Passage) -> _Passage:
    return replace(
        passage, moved=True, reason=f"moved: {pair.doc_path} is gone, and {passage.doc_path} has its passage"
    )


def _moved(quote: str, query: str, places: Places) -> _Passage | None:
    """The passage that holds a quote word for word which its own document does not hold."""
    found = places.verbatim(quote, query)
    passage = _quoted(found, quote, query, places) if found else None
    return passage if passage and passage.place else None


def _quoted(found: Quoted | None, quote: str, query: str, places: Places, missing: str = "") -> _Passage:
    if found is None:
        return _Passage(None, None, None, missing)
    span = (found.start, found.end)
    if found.ambiguous and len(words(quote)) < WORDS_OF_A_QUOTE:
        reason = f"the quote has fewer than {WORDS_OF_A_QUOTE} words and stands in several passages: quote more of it"
        return _Passage(None, span, None, reason, ambiguous=True)
    return _at(found.doc_path, span, query, places, ambiguous=found.ambiguous)


def _passage_of_span(pair: CuratedPair, query: str, places: Places) -> _Passage:
    doc_path = places.document(pair.doc_path or "")
    start, end = int(pair.start or 0), int(pair.end or 0)
    if doc_path is None:
        renamed = places.of_file(pair.sha256) if pair.sha256 and places.gone(pair.doc_path or "") else None
        if renamed is not None and (passage := _at(renamed, (start, end), query, places)).place:
            return _as_moved(pair, passage)
        return _Passage(None, None, None, f"{pair.doc_path} is not among the readable documents")
    if pair.sha256 is not None and not places.is_file(doc_path, pair.sha256):
        reason = "the document is not the file of its sha256, and without a quote its span cannot be found again"
        return _Passage(doc_path, None, None, reason)
    # Before anything is remembered of it: it never held for this document.
    if end > places.length(doc_path):
        reason = f"the span ends after the document ({places.length(doc_path)} characters)"
        return _Passage(doc_path, None, None, reason)
    # A line that says which file it is about needs no history.
    if pair.sha256 is None and not places.unchanged(pair.curated_id, doc_path, start, end):
        reason = "the document changed, and without a quote its span cannot be found again"
        return _Passage(doc_path, None, None, reason)
    return _at(doc_path, (start, end), query, places)


def _at(doc_path: str, span: tuple[int, int], query: str, places: Places, *, ambiguous: bool = False) -> _Passage:
    place = places.at(doc_path, *span, query)
    return _Passage(doc_path, span, place, f"no chunk at characters {span[0]} to {span[1]}", ambiguous)


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


def _negatives(resolved: list[dict[str, Any]], places: Places) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The chunks of the passages that people named as wrong for a query, and those of which there is none, and why."""
    found: dict[str, dict[str, Any]] = {}
    lost: list[dict[str, Any]] = []
    for row, negative in [(pair, text) for pair in resolved for text in pair["negatives"]]:
        place = places.negative(negative, row["query"], row["doc_path"], row["chunk_id"])
        if place is None or place.chunk.chunk_id == row["chunk_id"]:
            reason = "it is the pair's own passage" if place else "it is in none of the documents"
            named = {"query": row["query"], "doc_path": row["doc_path"], "negative": negative}
            lost.append(named | {"reason": reason})
        else:
            pair_id, chunk_id = _pair_id(row), place.chunk.chunk_id
            negative_id = sha256_text(f"{pair_id}\0{chunk_id}")
            found[negative_id] = {"negative_id": negative_id, "pair_id": pair_id, "chunk_id": chunk_id}
    return list(found.values()), lost


def _rejected(
    pairs: list[CuratedPair], places: Places
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """What a review took out of a generator's pairs, which rejected pairs stand nowhere any more, and which moved, and why.

    Those are rejected pairs, and wordings that a reviewer replaced; without a chunk they count in their whole document.
    """
    rows: dict[str, dict[str, Any]] = {}
    lost: list[dict[str, Any]] = []
    moved: list[dict[str, Any]] = []
    for pair in pairs:
        out = [(pair.query, REJECTED)] if pair.verdict == "rejected" else []
        out += [(pair.replaces, REPLACED)] if pair.replaces else []
        for query, reason in out:
            for number, passage in enumerate(_passages_of_a_rejection(pair, query, places)):
                rejection_id = sha256_text(f"{reason}\0{query}\0{pair.curated_id}" + (f"\0{number}" if number else ""))
                rows[rejection_id] = {
                    "rejection_id": rejection_id,
                    "query": query,
                    "doc_path": passage.doc_path or pair.doc_path or "",
                    "chunk_id": passage.place.chunk.chunk_id if passage.place else None,
                    "reason": reason,
                }
                # An edited pair whose passage is gone is named itself.
                if passage.place is None and reason == REJECTED:
                    lost += _said([rows[rejection_id] | {"reason": f"{reason}; {passage.reason}"}])
                if passage.moved and reason == REJECTED:
                    moved += _said([rows[rejection_id] | {"reason": f"{reason}; {passage.reason}"}])
    return list(rows.values()), lost, moved


def _passages_of_a_rejection(pair: CuratedPair, query: str, places: Places) -> list[_Passage]:
    """Its passage; where that moved to another document (a rename, for instance) that one, and what is like it in its own."""
    passage = _passage(pair, query, places)
    moved = _moved(pair.quote, query, places) if pair.quote and pair.doc_path and passage.place is None else None
    if pair.quote is None or moved is None or passage.ambiguous:
        return [passage]
    doc_path = places.document(pair.doc_path or "")
    alike = places.similar(pair.quote, doc_path, pair.start) if doc_path else None
    left = _quoted(alike, pair.quote, query, places)
    return [moved, *([left] if left.place else [])]
