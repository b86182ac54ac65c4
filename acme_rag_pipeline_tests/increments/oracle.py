"""The oracle of the law: a build from nothing with the same caches, and what must be equal to it."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from acme_rag_pipeline.chunking import chunks
from acme_rag_pipeline.documents import ingest
from acme_rag_pipeline.embedding import encoder
from acme_rag_pipeline.embedding.general_probe import probe_entries
from acme_rag_pipeline.evaluation import golden
from acme_rag_pipeline.pairs import curated, offline, synthetic, training_set
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder, install_base
from acme_rag_pipeline.retrieval.sentences import sentences
from acme_rag_pipeline.serving import serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.arms_file import known_arms
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline.store.stages import StageResult, record
from acme_rag_pipeline.store.warehouse import insert, records

Stage = Callable[[Store, Settings], StageResult]
REFRESH: tuple[Stage, ...] = (
    ingest.ingest_documents,
    chunks.split_documents,
    index.index_base,
    index.index_candidate,
    serve.serve,
)
EVERYTHING: tuple[Stage, ...] = (
    ingest.ingest_documents,
    chunks.split_documents,
    curated.resolve_curated_pairs,
    synthetic.write_pairs,
    golden.resolve_golden_queries,
    index.index_base,
    training_set.build_training_set,
    index.index_candidate,
    serve.serve,
)
# Every column but times. `golden_seen` and `curated_seen` are history on purpose; `answers` is what both builds share.
LIVE_TABLES = {
    "documents": "SELECT * EXCLUDE (mtime_ns, scanned_at_ns) FROM documents WHERE status <> 'deleted' ORDER BY doc_path",
    "chunks": "SELECT * FROM chunks ORDER BY chunk_id",
    "chunked_documents": "SELECT * FROM chunked_documents ORDER BY doc_path",
    "minhashes": "SELECT * FROM minhashes ORDER BY text_hash",
    "curated_pairs": "SELECT * FROM curated_pairs ORDER BY curated_id",
    "pairs": "SELECT * FROM pairs ORDER BY pair_id",
    "golden_queries": "SELECT * FROM golden_queries ORDER BY query_id",
    "golden_judgements": "SELECT * FROM golden_judgements ORDER BY judgement_id",
    "training_pairs": "SELECT * FROM training_pairs ORDER BY pair_id",
    "heading_queries": "SELECT * FROM heading_queries ORDER BY query_id",
}


@dataclass
class Work:
    """What really went through the model and the generator: the calls themselves, not what the stages report."""

    passages: list[str] = field(default_factory=list)
    queries: list[str] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)


@contextmanager
def watched() -> Iterator[Work]:
    """Count what is encoded and asked. The model and the generator are the real ones; the model loads once."""
    work = Work()
    real_encode, real_write, real_load = encoder.Encoder._encode, offline.write, encoder.load_model

    def encode(self: encoder.Encoder, texts: Sequence[str], method: str) -> np.ndarray:
        (work.passages if method == "encode_document" else work.queries).extend(texts)
        return real_encode(self, texts, method)

    def write(rendered: str) -> Any:
        work.prompts.append(rendered)
        return real_write(rendered)

    encoder.Encoder._encode = encode  # type: ignore[method-assign]
    encoder.load_model = functools.cache(real_load)
    offline.write = write
    try:
        yield work
    finally:
        encoder.Encoder._encode = real_encode  # type: ignore[method-assign]
        encoder.load_model = real_load
        offline.write = real_write


def run(store: Store, settings: Settings, stages: Sequence[Stage]) -> dict[str, StageResult]:
    """Run stages in order, as a job does."""
    return {result.stage: result for result in (stage(store, settings) for stage in stages)}


def adopt_headed_candidate(store: Store, settings: Settings) -> None:
    """Stand in for a training that chose the base's own weights with headings before the text: a second live table."""
    base = install_base(store, settings)
    details = {"model_digest": base.digest, "passage_prefix": "heading_path", "twin_digest": None}
    with store.warehouse.write() as connection:
        record(connection, StageResult("fine_tuned_model", "headed base", details=details), "headed base")


