"""What each stage's data was made from: the memory that lets a run skip what has not changed.

Dagster never skips a step because its inputs are unchanged, so every stage compares a fingerprint of its inputs,
settings and code with the one stored beside its data.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import duckdb

from acme_rag_pipeline.store.warehouse import Counts, Warehouse, records

# Begins the fingerprint of a stage that left something for its next run, so that none matches it.
UNFINISHED = "unfinished "


class UpstreamMissing(RuntimeError):
    """A stage was asked for before the stage it reads from has ever run."""


@dataclass(frozen=True)
class StageResult:
    """The outcome of one stage.

    Attributes:
        stage: its asset name.
        data_version: hash of the stage's content.
        counts: rows by what happened to them in this run.
        unchanged: nothing had to be done.
        details: numbers and texts worth showing; JSON values only.
    """

    stage: str
    data_version: str
    counts: Counts = field(default_factory=Counts)
    unchanged: bool = False
    details: dict[str, Any] = field(default_factory=dict)


def recorded(warehouse: Warehouse, stage: str, fingerprint: str) -> StageResult | None:
    """The stored result if the stage's data was made from exactly this fingerprint, else None."""
    with warehouse.read() as connection:
        rows = records(connection, "SELECT * FROM stages WHERE stage = ? AND fingerprint = ?", [stage, fingerprint])
    if not rows:
        return None
    summary = json.loads(rows[0]["summary"])
    counts = Counts(reused=sum(summary["counts"][name] for name in ("added", "changed", "reused")))
    return StageResult(stage, rows[0]["data_version"], counts, unchanged=True, details=summary["details"])


def record(connection: duckdb.DuckDBPyConnection, result: StageResult, fingerprint: str) -> StageResult:
    """Store the result in the same transaction as the rows it describes."""
    summary = json.dumps({"counts": vars(result.counts), "details": result.details}, ensure_ascii=False)
    connection.execute(
        "INSERT OR REPLACE INTO stages VALUES (?, ?, ?, ?, ?)",
        [result.stage, fingerprint, result.data_version, summary, datetime.now(UTC)],
    )
    return replace(result, unchanged=False)


def distrust(connection: duckdb.DuckDBPyConnection, *stages: str) -> None:
    """Have stages run again whose rows were taken away outside of them; that one was unfinished stays known.

    When what they were made from comes back, so does its fingerprint, which must not match then.
    """
    connection.execute(
        "UPDATE stages SET fingerprint = CASE WHEN starts_with(fingerprint, ?) THEN ? ELSE '' END || 'retracted' "
        "WHERE list_contains(?, stage)",
        [UNFINISHED, UNFINISHED, list(stages)],
    )


def stored_detail(warehouse: Warehouse, stage: str, name: str) -> str | None:
    """One text among the details of a stage, None if it never ran or has no such detail."""
    with warehouse.read() as connection:
        rows = connection.execute(
            "SELECT summary->>('$.details.' || ?) FROM stages WHERE stage = ?", [name, stage]
        ).fetchall()
    return rows[0][0] if rows else None


def overtaken(warehouse: Warehouse, upstream: Mapping[str, str]) -> bool:
    """Whether what a stage reads from changed since these data versions were read.

    A stage looks before it waits for the store. What another run wrote meanwhile must not be recorded as made from what was
    there before: it begins again then, now with the store to itself.
    """
    return data_versions(warehouse, *upstream) != dict(upstream)


def data_versions(warehouse: Warehouse, *stages: str) -> dict[str, str]:
    """Data version of each stage.

    Raises:
        UpstreamMissing: one of them has never run; the message says what to do.
    """
    with warehouse.read() as connection:
        found = dict(connection.execute("SELECT stage, data_version FROM stages").fetchall())
    for stage in stages:
        if stage not in found:
            raise UpstreamMissing(f"`{stage}` has never been materialised in this store: materialise it first")
    return {stage: found[stage] for stage in stages}
