"""What each stage's data was made from: the memory that lets a run skip what has not changed.

Dagster never skips a step because its inputs are unchanged, so every stage compares a fingerprint of its inputs,
settings and code with the one stored beside its data.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import duckdb

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.store.warehouse import Counts, Warehouse, records

# Begins the fingerprint of a stage that left something for its next run, so that none matches it.
UNFINISHED = "unfinished "
# When the stage that runs now began, on the monotonic clock.
_began: ContextVar[float | None] = ContextVar("began", default=None)


class UpstreamMissing(UserError, RuntimeError):
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
        seconds: wall time of this run, waiting for other runs included; None where nothing was done or nobody asked for it.
    """

    stage: str
    data_version: str
    counts: Counts = field(default_factory=Counts)
    unchanged: bool = False
    details: dict[str, Any] = field(default_factory=dict)
    seconds: float | None = None


@contextlib.contextmanager
def timed() -> Iterator[None]:
    """Have the stage that runs inside recorded with its seconds.

    They stand beside its details, not among them: those are shown again by a run that does nothing, which took no such time.
    """
    token = _began.set(time.monotonic())
    try:
        yield
    finally:
        _began.reset(token)


def seconds_so_far() -> float | None:
    """Wall seconds of the stage that runs now; None where nobody asked for them."""
    began = _began.get()
    return None if began is None else round(time.monotonic() - began, 1)


def recorded(warehouse: Warehouse, stage: str, fingerprint: str) -> StageResult | None:
    """The stored result if the stage's data was made from exactly this fingerprint, else None."""
    with warehouse.read() as connection:
        rows = records(connection, "SELECT * FROM stages WHERE stage = ? AND fingerprint = ?", [stage, fingerprint])
    if not rows:
        return None
    summary = json.loads(rows[0]["summary"])
    counts = Counts(reused=sum(summary["counts"][name] for name in ("added", "changed", "reused")))
    return StageResult(stage, rows[0]["data_version"], counts, unchanged=True, details=summary["details"])


def stored_result(warehouse: Warehouse, stage: str) -> StageResult | None:
    """What the last run of a stage that did something left; None: it never ran."""
    with warehouse.read() as connection:
        rows = records(connection, "SELECT data_version, summary FROM stages WHERE stage = ?", [stage])
    if not rows:
        return None
    summary = json.loads(rows[0]["summary"])
    counts = Counts(**summary["counts"])
    return StageResult(
        stage, rows[0]["data_version"], counts, details=summary["details"], seconds=summary.get("seconds")
    )


def record(connection: duckdb.DuckDBPyConnection, result: StageResult, fingerprint: str) -> StageResult:
    """Store the result in the same transaction as the rows it describes.

    One that says `unchanged`, and is written for something that was looked at anew, keeps the seconds of the run that did it.
    """
    seconds = _seconds(connection, result.stage) if result.unchanged else seconds_so_far()
    known = {"counts": vars(result.counts), "details": result.details, "seconds": seconds}
    summary = json.dumps(known, ensure_ascii=False)
    connection.execute(
        "INSERT OR REPLACE INTO stages VALUES (?, ?, ?, ?, ?)",
        [result.stage, fingerprint, result.data_version, summary, datetime.now(UTC)],
    )
    return replace(result, unchanged=False, seconds=seconds)


def stage_seconds(warehouse: Warehouse) -> dict[str, float]:
    """Wall seconds of the last run of each stage that had something to do, as far as known."""
    with warehouse.read() as connection:
        rows = records(connection, "SELECT stage, (summary->>'$.seconds')::DOUBLE AS seconds FROM stages")
    return {row["stage"]: row["seconds"] for row in rows if row["seconds"] is not None}


def _seconds(connection: duckdb.DuckDBPyConnection, stage: str) -> float | None:
    rows = records(connection, "SELECT (summary->>'$.seconds')::DOUBLE AS seconds FROM stages WHERE stage = ?", [stage])
    return rows[0]["seconds"] if rows else None


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


def stored_details(connection: duckdb.DuckDBPyConnection, stage: str) -> dict[str, Any]:
    """All details of a stage as it was recorded last, {} if it never ran."""
    rows = records(connection, "SELECT summary FROM stages WHERE stage = ?", [stage])
    return json.loads(rows[0]["summary"])["details"] if rows else {}


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