def rows(store: Store, query: str) -> list[dict[str, Any]]:
    """Rows of a query on the warehouse."""
    with store.warehouse.read() as connection:
        return records(connection, query)


def from_nothing(root: Path, store: Store, settings: Settings, stages: Sequence[Stage]) -> Store:
    """Build the documents of today in a fresh store with the same answer cache and embedding cache.

    What was promoted is history: the fresh store is told.
    """
    fresh = Store(root, wait_seconds=10)
    fresh.root.mkdir(parents=True)
    # The base model's 90 MB need no copy each time.
    fresh.models.symlink_to(store.models, target_is_directory=True)
    if store.embedding_cache.exists():
        fresh.embedding_cache.parent.mkdir()
        shutil.copyfile(store.embedding_cache, fresh.embedding_cache)
    with store.warehouse.read() as connection:
        shared = {name: records(connection, f"SELECT * FROM {name}") for name in ("answers", "promotions")}
    with fresh.warehouse.write() as connection:
        for name, held in shared.items():
            insert(connection, name, held)
    adopt_headed_candidate(fresh, settings)
    run(fresh, settings.model_copy(update={"store": root}), stages)
    return fresh


def assert_same_rows(store: Store, fresh: Store) -> None:
    """Law (a): equal to the build from nothing."""
    with store.warehouse.read() as ours, fresh.warehouse.read() as theirs:
        for name, query in LIVE_TABLES.items():
            assert records(ours, query) == records(theirs, query), name


