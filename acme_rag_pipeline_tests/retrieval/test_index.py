"""The index stages follow the model, not the table alone: query towers of one base share its table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult, record


def test_a_new_query_tower_over_the_base_s_table_is_the_arm_from_then_on(
    store: Store, settings_for: Callable[..., Settings], documents: Path
) -> None:
    settings = settings_for()
    for stage in (ingest_documents, split_documents, index.index_base):
        stage(store, settings)
    base = index.install_base(store, settings).digest
    for tower in ("1" * 64, "2" * 64):
        shutil.copytree(models.model_folder(store, base), models.model_folder(store, tower))
        details = {"model_digest": tower, "passage_prefix": "none", "passage_digest": base}
        with store.warehouse.write() as connection:
            record(connection, StageResult("fine_tuned_model", tower, details=details), tower)
        done = index.index_candidate(store, settings)
        assert (done.details["model_digest"], done.details["embedded"]) == (tower, 0)
        assert index.known_arms(store)["fine_tuned"]["model_digest"] == tower
    index.arms_file(store).unlink()
    assert index.index_candidate(store, settings).unchanged
    assert index.known_arms(store)["fine_tuned"]["model_digest"] == "2" * 64
