"""The store does not grow with the number of edits: what nobody can go back to is deleted."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from acme_rag_pipeline.embedding import cache as cache_module
from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline_tests.conftest import TRAVEL
from acme_rag_pipeline_tests.increments import oracle

ROUNDS = 10


class RandomVectors(Encoder):
    """An encoder without a model: these tests are about rows, not about what is in them."""

    def __init__(self, digest: str) -> None:
        super().__init__(Path(), digest)

    def encode_passages(self, rendered: list[str]) -> np.ndarray:  # type: ignore[override]
        return np.random.default_rng(0).normal(size=(len(rendered), 384)).astype(np.float32)

    encode_queries = encode_passages


@pytest.mark.slow
def test_many_edits_leave_a_store_as_small_as_a_fresh_one(
    documents: Path, store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    tuning = {"generator": "offline", "serving": {"reader_grace_seconds": 0}}
    settings = settings_for(**tuning)
    oracle.run(store, settings, oracle.EVERYTHING)
    (store.work / "training").mkdir(parents=True)
    for age, name in enumerate(("1-served.pt", "1-twin.pt", "0-twin.pt"), start=1):
        (store.work / "training" / name).write_bytes(b"a killed training's weights")
        # Written within one tick of the file system's clock, they would be of one age.
        os.utime(store.work / "training" / name, (time.time() - age, time.time() - age))
    with oracle.watched():
        for number in range(ROUNDS):
            (documents / "travel.md").write_text(TRAVEL.replace("600 euros", f"{number} euros"), encoding="utf-8")
            oracle.run(store, settings, oracle.REFRESH if number % 8 else oracle.EVERYTHING)
        oracle.run(store, settings, oracle.EVERYTHING)
        fresh = Store(tmp_path / "fresh", wait_seconds=10)
        fresh.root.mkdir()
        shutil.copytree(store.models, fresh.models)
        oracle.run(fresh, settings_for(store=str(fresh.root), **tuning), oracle.EVERYTHING)
    # Not counted: the base model, which would hide everything else.
    for part in ("lancedb", "cache", "warehouse.duckdb"):
        ours, theirs = (sum(map(_bytes, (root / part, root / f"{part}.wal"))) for root in (store.root, fresh.root))
        assert ours <= 1.5 * theirs, part
    table = vectors.open_table(vectors.connect(store.lancedb), read_pointer(store.pointer).table)
    assert table is not None
    assert len(table.list_versions()) == 1
    # The newest checkpoint is what the next training goes on from.
    assert sorted(path.name for path in (store.work / "training").iterdir()) == ["1-served.pt", "1-twin.pt"]
    served = oracle.rows(store, "SELECT count(*) AS n FROM served_versions")[0]["n"]
    assert served <= 102


def test_vectors_of_gone_texts_stay_up_to_a_number_and_the_longest_unused_go_first(tmp_path: Path) -> None:
    cache, encoder = EmbeddingCache(tmp_path / "e.duckdb"), RandomVectors("a" * 64)
    texts = [f"text {number}" for number in range(60)]
    cache.passages(encoder, texts)
    cache.queries(encoder, texts[:5])
    hashes = [sha256_text(text) for text in texts]
    # The first text is the oldest row, but it was in use until now.
    assert cache.forget_unused({*hashes[:10], hashes[59]}, set(hashes[:5]), keep=100) == 0
    assert cache.forget_unused({*hashes[:10], hashes[59]}, set(hashes[:5]), keep=50) == 0
    assert cache.forget_unused(set(hashes[1:10]), set(hashes[:5]), keep=40) == 11
    assert cache.passages(encoder, [*texts[:10], texts[59]])[1] == 0, "in use until now, and still there"
    assert cache.queries(encoder, texts[:5])[1] == 0
    assert cache.passages(encoder, texts)[1] == 11


def test_a_text_that_came_back_counts_as_in_use(tmp_path: Path) -> None:
    cache, encoder = EmbeddingCache(tmp_path / "e.duckdb"), RandomVectors("a" * 64)
    texts = [f"text {number}" for number in range(30)]
    cache.passages(encoder, texts)
    hashes = [sha256_text(text) for text in texts]
    assert cache.forget_unused(set(hashes[10:]), set(), keep=20) == 0
    assert cache.forget_unused(set(hashes[:10]), set(), keep=20) == 0
    assert cache.forget_unused(set(hashes[10:]), set(), keep=5) == 0
    assert cache.forget_unused(set(hashes[:10]), set(), keep=5) == 10
    assert cache.passages(encoder, texts[:10])[1] == 0


def test_the_cache_gives_the_space_of_a_forgotten_model_back(tmp_path: Path) -> None:
    path = tmp_path / "e.duckdb"
    cache, kept, gone = EmbeddingCache(path), RandomVectors("a" * 64), RandomVectors("b" * 64)
    few, many = ([f"text {number}" for number in range(n)] for n in (200, 6000))
    before = cache.passages(kept, few)[0]
    small = path.stat().st_size
    cache.passages(gone, many)
    assert path.stat().st_size > 4 * small
    assert cache.forget_encoders({kept.digest}) == len(many)
    assert path.stat().st_size <= 2 * small
    again, encoded = cache.passages(kept, few)
    assert encoded == 0
    assert np.array_equal(again, before)
    assert [file.name for file in tmp_path.iterdir()] == ["e.duckdb"]


def _bytes(path: Path) -> int:
    if path.is_dir():
        return oracle.size_of(path)
    return path.stat().st_size if path.exists() else 0


def test_another_process_that_opens_the_cache_leaves_what_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "e.duckdb"
    cache, encoder = EmbeddingCache(path), RandomVectors("a" * 64)
    cache.passages(encoder, ["text"])
    shrunk = tmp_path / ".shrunk-e.duckdb"
    shrunk.write_bytes(b"half of it")
    assert EmbeddingCache(path).passages(encoder, ["text"])[1] == 0
    assert shrunk.exists()


def test_vectors_out_of_use_are_looked_for_when_enough_came_or_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache_module, "KEEP_UNUSED", 40)
    cache, encoder = EmbeddingCache(tmp_path / "e.duckdb"), RandomVectors("a" * 64)
    cache.passages(encoder, [f"text {number}" for number in range(100)])
    assert cache.changed_since_collection(100)
    cache.remember_collection(100)
    assert not cache.changed_since_collection(100)
    assert cache.changed_since_collection(80), "a folder is gone"
    cache.passages(encoder, [f"new {number}" for number in range(10)])
    assert cache.changed_since_collection(110)
