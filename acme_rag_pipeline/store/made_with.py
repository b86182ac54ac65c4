"""With which settings and which code the stages ran, so that a changed one is noticed by who only looks.

A stage notes a hash of them among its details. It holds nothing that is not part of the stage's own fingerprint: where it
differs, the stage does run again, and notes the new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult, record, recorded
from acme_rag_pipeline.store.warehouse import Warehouse

if TYPE_CHECKING:
    import duckdb

# The name of the hash among a stage's details.
SETTINGS_KEY = "settings_key"


def noted_keys(warehouse: Warehouse) -> dict[str, str]:
    """The hash of each stage's last run that did something; stages of an earlier version noted none."""
    with warehouse.read() as connection:
        rows = connection.execute("SELECT stage, summary->>('$.details.' || ?) FROM stages", [SETTINGS_KEY]).fetchall()
    return {stage: key for stage, key in rows if key is not None}


def note_key(store: Store, unchanged: StageResult, made_from: str, key: str) -> StageResult:
    """Have a stage that has nothing to do note its hash, where an earlier version did not; another run's is left alone."""
    if SETTINGS_KEY in unchanged.details or not store.idle("writer"):
        return unchanged
    noted = replace(unchanged, details=unchanged.details | {SETTINGS_KEY: key})
    with store.writer(unchanged.stage):
        if recorded(store.warehouse, unchanged.stage, made_from) is not None:
            with store.warehouse.write() as connection:
                record(connection, noted, made_from)
    return noted


def retrained_keys(warehouse: Warehouse) -> dict[str, str]:
    """The hashes of the stages that the last retrain trained from; nothing before the first of this version."""
    with warehouse.read() as connection:
        return dict(connection.execute("SELECT stage, settings_key FROM retrained_with").fetchall())


def remember_keys(connection: duckdb.DuckDBPyConnection, keys: Mapping[str, str]) -> None:
    """Note that a retrain has dealt with these."""
    connection.execute("DELETE FROM retrained_with")
    connection.executemany("INSERT INTO retrained_with VALUES (?, ?)", sorted(keys.items()))


def differing(known: Mapping[str, str], today: Mapping[str, str]) -> list[str]:
    """The stages whose hash is another one; of a stage that noted none nothing is known."""
    return [stage for stage, key in today.items() if known.get(stage, key) != key]
