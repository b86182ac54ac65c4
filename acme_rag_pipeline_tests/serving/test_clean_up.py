"""Clean-up keeps what a reader or a rollback needs for as long as is promised, and then lets it go without any work."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.retrieval import Retriever, index
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder, install_base
from acme_rag_pipeline.retrieval.sentences import sentences
from acme_rag_pipeline.serving import clean_up, decisions, serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.arms_file import known_arms
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline_tests.conftest import TRAVEL, files_of
from acme_rag_pipeline_tests.increments import oracle

EDITS = 6
QUERY = "hotel limit in Rotterdam"


@pytest.fixture
def settings(documents: Path, settings_for: Callable[..., Settings]) -> Settings:
    return settings_for()


def edit(documents: Path, number: int) -> None:
    (documents / "travel.md").write_text(TRAVEL.replace("165 euros", f"{number} euros"), encoding="utf-8")


def table_of(store: Store, name: str, version: int | None = None) -> Any:
    table = vectors.open_table(vectors.connect(store.lancedb), name, version)
    assert table is not None
    return table


def rows_of(table: Any) -> list[dict[str, Any]]:
    return table.search().limit(1000).to_arrow().to_pylist()


def test_a_superseded_version_stays_for_the_grace_time_and_leaves_with_a_run_that_has_nothing_else_to_do(
    store: Store, settings: Settings, documents: Path
) -> None:
    oracle.run(store, settings, oracle.REFRESH)
    first = read_pointer(store.pointer)
    for number in range(EDITS):
        edit(documents, number)
        oracle.run(store, settings, oracle.REFRESH)
    held = table_of(store, first.table, first.lance_version)
    assert any("165 euros" in row["text"] for row in rows_of(held))
    assert held.search("Rotterdam", query_type="fts", fts_columns=vectors.SEARCH_COLUMN).limit(5).to_list()

    an_hour_ago = datetime.now(UTC) - timedelta(seconds=settings.serving.reader_grace_seconds + 1)
    with store.warehouse.write() as connection:
        connection.execute(
            "UPDATE served_versions SET superseded_at = ? WHERE superseded_at IS NOT NULL", [an_hour_ago]
        )
    results = oracle.run(store, settings, oracle.REFRESH)
    assert all(result.unchanged for result in results.values())
    assert len(table_of(store, first.table).list_versions()) == 1
    assert len(oracle.rows(store, "SELECT * FROM served_versions")) == 1
    before = files_of(store)
    assert all(result.unchanged for result in oracle.run(store, settings, oracle.REFRESH).values())
    assert files_of(store) == before
    assert Retriever.open(store.root).search(QUERY)


def test_models_and_tables_that_a_setting_lets_go_leave_with_the_next_run(store: Store, settings: Settings) -> None:
    oracle.run(store, settings, oracle.REFRESH)
    base = install_base(store, settings).digest
    for prefix in ("heading_path", "none"):
        encoder = PassageEncoder(base, prefix)  # type: ignore[arg-type]
        decisions.append(store, encoder=encoder, recipe="dense", verdict=decisions.PROMOTED, reason="by hand")
        serve.serve(store, settings)
    assert len(vectors.names(vectors.connect(store.lancedb))) == 2
    tuned = settings.serving.model_copy(update={"keep_promotions": 1, "reader_grace_seconds": 0})
    assert serve.serve(store, settings.model_copy(update={"serving": tuned})).unchanged
    assert vectors.names(vectors.connect(store.lancedb)) == [read_pointer(store.pointer).table]


def test_the_version_of_an_arm_survives_the_clean_up_beside_a_killed_write(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    settings = settings_for(serving={"reader_grace_seconds": 0})
    oracle.run(store, settings, oracle.REFRESH)
    base = install_base(store, settings).digest
    headed = PassageEncoder(base, "heading_path")
    decisions.append(store, encoder=headed, recipe="dense", verdict=decisions.PROMOTED, reason="by hand")
    before = Retriever.open(store.root).search(QUERY, retriever="base_hybrid")
    # A run that was killed in the middle of writing the base's table; then another model is served.
    killed = table_of(store, known_arms(store)["base"]["table"])
    killed.delete("doc_id = 'travel.md'")
    killed.optimize()
    serve.serve(store, settings)
    assert read_pointer(store.pointer).table == headed.table
    assert Retriever.open(store.root).search(QUERY, retriever="base_hybrid") == before


def test_a_table_that_waits_for_a_rollback_loses_deleted_text_at_once_and_encodes_nothing(
    store: Store, settings: Settings, documents: Path
) -> None:
    oracle.run(store, settings, oracle.REFRESH)
    base = install_base(store, settings).digest
    waiting = PassageEncoder(base, "heading_path")
    served: list[tuple[PassageEncoder, Any]] = [
        (waiting, "hybrid"),
        (PassageEncoder(base, "none"), "dense"),
    ]
    for encoder, recipe in served:
        decisions.append(store, encoder=encoder, recipe=recipe, verdict=decisions.PROMOTED, reason="by hand")
        serve.serve(store, settings)
    pinned = int(table_of(store, waiting.table).version)
    leave = (documents / "hr/leave.md").read_text(encoding="utf-8")
    (documents / "hr/leave.md").write_text(leave.replace("## Evergreen", "## Sabbatical"), encoding="utf-8")
    (documents / "travel.md").unlink()
    with oracle.watched() as work:
        oracle.run(store, settings, oracle.REFRESH)
        edited = list(work.passages)
        live = {(row["chunk_id"], row["text"]) for row in oracle.rows(store, "SELECT chunk_id, text FROM chunks")}
        held = rows_of(table_of(store, waiting.table))
        assert held
        assert {(row["id"], row["text"]) for row in held} < live
        assert not any("Evergreen" in row["metadata"]["heading_path"] for row in held)
        assert rows_of(table_of(store, waiting.table, pinned)), "its readers have an hour"
        of_live = {part for _, text in live for part in (text, *sentences(text))}
        assert set(edited) <= of_live, "nothing was encoded for it"
        serve.rollback(store, settings)
    assert read_pointer(store.pointer).table == waiting.table
    assert {(row["id"], row["text"]) for row in rows_of(table_of(store, waiting.table))} == live


def test_half_written_checkpoints_of_killed_trainings_leave_unless_one_trains(
    store: Store, settings: Settings, documents: Path
) -> None:
    oracle.run(store, settings, oracle.REFRESH)
    folder = store.work / "training"
    folder.mkdir(parents=True)
    names = {"0123456789abcdef-twin.tmp", "0123456789abcdef-twin.pt", "fedcba9876543210-served.tmp"}
    for name in names:
        (folder / name).write_bytes(b"half of a training")
    edit(documents, 1)
    with store.writer("a training", lock="training"):
        oracle.run(Store(store.root), settings, oracle.REFRESH)
        assert {path.name for path in folder.iterdir()} == names
    edit(documents, 2)
    oracle.run(store, settings, oracle.REFRESH)
    assert [path.name for path in folder.iterdir()] == ["0123456789abcdef-twin.pt"]


def test_tables_and_folders_of_people_stay(store: Store, settings: Settings, documents: Path) -> None:
    oracle.run(store, settings, oracle.REFRESH)
    served = table_of(store, read_pointer(store.pointer).table)
    vectors.connect(store.lancedb).create_table("my_copy", served.to_arrow())
    (store.models / "my-experiment").mkdir()
    (store.models / ("0" * 64)).mkdir()
    assert clean_up.due(store, settings), "a model that nobody knows"
    edit(documents, 1)
    oracle.run(store, settings, oracle.REFRESH)
    assert "my_copy" in vectors.names(vectors.connect(store.lancedb))
    assert [(store.models / name).exists() for name in ("my-experiment", "0" * 64)] == [True, False]
    assert not clean_up.due(store, settings)


def test_a_run_with_nothing_to_do_leaves_readers_the_table_that_another_run_brought_further(
    store: Store, settings: Settings, documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle.run(store, settings, oracle.REFRESH)
    before = known_arms(store)["base"]
    original, runs = index.holds, []

    def overtaken_once(store: Store, details: Any) -> bool:
        found = original(store, details)
        if not runs:
            runs.append(edit(documents, 1))
            oracle.run(Store(store.root), settings, oracle.REFRESH)
        return found

    monkeypatch.setattr(index, "holds", overtaken_once)
    index.index_base(store, settings)
    after = known_arms(store)["base"]
    assert after["lance_version"] > before["lance_version"]
    assert int(table_of(store, after["table"]).version) == after["lance_version"]
