"""Whether training sees what it is judged by: counted from the finished tables, by other code than that which filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import records

# The filter computes in single precision: what it let pass at the very edge is no leak.
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Leaks:
    """What training would see of the held-out units, in pairs (negatives: in negatives).

    Attributes:
        training_pairs: pairs that are trained on.
        passages: those whose passage is held out, or nearly repeats one that is.
        negatives: negatives of which that is true.
        held_out_queries: those with the wording of a query that judges.
        golden_queries: those with the wording of a golden query.
        near_golden_queries: those nearer to a golden query than the setting allows (cosine, base model).
        golden_compared: those whose nearness could be looked up.
    """

    training_pairs: int
    passages: int
    negatives: int
    held_out_queries: int
    golden_queries: int
    near_golden_queries: int
    golden_compared: int

    @property
    def total(self) -> int:
        """All leaks together; 0 is the only good number."""
        return self.passages + self.negatives + self.held_out_queries + self.golden_queries + self.near_golden_queries


def find_leaks(store: Store, *, golden_decides: bool, golden_similarity: float) -> Leaks:
    """Count them. Vectors are looked up, never computed: the check also runs where nothing is to be done.

    Args:
        store: with `training_pairs`, `chunks` and `golden_queries` of today.
        golden_decides: golden queries judge the candidate, so that the test side is trained on.
        golden_similarity: cosine from which on a training query is too near to a golden one.
    """
    held_out = {"validation"} if golden_decides else {"validation", "test"}
    with store.warehouse.read() as connection:
        chunks = records(connection, "SELECT chunk_id, near_duplicate_group, side FROM chunks")
        kept = records(
            connection, "SELECT query, chunk_id, side, negatives FROM training_pairs WHERE dropped_because IS NULL"
        )
        golden = [row["query"] for row in records(connection, "SELECT query FROM golden_queries")]
    group = {row["chunk_id"]: row["near_duplicate_group"] for row in chunks}
    groups = {row["near_duplicate_group"] for row in chunks if row["side"] in held_out}
    secret = {row["chunk_id"] for row in chunks if group[row["chunk_id"]] in groups}
    judging = {query_key(row["query"]) for row in kept if row["side"] in held_out}
    trained = [row for row in kept if row["side"] not in held_out]
    wordings = [query_key(row["query"]) for row in trained]
    golden_wordings = {query_key(query) for query in golden}
    nearness = _nearness(store, [row["query"] for row in trained], golden)
    return Leaks(
        training_pairs=len(trained),
        passages=sum(row["chunk_id"] in secret for row in trained),
        negatives=sum(negative in secret for row in trained for negative in row["negatives"]),
        held_out_queries=sum(wording in judging for wording in wordings),
        golden_queries=sum(wording in golden_wordings for wording in wordings),
        near_golden_queries=int((nearness >= golden_similarity + _ROUNDING).sum()),
        golden_compared=len(nearness),
    )


def _nearness(store: Store, queries: Sequence[str], golden: Sequence[str]) -> np.ndarray:
    """Cosine of each query with the nearest golden query, shape (queries,); those without a stored vector are left out."""
    digest = stored_detail(store.warehouse, "base_index", "model_digest")
    known = index.embedding_cache(store).known_queries(str(digest), [*queries, *golden]) if golden else {}
    asked, judging = [known[q] for q in queries if q in known], [known[q] for q in golden if q in known]
    if not asked or not judging:
        return np.zeros(0)
    return (_unit(asked) @ _unit(judging).T).max(axis=1)


def _unit(vectors: Sequence[np.ndarray]) -> np.ndarray:
    rows = np.stack(vectors).astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
