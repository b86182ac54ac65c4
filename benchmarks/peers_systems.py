"""The systems that `peers.py` compares: each learns from the same pairs and leaves an encoder of queries and passages."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import sys
import time
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from acme_rag_pipeline.embedding.base_model import functional_files, model_digest
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.embedding.general_probe import probe_entries
from acme_rag_pipeline.evaluation.golden import JudgedQuery, judged_queries
from acme_rag_pipeline.retrieval.passage_encoder import (
    BASE_PREFIX,
    PassageEncoder,
    embedding_cache,
    install_base,
    newest_candidate,
)
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.written_queries import written_queries
from acme_rag_pipeline.training.candidate import train_candidate
from acme_rag_pipeline.training.rows import KeptPair

BASE, OURS = "base", "ours"


@dataclass(frozen=True)
class Trained:
    """What a system leaves behind.

    Attributes:
        encoder: its model lies in the copied store, or its query vectors in the embedding cache.
        seconds: wall clock from start weights to the finished model.
        pairs_per_second: of the training loop, each pair counted once an epoch.
        note: what the table should say about it.
    """

    encoder: PassageEncoder
    seconds: float = 0.0
    pairs_per_second: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class Bench:
    """The copied store, and what every system is given."""

    store: Store
    settings: Settings
    work: Path
    pairs: Sequence[KeptPair]

    @property
    def base_folder(self) -> Path:
        """The start weights."""
        return models.model_folder(self.store, install_base(self.store, self.settings).digest)

    def install(self, saved: Path) -> PassageEncoder:
        """Put a sentence-transformers directory into the copied store."""
        digest = model_digest(saved)
        models.install(self.store, digest, saved, functional_files(saved), {})
        return PassageEncoder(digest, BASE_PREFIX)


def untrained(bench: Bench) -> Trained:
    """The base model."""
    return Trained(PassageEncoder(bench.base_folder.name, BASE_PREFIX))


def ours(bench: Bench) -> Trained:
    """The stage as a retrain runs it."""
    with bench.store.warehouse.write() as connection:
        # The stage would find that it has trained on these pairs before.
        connection.execute("DELETE FROM stages WHERE stage = 'fine_tuned_model'")
        connection.execute("DELETE FROM models")
    started = time.monotonic()
    details = train_candidate(bench.store, bench.settings).details
    seconds = time.monotonic() - started
    encoder = newest_candidate(bench.store)
    if encoder is None:
        raise SystemExit(f"no candidate was trained: {details['outcome']}")
    note = f"{details['outcome']}; share {details['share']} of the tuned weights, prefix {encoder.prefix}"
    return Trained(encoder, seconds, details["pairs_per_second"], note)


def sentence_transformers(bench: Bench) -> Trained:
    """`SentenceTransformerTrainer` with no arguments but model, data and loss."""
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    started = time.monotonic()
    model = SentenceTransformer(str(bench.base_folder))
    rows = {"anchor": [p.query for p in bench.pairs], "positive": [p.passage.text for p in bench.pairs]}
    trainer = SentenceTransformerTrainer(
        model=model, train_dataset=Dataset.from_dict(rows), loss=MultipleNegativesRankingLoss(model)
    )
    loop = time.monotonic()
    trainer.train()
    looped = time.monotonic() - loop
    model.save_pretrained("saved", create_model_card=False)
    seconds = time.monotonic() - started
    arguments = trainer.args
    note = f"batch {arguments.train_batch_size}, {arguments.num_train_epochs:g} epochs, {arguments.learning_rate:g}"
    shown = len(bench.pairs) * arguments.num_train_epochs
    return Trained(bench.install(Path("saved")), seconds, shown / looped, note)


def llama_index(bench: Bench) -> Trained:
    """`SentenceTransformersFinetuneEngine` with its default recipe."""
    engines = _engines()
    started = time.monotonic()
    # Its default of 50 evaluation steps without a validation set is refused by sentence-transformers 6.
    engine = engines.SentenceTransformersFinetuneEngine(
        _qa_dataset(bench), model_id=str(bench.base_folder), model_output_path="saved", evaluation_steps=0
    )
    loop = time.monotonic()
    engine.finetune()
    finished = time.monotonic()
    note = f"batch {engine.loader.batch_size}, {engine.epochs} epochs, 2e-05"
    shown = len(bench.pairs) * engine.epochs
    return Trained(bench.install(Path("saved")), finished - started, shown / (finished - loop), note)


def llama_index_adapter(bench: Bench) -> Trained:
    """`EmbeddingAdapterFinetuneEngine` with no arguments but the data and the embedding model."""
    from llama_index.embeddings.huggingface import HuggingFaceEmbedding

    engines = _engines()
    started = time.monotonic()
    embedding = HuggingFaceEmbedding(model_name=str(bench.base_folder))
    engine = engines.EmbeddingAdapterFinetuneEngine(_qa_dataset(bench), embedding, model_output_path="saved")
    loop = time.monotonic()
    engine.finetune()
    finished = time.monotonic()
    adapted = engine.get_finetuned_model()
    digest = fingerprint("adapter", [weights.tolist() for weights in engine.model.state_dict().values()])
    # The evaluation looks into the cache first: there is no model directory for an adapter. It asks for what is judged, for
    # the passages' own queries, and for what all questions have in common.
    asked = itertools.chain(
        (query.query for query in judged(bench)),
        *written_queries(bench.store.warehouse).values(),
        (query for query, _ in probe_entries()),
    )
    embedding_cache(bench.store).queries(_Adapted(bench.base_folder, digest, adapted), list(dict.fromkeys(asked)))
    note = f"passages as the base encodes them; batch {engine.batch_size}, 1 epoch, 2e-05"
    encoder = PassageEncoder(digest, BASE_PREFIX, bench.base_folder.name)
    return Trained(encoder, finished - started, len(bench.pairs) / (finished - loop), note)


class _Adapted(Encoder):
    """LlamaIndex's adapted embedding model as an encoder of queries."""

    def __init__(self, folder: Path, digest: str, embedding: Any) -> None:
        super().__init__(folder, digest)
        self._embedding = embedding

    def encode_queries(self, queries: Sequence[str]) -> np.ndarray:
        vectors = np.array([self._embedding.get_query_embedding(query) for query in queries], dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


SYSTEMS: dict[str, Callable[[Bench], Trained]] = {
    BASE: untrained,
    "llama-index-adapter": llama_index_adapter,
    "llama-index": llama_index,
    "sentence-transformers": sentence_transformers,
    OURS: ours,
}


def _engines() -> types.ModuleType:
    """The package of the embedding engines, without `llama_index.finetuning`'s own imports of four vendors' clients."""
    found = importlib.util.find_spec("llama_index.finetuning")
    if found is None or found.submodule_search_locations is None:
        raise SystemExit("llama-index-finetuning is not installed: see the first lines of this file")
    shell = types.ModuleType("llama_index.finetuning")
    shell.__path__ = list(found.submodule_search_locations)
    cohere = types.ModuleType("llama_index.postprocessor.cohere_rerank")
    cohere.CohereRerank = object  # type: ignore[attr-defined]
    sys.modules.update({shell.__name__: shell, cohere.__name__: cohere})
    return importlib.import_module("llama_index.finetuning.embeddings")


def _qa_dataset(bench: Bench) -> Any:
    from llama_index.finetuning.embeddings.common import EmbeddingQAFinetuneDataset

    return EmbeddingQAFinetuneDataset(
        queries={pair.pair_id: pair.query for pair in bench.pairs},
        corpus={passage.chunk_id: passage.text for passage in live_passages(bench.store.warehouse)},
        relevant_docs={pair.pair_id: [pair.passage.chunk_id] for pair in bench.pairs},
    )


def judged(bench: Bench) -> list[JudgedQuery]:
    """The judged queries that have evidence in this store."""
    queries, _ = judged_queries(bench.store, bench.work / "judged")
    if not queries:
        raise SystemExit("no judged query has evidence in the documents of this store")
    return queries