class PlainModel:
    """The embedded model through sentence-transformers alone, in full precision: an independent second opinion."""

    def __init__(self, folder: Path) -> None:
        from sentence_transformers import SentenceTransformer

        self._model = SentenceTransformer(str(folder), device="cpu")
        self._known: dict[str, np.ndarray] = {}

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors, shape (texts, dimension)."""
        new = sorted({text for text in texts if text not in self._known})
        if new:
            encoded = self._model.encode(new, normalize_embeddings=True, show_progress_bar=False)
            self._known.update(zip(new, encoded, strict=True))
        return np.array([self._known[text] for text in texts])


@dataclass(frozen=True)
class LiveTable:
    """A table that readers search today, at the version that they open."""

    which: PassageEncoder
    name: str
    version: int

    @property
    def expanded(self) -> bool:
        """Whether it knows the queries that were written for the passages."""
        return self.name == self.which.expanded_table

    def rows(self, store: Store) -> dict[str, dict[str, Any]]:
        """Its rows by chunk id."""
        table = vectors.open_table(vectors.connect(store.lancedb), self.name, self.version)
        assert table is not None
        held = table.search().limit(100_000).to_arrow().to_pylist()
        rows = {row["id"]: row for row in held}
        assert len(rows) == len(held), self.name
        return rows


def live_tables(store: Store) -> dict[str, LiveTable]:
    """What the pointer (`promoted`) and `arms.json` name."""
    named = {"promoted": vars(read_pointer(store.pointer))} | known_arms(store)
    found = {}
    for arm, entry in named.items():
        which = PassageEncoder(entry["model_digest"], entry["passage_prefix"])
        assert entry["table"] in (which.table, which.expanded_table)
        found[arm] = LiveTable(which, entry["table"], entry["lance_version"])
    return found


def queries_written(store: Store) -> dict[str, list[str]]:
    """By chunk id what an LLM and people asked about it, in the order of a table."""
    asked: dict[str, set[str]] = {}
    if rows(store, "SELECT 1 FROM pairs WHERE origin = 'openai' LIMIT 1"):
        for row in rows(store, "SELECT * FROM training_pairs WHERE dropped_because IS NULL AND origin <> 'offline'"):
            asked.setdefault(row["chunk_id"], set()).add(row["query"])
    return {chunk_id: sorted(queries) for chunk_id, queries in asked.items()}


def assert_tables_hold_the_chunks(store: Store, plain: PlainModel) -> None:
    """Law (b): exactly one row for each chunk, same text, place, headings and vector, and its own queries; in every live table."""
    passages = {passage.chunk_id: passage for passage in live_passages(store.warehouse)}
    written = queries_written(store)
    for live in dict.fromkeys(live_tables(store).values()):
        held = live.rows(store)
        assert held.keys() == passages.keys(), live.name
        for chunk_id, row in held.items():
            _assert_row(row, passages[chunk_id])
        expected = plain.vectors([passages[i].rendered(live.which.prefix) for i in held])
        found = np.array([row["vector"] for row in held.values()])
        assert (np.sum(found * expected, axis=1) >= 0.9999).all(), live.name
        for row in held.values():
            expected = plain.vectors(sentences(row["text"]))
            found = np.frombuffer(row["sentence_vectors"], dtype="<f2").reshape(expected.shape)
            assert (np.sum(found * expected, axis=1) >= 0.999).all(), "half precision"
            if live.expanded:
                _assert_queries(row, passages[row["id"]], written.get(row["id"], []), plain)
    # Nobody takes deleted text out of a table that waits for a rollback later on.
    db = vectors.connect(store.lancedb)
    for name in vectors.names(db):
        table = vectors.open_table(db, name)
        assert table is not None
        ids = {row["id"] for row in table.search().select(["id"]).limit(100_000).to_arrow().to_pylist()}
        assert ids <= passages.keys(), name


def _assert_queries(row: dict[str, Any], passage: LivePassage, asked: Sequence[str], plain: PlainModel) -> None:
    assert row["expanded_text"] == "\n".join([passage.rendered("heading_path"), *asked])
    if not asked:
        assert row["query_shift"] is None
        return
    general = plain.vectors([query for query, _ in probe_entries()]).mean(axis=0)
    shift = np.frombuffer(row["query_shift"], dtype="<f2").astype(np.float32)
    assert np.allclose(shift, plain.vectors(asked).mean(axis=0) - general, atol=0.005)


def assert_same_tables(store: Store, fresh: Store) -> None:
    """The arms of the build from nothing, and what is promoted if both promote the same, with the same rows."""
    ours, theirs = live_tables(store), live_tables(fresh)
    assert ours.keys() == theirs.keys()
    for arm, live in ours.items():
        if arm == "promoted" and live.which != theirs[arm].which:
            continue
        assert live.name == theirs[arm].name
        held, expected = live.rows(store), theirs[arm].rows(fresh)
        assert held.keys() == expected.keys(), (arm, live.name)
        for chunk_id, row in held.items():
            _assert_like(row, expected[chunk_id])


def _assert_like(row: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same text, place and queries; vectors differ as encodings of one text in two batches do."""
    packed = {"query_shift", "sentence_vectors"} & row.keys()
    exact = row.keys() - {"vector"} - packed
    assert {name: row[name] for name in exact} == {name: expected[name] for name in exact}
    assert np.dot(row["vector"], expected["vector"]) >= 0.9999
    for name in packed:
        assert (row[name] is None) == (expected[name] is None), name
        found, like = (np.frombuffer(one[name] or b"", dtype="<f2").astype(np.float32) for one in (row, expected))
        assert np.allclose(found, like, atol=0.01), name


def _assert_row(row: dict[str, Any], passage: LivePassage) -> None:
    assert (row["doc_id"], row["text"]) == (passage.doc_path, passage.text)
    assert row["metadata"] == {
        "doc_path": passage.doc_path,
        "start_char": passage.start_char,
        "end_char": passage.end_char,
        "heading_path": passage.headings(),
    }


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder, links not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
