"""People's pairs and rejections whose passage is not found any more, with the passage that comes nearest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.pairs.curated import REJECTED
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import UpstreamMissing, data_versions
from acme_rag_pipeline.store.warehouse import records

if TYPE_CHECKING:
    import duckdb

_UNRESOLVED = (
    'SELECT p.query, p.doc_path, p.quote, p.start_char AS start, p.end_char AS "end", p.reason, '
    "n.doc_path AS nearest_document, n.start_char AS nearest_start, n.end_char AS nearest_end, n.text AS nearest_passage "
    "FROM curated_pairs p LEFT JOIN chunks n ON n.chunk_id = p.nearest_chunk_id WHERE p.status = 'unresolved' UNION ALL "
    "SELECT query, doc_path, NULL, NULL, NULL, reason || '; its passage is not found, so it counts in the whole document', "
    f"NULL, NULL, NULL, NULL FROM rejected_pairs WHERE chunk_id IS NULL AND reason = '{REJECTED}'"
)


def unresolved_rows(store: Store) -> list[dict[str, Any]]:
    """One row a line, as the stage last found it; without a nearest passage where nothing is like it, or it is rejected.

    Raises:
        UpstreamMissing: the stage has never run.
    """
    if not store.warehouse.path.exists():  # a reader would create it
        raise UpstreamMissing(f"{store.root} holds no pairs yet: run `retrain` first")
    data_versions(store.warehouse, "curated_pairs")
    with store.warehouse.read() as connection:
        return records(connection, f"{_UNRESOLVED} ORDER BY query, doc_path, reason, quote, start")


def unresolved_count(connection: duckdb.DuckDBPyConnection) -> int:
    """How many rows that are."""
    return int(connection.execute(f"SELECT count(*) FROM ({_UNRESOLVED})").fetchall()[0][0])
