"""Where the numbers of a report come from: training data, stages, language model calls, digests from document to table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from acme_rag_pipeline.evaluation.contest import Evaluation
from acme_rag_pipeline.evaluation.report import Funnel, PairCount, SamplePair
from acme_rag_pipeline.pairs.llm_cost import spent
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import seconds_so_far, stage_seconds
from acme_rag_pipeline.store.warehouse import records

# In the order of a run.
_STAGES = (
    "documents",
    "chunks",
    "curated_pairs",
    "synthetic_pairs",
    "golden_queries",
    "training_set",
    "base_index",
    "fine_tuned_model",
    "fine_tuned_index",
    "evaluation_report",
    "promoted_retriever",
    "served_index",
)


def stage_details(store: Store) -> dict[str, dict[str, Any]]:
    """Details of each stage as it was recorded."""
    with store.warehouse.read() as connection:
        rows = records(connection, "SELECT stage, summary FROM stages")
    return {row["stage"]: json.loads(row["summary"])["details"] for row in rows}


def seconds_by_stage(store: Store, done: Evaluation, trained: dict[str, Any]) -> dict[str, float]:
    """Wall seconds of each stage's last run that had something to do, in the order of a run; unknown ones are left out.

    Args:
        store: whose stages.
        done: the evaluation, whose stage has not ended yet; without its clock the comparison alone counts.
        trained: details of the training stage; what they say of the candidate's training counts, whichever run it was.
    """
    known = stage_seconds(store.warehouse)
    if trained.get("seconds"):
        known["fine_tuned_model"] = float(trained["seconds"])
    known["evaluation_report"] = seconds_so_far() or done.seconds
    return {stage: known[stage] for stage in _STAGES if stage in known}


def tokens(store: Store, settings: Settings) -> dict[str, float]:
    """What the language models were asked for this store, over all runs; with prices, what that of today cost."""
    with store.warehouse.read() as connection:
        row = connection.execute(
            "SELECT count(*), sum(prompt_tokens), sum(completion_tokens), round(sum(seconds)) FROM llm_calls"
        ).fetchall()[0]
        money = spent(connection, settings).get("cost")
    names = ("calls", "prompt tokens", "completion tokens", "seconds of answering")
    counts: dict[str, float] = {name: int(value) for name, value in zip(names, row, strict=True) if value}
    return counts | ({f"cost of {settings.llm}": round(money, 4)} if money else {})


def funnel(store: Store, training_set: dict[str, Any]) -> Funnel:
    """From raw pairs to kept ones, with the reasons.

    Args:
        store: where the pairs lie.
        training_set: details of the stage that filtered them.
    """
    with store.warehouse.read() as connection:
        raw = records(
            connection, "SELECT origin, style, count(*) AS pairs FROM training_pairs GROUP BY ALL ORDER BY 1, 2"
        )
        dropped = connection.execute(
            "SELECT dropped_because, count(*) FROM training_pairs WHERE dropped_because IS NOT NULL GROUP BY 1 ORDER BY 2 DESC"
        ).fetchall()
        kept = connection.execute(
            "SELECT side, count(*) FROM training_pairs WHERE dropped_because IS NULL GROUP BY 1 ORDER BY 1"
        ).fetchall()
    return Funnel(
        [PairCount(**row) for row in raw],
        dict(dropped),
        dict(kept),
        _all_origins(training_set.get("query_words", ()), "words"),
        _all_origins(training_set.get("overlap", ()), "overlap"),
        _coverage(training_set.get("coverage")),
    )


def _all_origins(rows: Sequence[dict[str, Any]], label: str) -> dict[str, int]:
    return {row[label]: sum(count for name, count in row.items() if name != label) for row in rows}


def _coverage(numbers: dict[str, float] | None) -> str:
    if not numbers:
        return ""
    with_pairs = numbers["documents"] - numbers["documents_without_pairs"]
    return (
        f"{with_pairs:,.0f} of {numbers['documents']:,.0f} documents and {numbers['chunks_covered']:,.0f} of "
        f"{numbers['chunks']:,.0f} chunks have a kept pair; a document has {numbers['pairs_per_document_median']:g} "
        f"(median), {numbers['pairs_per_document_most']:,.0f} at most"
    )


def samples(store: Store) -> list[SamplePair]:
    """Kept pairs of each origin: one of each method of the embedded generator, two of each style otherwise."""
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT t.origin, t.style, t.query, c.text AS passage, c.doc_path FROM training_pairs t "
            "JOIN chunks c USING (chunk_id) WHERE t.dropped_because IS NULL "
            "QUALIFY row_number() OVER (PARTITION BY t.origin, t.style, t.method ORDER BY t.pair_id) "
            "<= CASE t.origin WHEN 'offline' THEN 1 ELSE 2 END ORDER BY t.origin, t.method, t.style, t.pair_id",
        )
    return [SamplePair(**row) for row in rows]


def _table(details: dict[str, Any]) -> str:
    return f"{details['table']}, version {details['lance_version']}" if details.get("table") else ""


def trail(store: Store, done: Evaluation, details: dict[str, dict[str, Any]]) -> dict[str, str]:
    """One kept training pair from its document to the candidate's table; empty without a candidate."""
    who = done.contest
    if who.candidate is None:
        return {}
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT t.query, t.pair_id, t.chunk_id, d.doc_path, d.sha256 FROM training_pairs t JOIN chunks c "
            "USING (chunk_id) JOIN documents d USING (doc_path) WHERE t.dropped_because IS NULL AND t.side = 'train' "
            "ORDER BY t.origin <> 'curated', t.pair_id LIMIT 1",
        )
    if not rows:
        return {}
    row = rows[0]
    steps = {
        "document": row["doc_path"],
        "its SHA-256": row["sha256"],
        "chunk": row["chunk_id"],
        "question": row["query"],
        "pair": row["pair_id"],
        "model": who.candidate.model_digest,
        "table": _table(details.get("fine_tuned_index", {})),
    }
    return {name: value for name, value in steps.items() if value}


def lineage(store: Store, done: Evaluation, details: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Versions and digests of what the evaluation rests on."""
    with store.warehouse.read() as connection:
        versions = dict(connection.execute("SELECT stage, data_version FROM stages").fetchall())
    who = done.contest
    known = {
        "documents": versions.get("documents", ""),
        "chunks": versions.get("chunks", ""),
        "training set": versions.get("training_set", ""),
        "golden queries": versions.get("golden_queries", ""),
        "base model": who.base.model_digest,
        "measured twin": who.twin.model_digest if who.twin else "",
        "base table": _table(details.get("base_index", {})),
        "candidate's table": _table(details.get("fine_tuned_index", {})),
        "champion's recipe": who.champion.recipe,
        "evaluation": done.evaluation_id,
    }
    return {name: value for name, value in known.items() if value}
