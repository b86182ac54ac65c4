"""Where the evidence of golden queries lies in the documents of today."""

from __future__ import annotations

from collections import Counter
from typing import Any

from acme_rag_pipeline.documents.doc_paths import known_doc_path, plain_doc_path
from acme_rag_pipeline.pairs.curated_places import WORDS_OF_A_QUOTE, span_key
from acme_rag_pipeline.pairs.plain_text import words
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.quotes import QuotableText
from acme_rag_pipeline.store.warehouse import records


def style_of(query: str) -> str:
    """The style of a query that does not say its own."""
    if query.rstrip().endswith("?"):
        return "question"
    return "keywords" if len(query.split()) <= 6 else "situation"


def resolved(
    store: Store, queries: dict[str, dict[str, Any]], qrels: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows of `golden_queries`, of `golden_judgements` and the new ones of `golden_seen`."""
    with store.warehouse.read() as connection:
        readable = records(connection, "SELECT doc_path, sha256, text FROM documents WHERE text IS NOT NULL")
        unreadable = records(connection, "SELECT doc_path FROM documents WHERE status = 'unreadable' AND text IS NULL")
        seen = dict(connection.execute("SELECT judgement_id, sha256 FROM golden_seen").fetchall())
    documents = {row["doc_path"]: row for row in readable}
    texts = _Texts({path: row["text"] for path, row in documents.items()}, {row["doc_path"] for row in unreadable})
    chunks: dict[str, list[LivePassage]] = {}
    for passage in live_passages(store.warehouse):
        chunks.setdefault(passage.doc_path, []).append(passage)
    judgements: list[dict[str, Any]] = []
    first_seen: list[dict[str, Any]] = []
    units: dict[str, tuple[str, str]] = {}
    places: dict[tuple[Any, ...], dict[str, Any]] = {}
    ordinals: Counter[str] = Counter()
    for qrel in qrels:
        named = known_doc_path(qrel["doc_path"], documents) or plain_doc_path(qrel["doc_path"])
        path = named if named in documents else texts.followed(qrel) or named
        document = documents.get(path)
        judgement_id = fingerprint(qrel)
        status, span = "unresolved", None
        reason: str | None = f"{path} is not among the readable documents"
        if document is not None:
            # A span without a quote is known by its place, whatever else its line says or stands beside it.
            by_place = qrel["start"] is not None and not qrel["quote"]
            key = span_key(path, qrel["start"], qrel["end"]) if by_place else judgement_id
            # Earlier versions kept all of them by what the line says, and by its place among those of its query.
            earlier = fingerprint(qrel, ordinals[qrel["query_id"]])
            first = seen.get(key) or seen.get(earlier) or document["sha256"]
            span, reason = _span(qrel, texts.of(path), document["sha256"], qrel["sha256"] or first)
            status = "resolved" if reason is None else "unresolved"
            if path != named and reason is None:
                reason = f"moved: {qrel['doc_path']} is gone, and {path} has the quote"
            if key not in seen:
                seen[key] = first
                first_seen.append({"judgement_id": key, "sha256": first})
        judgement = {
            "judgement_id": judgement_id,
            "query_id": qrel["query_id"],
            "ordinal": ordinals[qrel["query_id"]],
            "doc_path": path,
            "moved_from": named if path != named else None,
            "start_char": span[0] if span else None,
            "end_char": span[1] if span else None,
            "quote": qrel["quote"],
            "relevance": qrel["relevance"],
            "status": status,
            "reason": reason,
        }
        judgements.append(judgement)
        ordinals[qrel["query_id"]] += 1
        if status == "resolved":
            # Two quotes may be one place of the document, and the metrics would count a single hit as two.
            other = places.setdefault((qrel["query_id"], path, span), judgement)
            if other is not judgement:
                other["relevance"] = max(other["relevance"], qrel["relevance"])
                judgement |= {"status": "repeated", "reason": f"the same place of {path} is judged twice"}
            if qrel["relevance"] > 0:
                units.setdefault(qrel["query_id"], (path, _unit(path, span, chunks.get(path, []))))
    # A document that a question is about as a whole is no other unit than its sections.
    whole = {path for path, unit in units.values() if path == unit}
    unit_of = {query_id: path if path in whole else unit for query_id, (path, unit) in units.items()}
    without = dict.fromkeys(ordinals, "no judgement of it has a relevance above 0")
    reasons = without | {j["query_id"]: j["reason"] for j in reversed(judgements) if j["status"] == "unresolved"}
    rows = [
        {
            "query_id": query_id,
            "query": row["query"],
            "style": row["style"] if isinstance(row["style"], str) and row["style"] else style_of(row["query"]),
            "unit": unit_of.get(query_id),
            "status": "resolved" if query_id in unit_of else "unresolved",
            "reason": None if query_id in unit_of else reasons.get(query_id, "no judgement names it"),
        }
        for query_id, row in queries.items()
    ]
    return rows, judgements, first_seen


class _Texts:
    """The documents of today, prepared for finding quotes when they are first looked into."""

    def __init__(self, texts: dict[str, str], unreadable: set[str]) -> None:
        self._texts = texts
        self._unreadable = unreadable
        self._prepared: dict[str, QuotableText] = {}

    def of(self, path: str) -> QuotableText:
        """A readable document."""
        if path not in self._prepared:
            self._prepared[path] = QuotableText.of(self._texts[path])
        return self._prepared[path]

    def followed(self, qrel: dict[str, Any]) -> str | None:
        """The only document that has the quote of one that is gone word for word."""
        quote = qrel["quote"] or ""
        if len(words(quote)) < WORDS_OF_A_QUOTE or known_doc_path(qrel["doc_path"], self._unreadable):
            return None
        found = [path for path in sorted(self._texts) if self.of(path).find_all(quote, 1)]
        return found[0] if len(found) == 1 else None


def _span(
    qrel: dict[str, Any], text: QuotableText, sha256: str, expected: str
) -> tuple[tuple[int, int] | None, str | None]:
    """The evidence's span today (None: the whole document), and why there is none."""
    if qrel["quote"]:
        span = text.find(qrel["quote"], qrel["start"])
        return span, None if span else "the quote is not in the document any more"
    if qrel["start"] is None:
        return None, None
    if expected != sha256:
        return None, "the document changed, and without a quote its span cannot be found again"
    if qrel["end"] > len(text.text):
        return None, f"the span ends at {qrel['end']}, the document at {len(text.text)}"
    return (qrel["start"], qrel["end"]), None


def _unit(doc_path: str, span: tuple[int, int] | None, chunks: list[LivePassage]) -> str:
    if span is None:
        return doc_path
    overlaps = [(min(span[1], c.end_char) - max(span[0], c.start_char), -c.start_char, c.unit) for c in chunks]
    return max(overlaps, default=(0, 0, doc_path))[2]
