"""Vectors by (encoder and version of the encoding code, rendered input): each distinct input is encoded once, whatever document it stands in.

Vectors of text that is gone stay for reverts and renames: as many as there are live ones, at least `KEEP_UNUSED`; beyond
that those that have been out of use the longest leave.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from acme_rag_pipeline.embedding.encoder import Encoder, versioned
from acme_rag_pipeline.store.attachments import quoted
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.warehouse import Warehouse

COMMIT_EVERY = 256
# 15 MB at 384 dimensions.
KEEP_UNUSED = 10_000
SPARE_BYTES = 2**20
TABLE = (
    "CREATE TABLE IF NOT EXISTS embeddings("
    "encoder VARCHAR, input_hash VARCHAR, vector FLOAT[], PRIMARY KEY (encoder, input_hash))"
)
COLLECTED_TABLE = "CREATE TABLE IF NOT EXISTS collected(rows BIGINT, passages BIGINT)"
UNUSED_TABLE = "CREATE TABLE IF NOT EXISTS unused(encoder VARCHAR, input_hash VARCHAR, since TIMESTAMPTZ)"
logger = logging.getLogger(__name__)


class EmbeddingCache:
    """An append-only DuckDB file `embeddings(encoder, input_hash, vector)`, committed batch by batch; read-only it only gives.

    Args:
        path: the file; created when the first vector is stored.
        wait_seconds: how long to wait for another process that holds it.
    """

    def __init__(self, path: Path, wait_seconds: float = 60) -> None:
        self._file = Warehouse(path, wait_seconds, (TABLE,), "Delete that file: its vectors are computed again")

    def passages(self, encoder: Encoder, rendered: Sequence[str]) -> tuple[np.ndarray, int]:
        """Vectors of rendered passages, shape (texts, dimension), and how many had to be encoded."""
        return self._vectors(versioned(f"{encoder.digest}/passage"), rendered, encoder.encode_passages)

    def queries(self, encoder: Encoder, queries: Sequence[str]) -> tuple[np.ndarray, int]:
        """Vectors of queries, shape (texts, dimension), and how many had to be encoded."""
        return self._vectors(versioned(f"{encoder.digest}/query"), queries, encoder.encode_queries)

    def known_queries(self, digest: str, queries: Sequence[str]) -> dict[str, np.ndarray]:
        """Vectors of those queries that this model has encoded before, by query; nothing is encoded."""
        hashes = {sha256_text(query): query for query in queries}
        return {hashes[h]: vector for h, vector in self._load(versioned(f"{digest}/query"), set(hashes)).items()}

    def _vectors(
        self, key: str, texts: Sequence[str], encode: Callable[[Sequence[str]], np.ndarray]
    ) -> tuple[np.ndarray, int]:
        hashes = [sha256_text(text) for text in texts]
        known = self._load(key, set(hashes))
        missing = {h: text for h, text in zip(hashes, texts, strict=True) if h not in known}
        # Longest first: batches are padded little, and the estimate of the time left errs on the safe side.
        order = sorted(missing, key=lambda h: (-len(missing[h]), h))
        started = time.monotonic()
        keeps = bool(order) and self._is_writable()
        for first in range(0, len(order), COMMIT_EVERY):
            batch = order[first : first + COMMIT_EVERY]
            vectors = encode([missing[h] for h in batch])
            if keeps:
                self._store(key, batch, vectors)
            known.update(zip(batch, vectors, strict=True))
            _log_progress(min(first + COMMIT_EVERY, len(order)), len(order), started)
        if not texts:
            return np.zeros((0, 0), dtype=np.float32), 0
        return np.stack([known[h] for h in hashes]), len(order)

    def _is_writable(self) -> bool:
        """Whether vectors can be kept. What is asked of a read-only store is encoded all the same."""
        path = self._file.path
        # DuckDB writes its log beside the file.
        folder = next(parent for parent in path.parents if parent.exists())
        return os.access(folder, os.W_OK) and (not path.exists() or os.access(path, os.W_OK))

    def _load(self, key: str, hashes: set[str]) -> dict[str, np.ndarray]:
        if not hashes or not self._file.path.exists():
            return {}
        with self._file.read() as connection:
            connection.register("asked", pa.table({"input_hash": sorted(hashes)}))
            rows = connection.execute(
                "SELECT input_hash, vector FROM embeddings JOIN asked USING (input_hash) WHERE encoder = ?", [key]
            ).fetchnumpy()
        return {h: np.asarray(v, dtype=np.float32) for h, v in zip(rows["input_hash"], rows["vector"], strict=True)}

    def _store(self, key: str, hashes: Sequence[str], vectors: np.ndarray) -> None:
        dimension = vectors.shape[1]
        flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), type=pa.float32())
        rows = pa.table(
            {
                "encoder": [key] * len(hashes),
                "input_hash": list(hashes),
                "vector": pa.FixedSizeListArray.from_arrays(flat, dimension).cast(pa.list_(pa.float32())),
            }
        )
        with self._file.write() as connection:
            connection.register("new_rows", rows)
            connection.execute("INSERT OR IGNORE INTO embeddings SELECT * FROM new_rows")

    def forget_encoders(self, keep: set[str]) -> int:
        """Delete vectors of models that are kept no longer, or by code of another version. Returns the rows deleted."""
        if not self._file.path.exists():
            return 0
        with self._file.read() as connection:
            present = [row[0] for row in connection.execute("SELECT DISTINCT encoder FROM embeddings").fetchall()]
        kept = {versioned(f"{digest}/{role}") for digest in keep for role in ("passage", "query")}
        gone = [key for key in present if key not in kept]
        if not gone:
            return 0
        with self._file.write() as connection:
            connection.register("gone", pa.table({"encoder": gone}))
            forgotten = int(
                connection.execute("DELETE FROM embeddings WHERE encoder IN (SELECT encoder FROM gone)").fetchall()[0][
                    0
                ]
            )
        self._shrink()
        return forgotten

    def rows(self) -> int:
        """The number of vectors."""
        if not self._file.path.exists():
            return 0
        with self._file.read() as connection:
            return int(connection.execute("SELECT count(*) FROM embeddings").fetchall()[0][0])

    def forget_unused(self, passages: Collection[str], queries: Collection[str], keep: int = KEEP_UNUSED) -> int:
        """Delete the vectors that have been out of use the longest, beyond as many as are in use and beyond `keep`.

        Args:
            passages: hashes of the rendered passages in use.
            queries: hashes of the queries in use.
            keep: so many unused vectors always stay.

        Returns:
            The number of rows deleted.
        """
        rows = self.rows()
        if rows <= keep:
            return 0
        with self._file.write() as connection:
            roles = ["passage"] * len(passages) + ["query"] * len(queries)
            connection.register("in_use", pa.table({"role": roles, "input_hash": [*passages, *queries]}))
            connection.execute(UNUSED_TABLE)
            connection.execute(
                "CREATE TEMP TABLE dead AS SELECT encoder, input_hash FROM embeddings e ANTI JOIN in_use i "
                "ON e.input_hash = i.input_hash AND split_part(e.encoder, '/', 2) = i.role"
            )
            connection.execute(
                "DELETE FROM unused WHERE (encoder, input_hash) NOT IN (SELECT (encoder, input_hash) FROM dead)"
            )
            connection.execute(
                "INSERT INTO unused SELECT encoder, input_hash, ? FROM dead ANTI JOIN unused USING (encoder, input_hash)",
                [datetime.now(UTC)],
            )
            dead = connection.execute("SELECT count(*) FROM dead").fetchall()[0][0]
            surplus = max(0, dead - max(rows - dead, keep))
            oldest = f"SELECT (encoder, input_hash) FROM unused ORDER BY since, input_hash, encoder LIMIT {surplus}"
            connection.execute(f"DELETE FROM embeddings WHERE (encoder, input_hash) IN ({oldest})")
            connection.execute("DROP TABLE dead")
        if surplus:
            self._shrink()
        return surplus

    def changed_since_collection(self, passages: int) -> bool:
        """Whether enough came or went since vectors out of use were looked for; looking goes through every sentence of today.

        Args:
            passages: how many there are today.
        """
        with self._file.read() as connection:
            there = connection.execute("SELECT 1 FROM duckdb_tables() WHERE table_name = 'collected'").fetchall()
            found = connection.execute("SELECT rows, passages FROM collected").fetchall() if there else []
        if not found:
            return True
        rows, before = found[0]
        return self.rows() >= rows + KEEP_UNUSED // 4 or passages < 0.9 * before

    def remember_collection(self, passages: int) -> None:
        """Note what there was when vectors out of use were looked for."""
        with self._file.write() as connection:
            connection.execute(f"{COLLECTED_TABLE}; DELETE FROM collected")
            connection.execute("INSERT INTO collected SELECT count(*), ? FROM embeddings", [passages])

    def _shrink(self) -> None:
        """Rewrite the file where it is more than twice as large as its rows: DuckDB keeps the space of deleted rows.

        The old file stays attached, and so locked against other writers, until the new one has taken its place; the lock
        goes when any handle of this process on the file is closed, so nothing here opens it a second time.
        """
        path = self._file.path
        # By a name that is none of those that `Warehouse` sweeps away.
        fresh = path.with_name(f".shrunk-{path.name}")
        fresh.unlink(missing_ok=True)
        with self._file.read() as connection:
            content = connection.execute("SELECT coalesce(sum(4 * len(vector) + 160), 0) FROM embeddings").fetchall()[
                0
            ][0]
        if path.stat().st_size <= 2 * content + SPARE_BYTES:
            return
        # A process that uses the file just now is no reason to fail: the next time will do.
        with contextlib.suppress(duckdb.Error, OSError), duckdb.connect() as both:
            both.execute(f"ATTACH {quoted(path)} AS old (READ_ONLY); ATTACH {quoted(fresh)} AS fresh")
            both.execute("COPY FROM DATABASE old TO fresh; DETACH fresh")
            if not path.with_name(f"{path.name}.wal").exists():
                fresh.replace(path)
        fresh.unlink(missing_ok=True)


def _log_progress(done: int, total: int, started: float) -> None:
    seconds = time.monotonic() - started
    if total > COMMIT_EVERY:
        rate = done / max(seconds, 1e-9)
        logger.info("encoded %d of %d texts, %.0f texts/s, about %.0f s left", done, total, rate, (total - done) / rate)
