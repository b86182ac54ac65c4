"""The `golden_queries` stage: people's judged queries, resolved to the documents of today."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acme_rag_pipeline.evaluation.golden_files import read_golden
from acme_rag_pipeline.evaluation.golden_places import resolved
from acme_rag_pipeline.evaluation.metrics import Evidence
from acme_rag_pipeline.evaluation.words import counted
from acme_rag_pipeline.llm.text import one_line
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.setting_groups import EvaluationSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY
from acme_rag_pipeline.store.retrained_files import differs_from_retrained
from acme_rag_pipeline.store.stages import StageResult, data_versions, overtaken, record, recorded, stored_detail
from acme_rag_pipeline.store.warehouse import insert, reconcile, records

STAGE = "golden_queries"
CODE_VERSION = "11"
_LONGEST_QUOTED = 200


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
    query_rows, judgement_rows, seen = resolved(store, queries, qrels)
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
    rows, judged, _ = resolved(store, queries, qrels)
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
