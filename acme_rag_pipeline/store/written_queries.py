"""The queries that an LLM and people wrote for the passages of today."""

from __future__ import annotations

from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import Warehouse, records

# Who searches finds a passage that somebody asked about before one that nobody did (docs/evaluation.md).
MOST_UNASKED = 0.1


def written_queries(warehouse: Warehouse) -> dict[str, tuple[str, ...]]:
    """By chunk id the queries that an LLM and people wrote for a passage, in a canonical order; no templates.

    They are those that the filters kept: none that lies near a golden query, and none that a reviewer rejected. Without an LLM
    there are none: people ask about a few passages, and the others would be found less.
    """
    with warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT chunk_id, list(DISTINCT query ORDER BY query) AS queries FROM training_pairs "
            "JOIN chunks USING (chunk_id) WHERE dropped_because IS NULL AND origin <> 'offline' "
            "AND EXISTS (FROM pairs WHERE origin = 'openai') GROUP BY chunk_id ORDER BY chunk_id",
        )
    return {row["chunk_id"]: tuple(row["queries"]) for row in rows}


def nearly_all_asked(warehouse: Warehouse) -> bool:
    """Whether an LLM was asked about nine of ten passages, whatever it answered, when it was asked last."""
    prompts, unanswered = (_said_of_the_llm(warehouse, name) for name in ("prompts", "unanswered"))
    with warehouse.read() as connection:
        by_llm = connection.execute("SELECT EXISTS (FROM pairs WHERE origin = 'openai')").fetchall()[0][0]
    return bool(by_llm) and unanswered <= MOST_UNASKED * prompts


def _said_of_the_llm(warehouse: Warehouse, name: str) -> int:
    found = stored_detail(warehouse, "synthetic_pairs", f"llm_{name}")
    if found is None:
        # An earlier version counted the prompts of all generators together.
        found = stored_detail(warehouse, "synthetic_pairs", name)
    return int(found or 0)
