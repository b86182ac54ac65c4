"""One store whose promoted retriever is a tuned model, for everything that other libraries read from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from lancedb.table import Table

from acme_rag_pipeline.chunking import chunks
from acme_rag_pipeline.documents import ingest
from acme_rag_pipeline.embedding import encoder
from acme_rag_pipeline.evaluation import golden
from acme_rag_pipeline.pairs import curated, synthetic, training_set
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.passage_encoder import install_base, newest_candidate
from acme_rag_pipeline.retrieval.retriever import Retriever
from acme_rag_pipeline.retrieval.table_search import SearchHit
from acme_rag_pipeline.serving import decisions, serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import Promoted, read_pointer
from acme_rag_pipeline.training import candidate
from acme_rag_pipeline_tests.conftest import write_documents

QUESTIONS = {
    "May I work from another country for a few weeks?": "remote.txt",
    "How much may a hotel in London cost?": "travel.md",
    "How long is the paid sabbatical?": "hr/leave.md",
}
STAGES = (
    ingest.ingest_documents,
    chunks.split_documents,
    index.index_base,
    golden.resolve_golden_queries,
    curated.resolve_curated_pairs,
    synthetic.write_pairs,
    training_set.build_training_set,
    candidate.train_candidate,
    index.index_candidate,
)


@dataclass(frozen=True)
class Served:
    """A served store as an outsider finds it: the pointer and what it names."""

    store: Store
    pointer: Promoted

    @property
    def model_dir(self) -> Path:
        return self.store.root / self.pointer.model_dir

    def table(self) -> Table:
        """The promoted table, pinned to the version that the pointer names."""
        table = vectors.open_table(vectors.connect(self.store.lancedb), self.pointer.table, self.pointer.lance_version)
        assert table is not None
        return table

    def rows(self) -> list[dict]:
        return self.table().search().limit(1000).to_arrow().to_pylist()

    def search(self, question: str, k: int) -> list[SearchHit]:
        """What our own retriever answers."""
        return Retriever.open(self.store.root).search(question, k=k)


@pytest.fixture(autouse=True)
def _fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours computes as the others do on every processor: bf16 may swap passages that are about equally near."""
    monkeypatch.setattr(encoder, "native_bf16", lambda device: False)


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """The small company, served by a model that was tuned on it."""
    root = tmp_path_factory.mktemp("interop")
    write_documents(root / "documents")
    settings = Settings.load(
        root=root,
        documents=str(root / "documents"),
        store=str(root / "store"),
        generator="offline",
        training={"epochs": 1, "minimum_pairs": 5, "batch_size": 8, "precision": "fp32"},
        pairs={"queries_per_chunk": 2},
    )
    store = Store(root / "store", wait_seconds=10)
    for stage in STAGES:
        stage(store, settings)
    tuned = newest_candidate(store)
    assert tuned is not None
    assert tuned.model_digest != install_base(store, settings).digest
    decisions.append(
        store, encoder=tuned, recipe="dense", verdict="promoted", reason="for the test", candidate_key="by hand"
    )
    serve.serve(store, settings)
    return Served(store, read_pointer(store.pointer))


def least_cosine(ours: list[list[float]] | np.ndarray, theirs: list[list[float]] | np.ndarray) -> float:
    """The smallest cosine between vectors of the same row."""
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    return float(np.min(np.sum(a * b, axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))))
