"""Asset checks: numbers that should hold, WARN for outcomes, ERROR for defects; none of them blocks serving.

They run inside their asset's step: a step of its own for each check would double what a run with nothing to do costs.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import dagster as dg

from acme_rag_pipeline.documents.source import DocumentsFolderError
from acme_rag_pipeline.documents.state import folder_state
from acme_rag_pipeline.evaluation.contestants import outcome_of_the_newest
from acme_rag_pipeline.orchestration.presentation import table
from acme_rag_pipeline.pairs.leaks import leaks_of_today
from acme_rag_pipeline.pairs.llm_outcome import ASK_EMPTY_AGAIN
from acme_rag_pipeline.pairs.unresolved import unresolved_rows
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline.store.stages import stored_details
from acme_rag_pipeline.store.unreadable_table import TableUnreadable, reading
from acme_rag_pipeline.store.warehouse import records

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR
# Rows of a table below a check; the number beside it counts all.
SHOWN = 100
MOSTLY_EMPTY = (
    "At least half of the LLM's answers hold no question. Unless the passages have nothing to ask, name another model in "
    f"ACME_RAG_LLM; if the server is mended, `{ASK_EMPTY_AGAIN}` and `retrain` ask this one again."
)
NO_KEY = (
    "ACME_RAG_GENERATOR=auto found no key and no address of an LLM, and its answers of before are not used: set "
    "OPENAI_API_KEY or OPENAI_BASE_URL, or ACME_RAG_GENERATOR=offline to do without."
)

Check = Callable[[Store, Settings], dg.AssetCheckResult]
_CHECKS: dict[str, list[tuple[dg.AssetCheckSpec, Check]]] = {}


def specs(asset: str) -> list[dg.AssetCheckSpec]:
    """The checks that an asset declares."""
    return [spec for spec, _ in _CHECKS.get(asset, [])]


def results(asset: str, store: Store, settings: Settings) -> list[dg.AssetCheckResult]:
    """Run an asset's checks."""
    return [check(store, settings)._replace(check_name=spec.name) for spec, check in _CHECKS.get(asset, [])]


def failed_in_error(store: Store, settings: Settings) -> list[dg.AssetCheckResult]:
    """The checks that find a defect in what the last runs left; asked of the store, so that no history of Dagster is needed."""
    ran = {row["stage"] for row in _rows(store, "SELECT stage FROM stages")}
    found = (check for asset in _CHECKS if asset in ran for check in results(asset, store, settings))
    return [check for check in found if not check.passed and check.severity is ERROR]


def in_words(check: dg.AssetCheckResult) -> str:
    """What a check found, without its tables."""
    values = {name: entry.value for name, entry in check.metadata.items()}
    plain = [f"{name} {value}" for name, value in values.items() if isinstance(value, int | float | str) and value]
    return "; ".join(filter(None, [check.description, *plain])) or "did not pass"


def _asset_check(*, asset: str, description: str) -> Callable[[Check], Check]:
    def register(check: Check) -> Check:
        spec = dg.AssetCheckSpec(check.__name__, asset=asset, description=description)
        _CHECKS.setdefault(asset, []).append((spec, check))
        return check

    return register


def _rows(store: Store, query: str) -> list[dict[str, Any]]:
    with store.warehouse.read() as connection:
        return records(connection, query)


def _details(store: Store, stage: str) -> dict[str, Any]:
    with store.warehouse.read() as connection:
        return stored_details(connection, stage)


def _counted(details: Mapping[str, Any], name: str) -> int:
    """How many there are of what a stage lists; its list is cut. A stage of an earlier version counted nothing."""
    return int(details.get("counted", {}).get(name, len(details.get(name, []))))


