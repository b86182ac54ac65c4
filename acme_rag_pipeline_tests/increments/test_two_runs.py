"""Two runs over one store at once, a store that another run holds, a full disk, a read-only store."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.retrieval.sentences import sentences
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline_tests.conftest import write_documents
from acme_rag_pipeline_tests.increments.worker import REFRESH, TUNING, Run, rows_of, settings_of, store_of

pytestmark = pytest.mark.slow
NEWS = "\nThe canteen serves Zeppelin soup on Fridays, and nobody knows why it has that name.\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A refreshed company, for tests that leave it as it was."""
    root = tmp_path_factory.mktemp("built")
    write_documents(root / "documents")
    run = Run.start(root, stages=REFRESH).end()
    assert run.done, run.error
    return root


def served_texts(store: Store) -> list[str]:
    return sorted(hit.text for hit in Retriever.open(store.root).search("soup in the canteen", k=1000))


def test_two_runs_at_once_on_an_empty_store_do_the_work_once(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents")
    both = [Run.start(tmp_path, stages=REFRESH) for _ in range(2)]
    for run in both:
        run.end()
    assert [run.error for run in both] == ["", ""]
    store = store_of(settings_of(tmp_path))
    chunks = [row[0] for row in rows_of(store, "SELECT chunk_id FROM chunks ORDER BY 1")]
    pointer = read_pointer(store.pointer)
    table = vectors.open_table(vectors.connect(store.lancedb), pointer.table, pointer.lance_version)
    assert table is not None
    assert sorted(row["id"] for row in table.search().limit(1000).to_arrow().to_pylist()) == chunks
    assert rows_of(store, "SELECT verdict FROM promotions") == [("bootstrap",)]
    encoded = Counter(h for run in both for batch in run.batches("encoded", pointer.model_digest) for h in batch)
    texts = [row[0] for row in rows_of(store, "SELECT text FROM chunks")]
    assert encoded.keys() == {sha256_text(part) for text in texts for part in (text, *sentences(text))}
    assert set(encoded.values()) == {1}


def test_a_run_that_waited_too_long_names_who_holds_the_store(built: Path) -> None:
    (built / "documents/news.md").write_text(NEWS, encoding="utf-8")
    store = store_of(settings_of(built))
    with store.writer("base_index"):
        run = Run.start(built, stages=REFRESH, lock_seconds=1).end()
    assert run.error.startswith("StoreBusy")
    assert f"process {os.getpid()} (base_index, since" in run.error
    (built / "documents/news.md").unlink()
    assert Run.start(built, stages=REFRESH).end().done


# Nothing can be written; the warehouse cannot grow; its file can, the tables' files cannot.
@pytest.mark.parametrize("limit", [0, 5_000, 200_000, 3_000_000])
def test_a_full_disk_is_said_and_the_old_state_stays(built: Path, limit: int) -> None:
    store = store_of(settings_of(built))
    before = served_texts(store)
    (built / "documents/news.md").write_text(NEWS * 400, encoding="utf-8")
    run = Run.start(built, stages=REFRESH, disk=limit).end()
    assert run.done or run.error.startswith(("StoreUnusable: ACME_RAG_STORE", "WarehouseUnusable: ACME_RAG_STORE"))
    assert run.done or limit < 3_000_000
    assert served_texts(store) == before or run.done
    assert Run.start(built, stages=REFRESH).end().done
    assert "Zeppelin" in served_texts(store)[-1]
    (built / "documents/news.md").unlink()
    assert Run.start(built, stages=REFRESH).end().done
    assert served_texts(store) == before


# The base model is not copied whole; the checkpoint of a training is not written whole.
@pytest.mark.parametrize(("limit", "stage"), [(10_000_000, "base_index"), (95_000_000, "fine_tuned_model")])
def test_a_disk_that_is_too_small_for_a_model_is_said(tmp_path: Path, limit: int, stage: str) -> None:
    write_documents(tmp_path / "documents")
    # Of all layers, a checkpoint is larger than the model.
    run = Run.start(
        tmp_path, disk=limit, base_model="all-MiniLM-L6-v2", training=TUNING["training"] | {"frozen_layers": 0}
    ).end()
    assert run.error.startswith("StoreUnusable: ACME_RAG_STORE")
    assert run.stage == stage


def test_a_read_only_store_is_said_and_read(built: Path) -> None:
    store = store_of(settings_of(built))
    before = served_texts(store)
    folders = [store.root, *(path for path in store.root.rglob("*"))]
    modes = {path: path.stat().st_mode for path in folders}
    try:
        for path in reversed(folders):
            path.chmod(modes[path] & ~0o222)
        unchanged = Run.start(built, stages=REFRESH, disk="read-only").end()
        assert unchanged.done, unchanged.error
        (built / "documents/news.md").write_text(NEWS, encoding="utf-8")
        run = Run.start(built, stages=REFRESH, disk="read-only").end()
        assert run.error.startswith(("StoreUnusable: ACME_RAG_STORE", "WarehouseUnusable: ACME_RAG_STORE"))
        assert served_texts(store) == before
    finally:
        for path in folders:
            path.chmod(modes[path])
    assert Run.start(built, stages=REFRESH).end().done
    assert "Zeppelin" in served_texts(store)[-1]
    (built / "documents/news.md").unlink()
    assert Run.start(built, stages=REFRESH).end().done


def test_a_store_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents")
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    run = Run.start(tmp_path, stages=REFRESH, store=str(tmp_path / "file/store")).end()
    assert "Unusable: ACME_RAG_STORE" in run.error.splitlines()[0]
