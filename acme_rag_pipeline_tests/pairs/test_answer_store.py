"""Paid answers outlive a warehouse that another process holds, and a run that gives up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.pairs.answer_store import AnswerStore, commit_waiting
from acme_rag_pipeline.pairs.generators import Generator
from acme_rag_pipeline.pairs.llm import LLMAnswer, LLMCall
from acme_rag_pipeline.pairs.passage import WrittenQuery
from acme_rag_pipeline.pairs.synthetic import write_pairs
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.warehouse import WarehouseBusy
from acme_rag_pipeline_tests.llm_server import Act, ScriptedLLM, ok

GENERATOR = Generator("openai", ("m",), {}, {})
_HOLD = """
import sys, time, duckdb
while True:
    try:
        connection = duckdb.connect(sys.argv[1], read_only=True)
        break
    except duckdb.IOException:
        time.sleep(0.01)
print("held", flush=True)
sys.stdin.read()
"""


class Holder:
    """Another process that has the warehouse open, even if only for reading."""

    def __init__(self, warehouse: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(warehouse)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "held\n"

    def let_go(self) -> None:
        self._process.communicate("")


@contextmanager
def held(store: Store) -> Iterator[None]:
    holder = Holder(store.warehouse.path)
    try:
        yield
    finally:
        holder.let_go()


def call(number: int) -> LLMCall:
    return LLMCall(datetime(2026, 1, 1, 0, 0, number, tzinfo=UTC), "m", f"h{number}", "ok", 100, 20, 0.1, "")


def answer(number: int) -> LLMAnswer:
    return LLMAnswer(f"h{number}", [WrittenQuery(f"question\u2028 {number}?", "question", "llm")], 100, 20)


def stored(store: Store) -> tuple[list[str], list[str]]:
    """Prompt hashes of answers and of calls."""
    with store.warehouse.read() as connection:
        return tuple(
            [row[0] for row in connection.execute(f"SELECT prompt_hash FROM {table} ORDER BY 1").fetchall()]
            for table in ("answers", "llm_calls")
        )  # type: ignore[return-value]


@pytest.fixture
def impatient(store: Store) -> Store:
    """The same store for a writer that waits for nobody; its warehouse exists."""
    assert stored(store) == ([], [])
    return Store(store.root, wait_seconds=0)


def test_what_cannot_be_committed_waits_in_a_file_and_comes_with_the_next_commit(impatient: Store) -> None:
    sink = AnswerStore(impatient, GENERATOR)
    with held(impatient):
        sink.commit([call(1)], [answer(1)])
        sink.commit([call(2)], [answer(2)])
        with pytest.raises(WarehouseBusy):
            commit_waiting(impatient)
    sink.commit([call(3)], [answer(3)])
    assert stored(impatient) == (["h1", "h2", "h3"], ["h1", "h2", "h3"])
    assert not list(impatient.work.iterdir())


def test_what_waits_is_stored_once_whatever_was_killed_meanwhile(impatient: Store) -> None:
    sink = AnswerStore(impatient, GENERATOR)
    with held(impatient):
        sink.commit([call(1)], [answer(1)])
    (file,) = impatient.work.iterdir()
    kept = file.read_bytes()
    commit_waiting(impatient)
    # Killed before the file was removed, and before that in the middle of a line.
    file.write_bytes(kept + kept.strip()[:-9])
    with held(impatient):
        sink.commit([call(2)], [answer(2)])
    sink.commit([call(2)], [answer(2)])  # offered once more
    assert stored(impatient) == (["h1", "h2"], ["h1", "h2"])


def test_what_an_earlier_version_set_aside_is_stored(impatient: Store) -> None:
    sink = AnswerStore(impatient, GENERATOR)
    with held(impatient):
        sink.commit([call(1)], [answer(1)])
    (file,) = impatient.work.iterdir()
    rows = [json.loads(line) for line in file.read_text().split("\n") if line]
    assert [row.pop("parameters_hash") for table, row in rows if table == "llm_calls"] == [GENERATOR.parameters_hash]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sink.commit([call(2)], [answer(2)])
    assert stored(impatient) == (["h1", "h2"], ["h1", "h2"])


def test_no_paid_answer_is_lost_when_another_process_holds_the_warehouse(
    chunked: Store, settings_for: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    holders: list[Holder] = []

    def act(number: int, body: dict[str, Any]) -> Act:
        if number == 2:
            holders.append(Holder(chunked.warehouse.path))
        return ok(f"question {number} of somebody?")

    with ScriptedLLM(act) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        settings = settings_for(generator="openai", pairs={"concurrency": 1})
        impatient = Store(chunked.root, wait_seconds=0)
        # It asks on, but cannot read its answers back.
        with pytest.raises(WarehouseBusy):
            write_pairs(impatient, settings)
        asked = len(server.requests)
        for holder in holders:
            holder.let_go()
        result = write_pairs(impatient, settings)
        chunks = result.details["chunks"]
        assert asked > 3
        assert len(server.requests) == chunks
        assert result.details["unanswered"] == 0
    assert len(stored(chunked)[0]) == len(stored(chunked)[1]) == chunks
