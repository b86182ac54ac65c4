"""The `golden_queries` stage: people's judged queries, resolved to the documents of today."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acme_rag_pipeline.documents.doc_paths import known_doc_path, plain_doc_path
from acme_rag_pipeline.evaluation.golden_files import read_golden
from acme_rag_pipeline.evaluation.metrics import Evidence
from acme_rag_pipeline.evaluation.words import counted
from acme_rag_pipeline.llm.text import one_line
from acme_rag_pipeline.pairs.curated_places import span_key
from acme_rag_pipeline.pairs.plain_text import words
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.setting_groups import EvaluationSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.quotes import QuotableText
from acme_rag_pipeline.store.retrained_files import differs_from_retrained
from acme_rag_pipeline.store.stages import StageResult, data_versions, overtaken, record, recorded, stored_detail
from acme_rag_pipeline.store.warehouse import insert, reconcile, records

STAGE = "golden_queries"
CODE_VERSION = "11"
_LONGEST_QUOTED = 200
# Fewer may stand anywhere.
_WORDS_OF_A_QUOTE = 3


@dataclass(frozen=True)
class JudgedQuery:
    """A query with the evidence that answers it, as the evaluation uses it.

    Attributes:
        unit: the resampling unit of its first evidence.
        segments: kind of segment to value (style, folder, origin).
    """

    query_id: str
    query: str
    evidence: tuple[Evidence, ...]
    unit: str
    segments: dict[str, str]


def resolve_golden_queries(store: Store, settings: Settings) -> StageResult:
    """Bring `golden_queries` and `golden_judgements` to the files and the documents of today.

    Raises:
        SettingsError: `queries.jsonl` or `qrels.jsonl` cannot be read.
        UpstreamMissing: `chunks` has never run.
    """
    upstream = data_versions(store.warehouse, "documents", "chunks")
    queries, qrels, problems = read_golden(settings.golden) if settings.golden else ({}, [], [])
    made_from = fingerprint(STAGE, CODE_VERSION, upstream, queries, qrels, problems, settings.evaluation)
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None:
        return unchanged
    query_rows, judgement_rows, seen = _resolved(store, queries, qrels)
    data_version = content_hash((*r.values(),) for r in [*query_rows, *judgement_rows])
    usable = [row for row in query_rows if row["status"] == "resolved"]
    # Listed twice under two ids, a question is no second piece of evidence.
    wordings = len({query_key(row["query"]) for row in usable})
    details = {
        "source": fingerprint(queries, qrels),
        SETTINGS_KEY: _key(settings, bool(queries)),
        "chunks_version": upstream["chunks"],
        "queries": len(query_rows),
        "resolved": len(usable),
        "repeated_wordings": len(usable) - wordings,
        "units": len({row["unit"] for row in usable}),
        "documents": len({r["doc_path"] for r in judgement_rows if r["status"] == "resolved"}),
        "unresolved": [{"query": r["query"], "reason": r["reason"]} for r in query_rows if r["status"] != "resolved"][
            :200
        ],
        "moved": [
            {"query": queries[r["query_id"]]["query"], "reason": r["reason"]}
            for r in judgement_rows
            if r["status"] == "resolved" and r["reason"] and r["query_id"] in queries
        ][:200],
        "unused_evidence": _unused_evidence(query_rows, judgement_rows, "unresolved", "repeated")[:200],
        "unusable_lines": problems[:200],
        "counted": {"unusable_lines": len(problems)},
        "by_style": dict(Counter(row["style"] for row in usable).most_common()),
        "decides": decides(wordings, len({row["unit"] for row in usable}), settings.evaluation),
    }
    with store.writer(STAGE):
        if overtaken(store.warehouse, upstream):
            return resolve_golden_queries(store, settings)
        with store.warehouse.write() as connection:
            counts = reconcile(connection, "golden_queries", "query_id", query_rows)
            reconcile(connection, "golden_judgements", "judgement_id", judgement_rows)
            insert(connection, "golden_seen", seen)
            return record(connection, StageResult(STAGE, data_version, counts, details=details), made_from)


def settings_key(settings: Settings) -> str:
    """Hash of the code that resolves given golden queries and, where there are any, of how many decide.

    Raises:
        SettingsError: they cannot be read.
    """
    return _key(settings, bool(settings.golden and read_golden(settings.golden)[0]))


def _key(settings: Settings, any_queries: bool) -> str:
    decide = [settings.evaluation.golden_minimum_queries, settings.evaluation.golden_minimum_units]
    return fingerprint(CODE_VERSION, decide if any_queries else [])


def follow_documents(store: Store, settings: Settings) -> None:
    """Resolve the golden queries again where a refresh beside a retrain has brought other documents since.

    Their places are positions in the text: after an edit they would take a wrong passage for the right one.
    """
    resolved_in = stored_detail(store.warehouse, STAGE, "chunks_version")
    if resolved_in not in (None, data_versions(store.warehouse, "chunks")["chunks"]):
        resolve_golden_queries(store, settings)


def files_differ(store: Store, settings: Settings) -> bool:
    """Whether the golden files say something else than when the last retrain dealt with them.

    Raises:
        SettingsError: they cannot be read.
    """
    queries, qrels, _ = read_golden(settings.golden) if settings.golden else ({}, [], [])
    return differs_from_retrained(store.warehouse, STAGE, fingerprint(queries, qrels))


def decides(queries: int, units: int, settings: EvaluationSettings) -> bool:
    """Whether the golden set is large enough to decide alone, so that the candidate may train on the test units too."""
    return queries >= settings.golden_minimum_queries and units >= settings.golden_minimum_units


def golden_queries(store: Store) -> list[JudgedQuery]:
    """The resolved golden queries with their evidence, by query id."""
    with store.warehouse.read() as connection:
        rows = records(connection, "SELECT * FROM golden_queries ORDER BY query_id")
        judged = records(connection, "SELECT * FROM golden_judgements ORDER BY query_id, ordinal")
    return _judged(rows, judged)


def judged_queries(store: Store, folder: Path) -> tuple[list[JudgedQuery], str]:
    """Any judged set against the documents of today, nothing stored: its usable queries, and what is not usable and why."""
    queries, qrels, problems = read_golden(folder)
    rows, judged, _ = _resolved(store, queries, qrels)
    unresolved = [row for row in rows if row["status"] != "resolved"]
    return _judged(rows, judged), _not_usable(unresolved, _unused_evidence(rows, judged, "unresolved"), problems)


def not_usable(store: Store) -> str:
    """The same of the store's own golden queries, as they were last resolved."""
    names = ("unresolved", "unused_evidence", "unusable_lines")
    return _not_usable(*(json.loads(stored_detail(store.warehouse, STAGE, name) or "[]") for name in names))


