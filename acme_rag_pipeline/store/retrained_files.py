"""Which state of the files that people wrote the last retrain dealt with, so that one that ended too early is made up for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import Warehouse

if TYPE_CHECKING:
    import duckdb

# The stages that resolve such a file; each says as `source` which state of it that was.
_STAGES = ("curated_pairs", "golden_queries")


def resolved_files(warehouse: Warehouse) -> dict[str, str]:
    """The states of the files as they were last resolved, by stage."""
    found = {stage: stored_detail(warehouse, stage, "source") for stage in _STAGES}
    return {stage: source for stage, source in found.items() if source is not None}


def retrained_files(warehouse: Warehouse) -> dict[str, str]:
    """The states that the last retrain dealt with, by stage."""
    with warehouse.read() as connection:
        return dict(connection.execute("SELECT stage, source FROM retrained_files").fetchall())


def remember_files(connection: duckdb.DuckDBPyConnection, files: dict[str, str]) -> None:
    """Note that these states are dealt with."""
    for stage, source in files.items():
        connection.execute("INSERT OR REPLACE INTO retrained_files VALUES (?, ?)", [stage, source])


def differs_from_retrained(warehouse: Warehouse, stage: str, source: str) -> bool:
    """Whether a file's state is another one than the last retrain dealt with; False before the first."""
    # A store of an earlier version knows only what was resolved last.
    known = resolved_files(warehouse) | retrained_files(warehouse)
    return known.get(stage, source) != source
