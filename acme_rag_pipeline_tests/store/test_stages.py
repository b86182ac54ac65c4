"""A stage's seconds: those of the run that did something, and of no other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from acme_rag_pipeline.store import stages
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult, record, recorded, stage_seconds, stored_details, timed


class Clock:
    """Stands for `time`: seconds pass where a test says so."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


def test_a_stage_keeps_the_seconds_of_the_run_that_did_something(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(stages, "time", clock)
    with timed(), store.warehouse.write() as connection:
        clock.now += 12.34
        done = record(connection, StageResult("documents", "v", details={"rows": 1}), "f")
    assert done.seconds == 12.3
    with timed():
        clock.now += 5
        again = recorded(store.warehouse, "documents", "f")
    assert again == StageResult("documents", "v", unchanged=True, details={"rows": 1})
    assert again.seconds is None
    with timed(), store.warehouse.write() as connection:
        clock.now += 5
        record(connection, replace(again, details={"rows": 1, "sources": "looked at anew"}), "f")
    assert stage_seconds(store.warehouse) == {"documents": 12.3}


def test_where_nobody_timed_a_stage_nothing_is_claimed(store: Store) -> None:
    with store.warehouse.write() as connection:
        assert record(connection, StageResult("chunks", "v"), "f").seconds is None
        # As earlier versions wrote it.
        connection.execute(
            "INSERT INTO stages VALUES ('documents', 'f', 'v', '{\"counts\": {}, \"details\": {}}', now())"
        )
    assert stage_seconds(store.warehouse) == {}


def test_the_details_of_a_stage_are_those_of_its_last_run(store: Store) -> None:
    with store.warehouse.write() as connection:
        assert stored_details(connection, "documents") == {}
        for rows in (1, 2):
            record(connection, StageResult("documents", "v", details={"rows": rows, "of": ["a", None]}), "f")
        assert stored_details(connection, "documents") == {"rows": 2, "of": ["a", None]}
        assert stored_details(connection, "doc'uments") == {}