def _not_usable(
    unresolved: Sequence[Mapping[str, Any]], lost: Sequence[Mapping[str, Any]], problems: Sequence[str]
) -> str:
    notes = []
    if unresolved:
        notes.append(f"{counted(len(unresolved), 'queries')} could not be resolved ({_why(unresolved[0])})")
    if lost:
        notes.append(
            f"{counted(len(lost), 'pieces')} of evidence could not be found and {'counts' if len(lost) == 1 else 'count'} "
            f"for nothing ({_why(lost[0])})"
        )
    if problems:
        verb = "is" if len(problems) == 1 else "are"
        notes.append(f"{counted(len(problems), 'lines')} {verb} unusable ({_short(problems[0])})")
    return "; ".join(notes)


def _why(row: Mapping[str, Any]) -> str:
    return f"{_short(row['query'])}: {_short(row['reason'])}"


def _short(text: str) -> str:
    """A piece of somebody's file for a terminal and a page: one line of words that holds nothing else, and is no flood."""
    line = one_line(text)
    return line if len(line) <= _LONGEST_QUOTED else f"{line[:_LONGEST_QUOTED]} …"


def _unused_evidence(
    queries: list[dict[str, Any]], judgements: list[dict[str, Any]], *statuses: str
) -> list[dict[str, Any]]:
    """Pieces that count for nothing although their query does: it is scored by the others alone."""
    usable = {row["query_id"]: row["query"] for row in queries if row["status"] == "resolved"}
    return [
        {"query": usable[j["query_id"]], "reason": j["reason"]}
        for j in judgements
        if j["query_id"] in usable and j["relevance"] > 0 and j["status"] in statuses
    ]


def _judged(rows: list[dict[str, Any]], judged: list[dict[str, Any]]) -> list[JudgedQuery]:
    rows = [row for row in rows if row["status"] == "resolved"]
    judged = [j for j in judged if j["status"] == "resolved" and j["relevance"] > 0]
    evidence: dict[str, list[Evidence]] = {}
    for j in judged:
        evidence.setdefault(j["query_id"], []).append(
            Evidence(j["doc_path"], j["start_char"], j["end_char"], j["relevance"])
        )
    return [
        JudgedQuery(
            row["query_id"],
            row["query"],
            tuple(evidence[row["query_id"]]),
            row["unit"],
            {"style": row["style"], "folder": folder_of(evidence[row["query_id"]][0].doc_path)},
        )
        for row in rows
    ]


def folder_of(doc_path: str) -> str:
    """The first folder of a document, for segments."""
    return doc_path.split("/")[0] if "/" in doc_path else "(top level)"


def style_of(query: str) -> str:
    """The style of a query that does not say its own."""
    if query.rstrip().endswith("?"):
        return "question"
    return "keywords" if len(query.split()) <= 6 else "situation"


def _resolved(
    store: Store, queries: dict[str, dict[str, Any]], qrels: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
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
        if len(words(quote)) < _WORDS_OF_A_QUOTE or known_doc_path(qrel["doc_path"], self._unreadable):
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
