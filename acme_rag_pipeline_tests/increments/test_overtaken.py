"""A run that waits for another must not record what the other wrote as made from what was there before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.retriever import Retriever
from acme_rag_pipeline.serving import serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult
from acme_rag_pipeline.store.warehouse import records

Stage = Callable[[Store, Settings], StageResult]
BEFORE: tuple[Stage, ...] = (ingest_documents, split_documents, index.index_base, index.index_candidate, serve.serve)
OLD = "# Leave\n\nEveryone has 25 days of holiday a year and asks the team lead.\n"
DRAFT = "# Leave\n\nEveryone has 40 days of holiday a year, a draft that nobody may read.\n"


@pytest.mark.parametrize("waiting", [1, 2, 4])
def test_a_revert_brings_back_what_readers_found_whoever_waited_for_whom(
    waiting: int, tmp_path: Path, settings_for: Callable[..., Settings]
) -> None:
    """Run A waits with one stage while run B writes the stages before it; then the edit is reverted."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "leave.md").write_text(OLD)
    (folder / "pay.md").write_text("# Pay\n\nPay day is the 25th.\n")
    settings = settings_for(documents=str(folder), curated_pairs="none", golden="none")

    def store() -> Store:
        return Store(tmp_path / "store", wait_seconds=30)

    def refresh() -> None:
        opened = store()
        for stage in BEFORE:
            stage(opened, settings)

    refresh()
    (folder / "pay.md").write_text("# Pay\n\nPay day is the 26th.\n")
    mine, other = store(), store()
    for stage in BEFORE[:waiting]:
        stage(mine, settings)
    with other.writer("the other run"):
        run = threading.Thread(target=BEFORE[waiting], args=(mine, settings))
        run.start()
        time.sleep(0.5)
        (folder / "leave.md").write_text(DRAFT)
        for stage in BEFORE[:waiting]:
            stage(other, settings)
    run.join()
    (folder / "leave.md").write_text(OLD)
    refresh()
    found = Retriever.open(tmp_path / "store").search("days of holiday", k=2)
    assert any("25 days" in hit.text for hit in found)
    assert not [hit for hit in found if "draft" in hit.text]
    with store().warehouse.read() as connection:
        texts = [row["text"] for row in records(connection, "SELECT text FROM chunks")]
    assert not [text for text in texts if "draft" in text]