def _tables(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    return {name: table(found[:SHOWN]) for name, found in rows.items() if found}


@_asset_check(asset="documents", description="Every file could be read and parsed, and every page of it.")
def every_document_is_readable(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """WARN with the reasons for the files that could not, and with what is missing in the text of others."""
    reasons = "SELECT doc_path, reason FROM documents WHERE status = '{}' AND reason IS NOT NULL ORDER BY doc_path"
    bad, in_part = _rows(store, reasons.format("unreadable")), _rows(store, reasons.format("ok"))
    metadata = {"unreadable": len(bad), "incomplete": len(in_part)} | _tables({"reasons": bad, "missing": in_part})
    return dg.AssetCheckResult(passed=not bad and not in_part, severity=WARN, metadata=metadata)


@_asset_check(asset="chunks", description="Every chunk is exactly the piece of its document that its span names.")
def spans_are_exact(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """ERROR when a span and its text differ: every citation depends on it."""
    rows = _rows(
        store,
        "SELECT count(*) AS chunks, count(*) FILTER (c.text IS DISTINCT FROM "
        "array_slice(d.text, c.start_char + 1, c.end_char)) AS wrong FROM chunks c LEFT JOIN documents d USING (doc_path)",
    )[0]
    return dg.AssetCheckResult(passed=rows["wrong"] == 0, severity=ERROR, metadata=rows)


@_asset_check(asset="chunks", description="Every readable document has a passage.")
def every_document_has_a_passage(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """WARN with the documents of which nothing can be found: front matter, pictures or link definitions alone."""
    bare = _rows(
        store,
        "SELECT doc_path, format FROM documents d WHERE status = 'ok' "
        "AND NOT EXISTS (SELECT 1 FROM chunks c WHERE c.doc_path = d.doc_path) ORDER BY doc_path",
    )
    metadata = {"without_a_passage": len(bare)} | _tables({"documents": bare})
    return dg.AssetCheckResult(passed=not bare, severity=WARN, metadata=metadata)


@_asset_check(asset="curated_pairs", description="Every curated pair still stands in a document.")
def curated_pairs_resolve(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """WARN with the pairs that do not, and with rejections, quotes and negatives whose passage is not certain."""
    lost = unresolved_rows(store)
    details = _details(store, "curated_pairs")
    counts = {
        "unresolved": len(lost),
        "unusable_lines": _counted(details, "unusable_lines"),
        "ambiguous_quotes": _counted(details, "ambiguous"),
        "lost_negatives": _counted(details, "negatives_not_found"),
    }
    shown = {
        "pairs": [_to_mend(row) for row in lost],
        "moved": details.get("moved", []),
        "ambiguous": details.get("ambiguous", []),
        "negatives_not_found": details.get("negatives_not_found", []),
    }
    return dg.AssetCheckResult(
        passed=not any(counts.values()),
        severity=WARN,
        metadata=counts | _tables(shown),
        description="`acme-rag pairs export --unresolved` lists what no longer resolves, to be mended"
        if lost
        else None,
    )


def _to_mend(row: Mapping[str, Any]) -> dict[str, Any]:
    nearest = row["nearest_document"] is not None
    return {name: row[name] for name in ("query", "doc_path", "reason", "nearest_document")} | {
        "nearest_span": f"{row['nearest_start']}-{row['nearest_end']}" if nearest else None,
        "nearest_passage": row["nearest_passage"],
    }


@_asset_check(asset="synthetic_pairs", description="Every chunk's questions were asked for and answered.")
def every_chunk_was_asked(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """WARN when the LLM was down, a budget was spent, answers were unusable or half of them held no question.

    And when answers that an LLM gave once are not used because this process has no key.
    """
    details = _details(store, "synthetic_pairs")
    left, empty = int(details.get("unanswered", 0)), int(details.get("llm_empty", 0))
    answered = int(details.get("llm_prompts", 0)) - int(details.get("llm_unanswered", 0))
    mostly_empty, unused = 0 < answered <= 2 * empty, int(details.get("llm_answers_unused", 0))
    description = " ".join(filter(None, [MOSTLY_EMPTY * mostly_empty, NO_KEY * bool(unused)]))
    return dg.AssetCheckResult(
        passed=left == 0 and not mostly_empty and not unused,
        severity=WARN,
        metadata={
            "unanswered": left,
            "llm_answers": answered,
            "llm_answers_without_a_question": empty,
            "llm_answers_unused": unused,
            "outcome": str(details.get("outcome", "not run")),
        },
        description=description or None,
    )


@_asset_check(
    asset="training_set",
    description="No training query, passage or negative is one of what is held out, or nearly repeats it.",
)
def nothing_leaks(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """ERROR on any leak of a held-out query, passage or negative, or of what is near one that judges, into training.

    WARN when nearness could not be looked up.
    """
    leaks = leaks_of_today(store, settings)
    return dg.AssetCheckResult(
        passed=leaks.total == 0 and not leaks.not_compared,
        severity=ERROR if leaks.total else WARN,
        metadata=asdict(leaks),
        description=leaks.not_compared or None,
    )


@_asset_check(asset="golden_queries", description="Every judged query's evidence is found in the documents of today.")
def golden_queries_resolve(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """WARN with the queries whose evidence is gone, all of it or a piece, and when lines of the files could not be used."""
    lost = _rows(
        store,
        "SELECT query, reason FROM golden_queries WHERE status <> 'resolved' UNION ALL "
        "SELECT q.query, 'in part: ' || j.reason FROM golden_queries q JOIN golden_judgements j USING (query_id) "
        "WHERE q.status = 'resolved' AND j.status = 'unresolved' AND j.relevance > 0 ORDER BY query, reason",
    )
    details = _details(store, "golden_queries")
    counts = {"unresolved": len(lost), "unusable_lines": _counted(details, "unusable_lines")}
    shown = {"queries": lost, "moved": details.get("moved", [])}
    return dg.AssetCheckResult(passed=not any(counts.values()), severity=WARN, metadata=counts | _tables(shown))


@_asset_check(asset="fine_tuned_model", description="A candidate was trained, or known from before.")
def a_candidate_exists(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """WARN when there is none, with the reason."""
    details = _details(store, "fine_tuned_model")
    return dg.AssetCheckResult(
        passed=bool(details.get("model_digest")),
        severity=WARN,
        metadata={"outcome": str(details.get("outcome", "not run"))},
    )


def _rows_held(store: Store, details: dict[str, Any]) -> int:
    """Rows of an index; counted again unless its newest version is the one that was counted when it was written.

    One that cannot be read has none.
    """
    if index.holds(store, details):
        return int(details["rows"])
    with contextlib.suppress(TableUnreadable), reading(store.lancedb, details["table"]):
        found = vectors.open_table(vectors.connect(store.lancedb), details["table"])
        return found.count_rows() if found is not None else 0
    return 0


def _index_check(store: Store, stage: str) -> dg.AssetCheckResult:
    details = _details(store, stage)
    if not details.get("table"):
        return dg.AssetCheckResult(passed=True, metadata={"outcome": str(details.get("outcome", "not run"))})
    rows = _rows_held(store, details)
    chunks = _rows(store, "SELECT count(*) AS n FROM chunks")[0]["n"]
    return dg.AssetCheckResult(passed=rows == chunks, severity=ERROR, metadata={"rows": rows, "chunks": chunks})


@_asset_check(asset="base_index", description="One row for each chunk.")
def base_index_is_complete(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """ERROR when the table and the chunks differ in number."""
    return _index_check(store, "base_index")


@_asset_check(asset="fine_tuned_index", description="One row for each chunk.")
def fine_tuned_index_is_complete(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """ERROR when the table and the chunks differ in number, or the candidate cannot be opened."""
    outcome = str(_details(store, "fine_tuned_index").get("outcome", ""))
    if outcome.startswith("not searchable"):
        return dg.AssetCheckResult(passed=False, severity=ERROR, metadata={"outcome": outcome})
    return _index_check(store, "fine_tuned_index")


@_asset_check(asset="evaluation_report", description="People's questions decide; else the evidence is synthetic.")
def people_decide(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """WARN when no golden queries decide: most other questions are machine-written."""
    details = _details(store, "evaluation_report")
    numbers = {k: v for k, v in details.get("ndcg@10", {}).items() if isinstance(v, float)}
    return dg.AssetCheckResult(
        passed=details.get("evidence") == "golden",
        severity=WARN,
        metadata={
            "evidence": str(details.get("evidence", "none")),
            "reason": str(details.get("reason", "")),
            **numbers,
        },
    )


@_asset_check(asset="promoted_retriever", description="The newest evaluation ended in a promotion.")
def candidate_was_promoted(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """WARN when the champion was kept: a normal outcome, worth a look."""
    verdict, reason = outcome_of_the_newest(store)
    decided = decisions.on_the_newest_candidate(store)
    served = {"recipe": decided.recipe, "model_digest": decided.model_digest} if decided else {}
    return dg.AssetCheckResult(
        passed=verdict == decisions.PROMOTED, severity=WARN, metadata={"verdict": verdict, "reason": reason, **served}
    )


@_asset_check(asset="served_index", description="Readers find exactly the documents of today.")
def served_index_is_current(store: Store, settings: Settings) -> dg.AssetCheckResult:
    """ERROR when the pointer's version does not hold the chunks of today; WARN when the folder changed meanwhile."""
    promoted = read_pointer(store.pointer)
    details = _details(store, "served_index")
    named = (promoted.table, promoted.lance_version) == (details.get("table"), details.get("lance_version"))
    rows = _rows_held(store, details) if named else 0
    chunks = _rows(store, "SELECT count(*) AS n FROM chunks")[0]["n"]
    try:
        current = folder_state(settings, store) == details.get("sources")
    except DocumentsFolderError:
        # Readers have what they have; the next run of `documents` says what is wrong with the folder.
        current = False
    return dg.AssetCheckResult(
        passed=rows == chunks and current,
        severity=ERROR if rows != chunks else WARN,
        metadata={"rows": rows, "chunks": chunks, "documents_unchanged_since": current, "reason": promoted.reason},
    )
