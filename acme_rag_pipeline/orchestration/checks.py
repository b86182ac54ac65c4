"""Asset checks: numbers that should hold, WARN for outcomes, ERROR for defects; none of them blocks serving."""

import json
from typing import Any

import dagster as dg

from acme_rag_pipeline.documents.state import folder_state
from acme_rag_pipeline.orchestration.presentation import table
from acme_rag_pipeline.orchestration.resources import Pipeline
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline.store.warehouse import records

WARN, ERROR = dg.AssetCheckSeverity.WARN, dg.AssetCheckSeverity.ERROR


def _rows(pipeline: Pipeline, query: str) -> list[dict[str, Any]]:
    with pipeline.open_store().warehouse.read() as connection:
        return records(connection, query)


def _details(pipeline: Pipeline, stage: str) -> dict[str, Any]:
    rows = _rows(pipeline, f"SELECT summary FROM stages WHERE stage = '{stage}'")
    return json.loads(rows[0]["summary"])["details"] if rows else {}


@dg.asset_check(asset="documents", description="Every file could be read and parsed.")
def every_document_is_readable(pipeline: Pipeline) -> dg.AssetCheckResult:
    """WARN with the reasons for the files that could not."""
    bad = _rows(
        pipeline, "SELECT doc_path, reason FROM documents WHERE status = 'unreadable' ORDER BY doc_path LIMIT 100"
    )
    return dg.AssetCheckResult(passed=not bad, severity=WARN, metadata={"unreadable": len(bad), "reasons": table(bad)})


@dg.asset_check(asset="chunks", description="Every chunk is exactly the piece of its document that its span names.")
def spans_are_exact(pipeline: Pipeline) -> dg.AssetCheckResult:
    """ERROR when a span and its text differ: every citation depends on it."""
    rows = _rows(
        pipeline,
        "SELECT count(*) AS chunks, count(*) FILTER (c.text IS DISTINCT FROM "
        "array_slice(d.text, c.start_char + 1, c.end_char)) AS wrong FROM chunks c LEFT JOIN documents d USING (doc_path)",
    )[0]
    return dg.AssetCheckResult(passed=rows["wrong"] == 0, severity=ERROR, metadata=rows)


@dg.asset_check(asset="curated_pairs", description="Every curated pair still stands in a document.")
def curated_pairs_resolve(pipeline: Pipeline) -> dg.AssetCheckResult:
    """WARN with the pairs that do not, and the nearest passage of their document."""
    lost = _rows(
        pipeline,
        "SELECT p.query, p.doc_path, p.reason, n.text AS nearest_passage FROM curated_pairs p "
        "LEFT JOIN chunks n ON n.chunk_id = p.nearest_chunk_id WHERE p.status <> 'resolved' ORDER BY p.query LIMIT 100",
    )
    unusable = _details(pipeline, "curated_pairs").get("unusable_lines", [])
    return dg.AssetCheckResult(
        passed=not lost and not unusable,
        severity=WARN,
        metadata={"unresolved": len(lost), "unusable_lines": len(unusable), "pairs": table(lost)},
    )


@dg.asset_check(asset="synthetic_pairs", description="Every chunk's questions were asked for and answered.")
def every_chunk_was_asked(pipeline: Pipeline) -> dg.AssetCheckResult:
    """WARN when the LLM was down, a budget was spent or answers were unusable."""
    details = _details(pipeline, "synthetic_pairs")
    left = int(details.get("unanswered", 0))
    return dg.AssetCheckResult(
        passed=left == 0,
        severity=WARN,
        metadata={"unanswered": left, "outcome": str(details.get("outcome", "not run"))},
    )


@dg.asset_check(
    asset="training_set", description="No training pair or negative comes from, or nearly repeats, what is held out."
)
def nothing_leaks(pipeline: Pipeline) -> dg.AssetCheckResult:
    """ERROR on any leak of a held-out passage, golden query or negative into training."""
    golden = _details(pipeline, "training_set").get("judged_by") == "golden queries"
    held_out = "('validation')" if golden else "('validation', 'test')"
    rows = _rows(
        pipeline,
        f"""WITH held AS (SELECT DISTINCT near_duplicate_group AS g FROM chunks WHERE side IN {held_out}),
        used AS (SELECT t.*, c.near_duplicate_group AS g FROM training_pairs t JOIN chunks c USING (chunk_id)
                 WHERE t.dropped_because IS NULL AND t.side NOT IN {held_out})
        SELECT (SELECT count(*) FROM used) AS training_pairs,
               (SELECT count(*) FROM used JOIN held USING (g)) AS leaking_passages,
               (SELECT count(*) FROM (SELECT unnest(negatives) AS n FROM used) x
                JOIN chunks c ON c.chunk_id = x.n JOIN held ON held.g = c.near_duplicate_group) AS leaking_negatives,
               (SELECT count(*) FROM used JOIN golden_queries q ON lower(q.query) = lower(used.query)) AS golden_queries""",
    )[0]
    leaks = rows["leaking_passages"] + rows["leaking_negatives"] + rows["golden_queries"]
    return dg.AssetCheckResult(passed=leaks == 0, severity=ERROR, metadata=rows)


