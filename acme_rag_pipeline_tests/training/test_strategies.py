"""The other strategies: a query tower that leaves the passages alone, and adapters that end as plain weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.evaluation.golden import resolve_golden_queries
from acme_rag_pipeline.pairs.curated import resolve_curated_pairs
from acme_rag_pipeline.pairs.synthetic import write_pairs
from acme_rag_pipeline.pairs.training_set import build_training_set
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder, install_base, newest_candidate
from acme_rag_pipeline.retrieval.retriever import Retriever
from acme_rag_pipeline.serving import decisions, serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline.store.stages import StageResult
from acme_rag_pipeline.training.candidate import train_candidate

pytestmark = pytest.mark.slow


def build_up_to_training_set(store: Store, settings: Settings) -> None:
    for stage in (
        ingest_documents,
        split_documents,
        index.index_base,
        resolve_curated_pairs,
        write_pairs,
        resolve_golden_queries,
        build_training_set,
    ):
        stage(store, settings)


def trained(store: Store, settings: Settings) -> StageResult:
    build_up_to_training_set(store, settings)
    return train_candidate(store, settings)


@pytest.fixture
def tuning() -> dict[str, Any]:
    return {"epochs": 1, "minimum_pairs": 5, "batch_size": 8}


def test_a_query_tower_leaves_the_passages_alone(
    store: Store, settings_for: Callable[..., Settings], documents: Path, tuning: dict[str, Any]
) -> None:
    settings = settings_for(training=tuning | {"strategy": "query_only"})
    done = trained(store, settings)
    base = install_base(store, settings)
    assert done.details["model_digest"] != base.digest
    assert done.details["passage_digest"] == base.digest
    card = models.model_folder(store, done.details["model_digest"]) / "README.md"
    assert f"by the base model `{base.digest[:16]}`: this one encodes queries only" in card.read_text(encoding="utf-8")
    indexed = index.index_candidate(store, settings)
    assert indexed.details["embedded"] == 0
    assert indexed.details["table"] == PassageEncoder(base.digest, "none").table
    candidate = newest_candidate(store)
    assert candidate is not None
    serve.serve(store, settings)
    before = Retriever.open(store.root).search("may I work from abroad", k=5)
    decisions.append(store, encoder=candidate, recipe="dense", verdict="promoted", reason="by hand")
    served = serve.serve(store, settings)
    pointer = read_pointer(store.pointer)
    assert served.details["embedded"] == 0
    assert (pointer.model_digest, pointer.table) == (candidate.model_digest, indexed.details["table"])
    after = Retriever.open(store.root).search("may I work from abroad", k=5)
    assert [hit.score for hit in after] != [hit.score for hit in before]
    # The base encodes the passages, so it outlives every clean-up.
    assert models.model_folder(store, base.digest).is_dir()
    assert Retriever.open(store.root).search("FLEX days", k=1, retriever="fine_tuned")[0].doc_path == "hr/leave.md"


def test_adapters_end_as_plain_weights(
    store: Store, settings_for: Callable[..., Settings], documents: Path, tuning: dict[str, Any]
) -> None:
    from safetensors import safe_open

    settings = settings_for(training=tuning | {"strategy": "lora"})
    done = trained(store, settings)
    base = install_base(store, settings)
    assert done.details["model_digest"] != base.digest
    names = []
    for digest in (base.digest, done.details["model_digest"]):
        with safe_open(str(models.model_folder(store, digest) / "model.safetensors"), "pt") as weights:
            names.append(set(weights.keys()) - {"embeddings.position_ids"})
    assert names[0] == names[1]
    assert index.index_candidate(store, settings).details["embedded"] > 0
