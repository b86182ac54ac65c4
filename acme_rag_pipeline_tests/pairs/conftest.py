"""Stages of the small company up to the training set, without training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.evaluation.golden import resolve_golden_queries
from acme_rag_pipeline.pairs.curated import resolve_curated_pairs
from acme_rag_pipeline.pairs.synthetic import write_pairs
from acme_rag_pipeline.pairs.training_set import build_training_set
from acme_rag_pipeline.retrieval.index import index_base
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult

Run = Callable[..., dict[str, StageResult]]
STAGES = (
    ingest_documents,
    split_documents,
    resolve_curated_pairs,
    write_pairs,
    resolve_golden_queries,
    index_base,
    build_training_set,
)


@pytest.fixture
def chunked(documents: Path, store: Store, settings_for: Callable[..., Settings]) -> Store:
    """A store with the small company's chunks."""
    ingest_documents(store, settings_for())
    split_documents(store, settings_for())
    return store


@pytest.fixture
def run_all(documents: Path, store: Store, settings_for: Callable[..., Settings]) -> Run:
    """Run every stage up to the training set; results by stage."""

    def run(**given: object) -> dict[str, StageResult]:
        settings = settings_for(**given)
        return {result.stage: result for stage in STAGES for result in [stage(store, settings)]}

    return run