@dg.asset_check(asset="golden_queries", description="Every judged query's evidence is found in the documents of today.")
def golden_queries_resolve(pipeline: Pipeline) -> dg.AssetCheckResult:
    """WARN with the queries whose evidence is gone."""
    lost = _rows(
        pipeline, "SELECT query, reason FROM golden_queries WHERE status <> 'resolved' ORDER BY query LIMIT 100"
    )
    return dg.AssetCheckResult(
        passed=not lost, severity=WARN, metadata={"unresolved": len(lost), "queries": table(lost)}
    )


@dg.asset_check(asset="fine_tuned_model", description="A candidate was trained, or known from before.")
def a_candidate_exists(pipeline: Pipeline) -> dg.AssetCheckResult:
    """WARN when there is none, with the reason."""
    details = _details(pipeline, "fine_tuned_model")
    return dg.AssetCheckResult(
        passed=bool(details.get("model_digest")),
        severity=WARN,
        metadata={"outcome": str(details.get("outcome", "not run"))},
    )


def _index_check(pipeline: Pipeline, stage: str) -> dg.AssetCheckResult:
    details = _details(pipeline, stage)
    if not details.get("table"):
        return dg.AssetCheckResult(passed=True, metadata={"outcome": str(details.get("outcome", "not run"))})
    store = pipeline.open_store()
    found = vectors.open_table(vectors.connect(store.lancedb), details["table"])
    rows = found.count_rows() if found is not None else 0
    chunks = _rows(pipeline, "SELECT count(*) AS n FROM chunks")[0]["n"]
    return dg.AssetCheckResult(passed=rows == chunks, severity=ERROR, metadata={"rows": rows, "chunks": chunks})


@dg.asset_check(asset="base_index", description="One row for each chunk.")
def base_index_is_complete(pipeline: Pipeline) -> dg.AssetCheckResult:
    """ERROR when the table and the chunks differ in number."""
    return _index_check(pipeline, "base_index")


@dg.asset_check(asset="fine_tuned_index", description="One row for each chunk.")
def fine_tuned_index_is_complete(pipeline: Pipeline) -> dg.AssetCheckResult:
    """ERROR when the table and the chunks differ in number."""
    return _index_check(pipeline, "fine_tuned_index")


@dg.asset_check(asset="evaluation_report", description="People's questions decide; else the evidence is synthetic.")
def people_decide(pipeline: Pipeline) -> dg.AssetCheckResult:
    """WARN when the verdict rests on machine-written questions."""
    details = _details(pipeline, "evaluation_report")
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


@dg.asset_check(asset="promoted_retriever", description="The newest candidate was promoted.")
def candidate_was_promoted(pipeline: Pipeline) -> dg.AssetCheckResult:
    """WARN when the champion was kept: a normal outcome, worth a look."""
    rows = _rows(
        pipeline, "SELECT verdict, reason, recipe, model_digest FROM promotions ORDER BY decision DESC LIMIT 1"
    )
    verdict = rows[0]["verdict"] if rows else "none"
    return dg.AssetCheckResult(passed=verdict == "promoted", severity=WARN, metadata=rows[0] if rows else {})


@dg.asset_check(asset="served_index", description="Readers find exactly the documents of today.")
def served_index_is_current(pipeline: Pipeline) -> dg.AssetCheckResult:
    """ERROR when the pointer's version does not hold the chunks of today; WARN when the folder changed meanwhile."""
    store = pipeline.open_store()
    promoted = read_pointer(store.pointer)
    found = vectors.open_table(vectors.connect(store.lancedb), promoted.table, promoted.lance_version)
    rows = found.count_rows() if found is not None else 0
    chunks = _rows(pipeline, "SELECT count(*) AS n FROM chunks")[0]["n"]
    current = folder_state(pipeline.settings()) == _details(pipeline, "served_index").get("sources")
    return dg.AssetCheckResult(
        passed=rows == chunks and current,
        severity=ERROR if rows != chunks else WARN,
        metadata={"rows": rows, "chunks": chunks, "documents_unchanged_since": current, "reason": promoted.reason},
    )
