"""Whether training sees what it is judged by: counted from the finished tables, by other code than that which filters."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acme_rag_pipeline.chunking.near_duplicates import shingles
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.retrieval.passage_encoder import embedding_cache
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.judged_by import golden_queries_decide
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import data_versions, stored_detail
from acme_rag_pipeline.store.warehouse import records

# Both compute in single precision: what the filter let pass at the very edge is no leak.
_ROUNDING = 1e-4
_MOST_COMPARED = 200


@dataclass(frozen=True)
class Leaks:
    """What training would see of the held-out units, in pairs (negatives: in negatives).

    Attributes:
        training_pairs: pairs that are trained on.
        passages: those whose passage is held out, or nearly repeats one that is.
        negatives: negatives of which that is true.
        held_out_queries: those with the wording of a query that judges.
        near_held_out_queries: those nearer to a query that judges than the setting allows (cosine, base model).
        golden_queries: those with the wording of a golden query.
        near_golden_queries: those nearer to a golden query than the setting allows.
        held_out_compared: those whose nearness to the queries that judge could be looked up.
        golden_compared: those whose nearness to the golden queries could be.
        held_out_judges: held-out queries.
        golden_judges: golden queries.
    """

    training_pairs: int
    passages: int
    negatives: int
    held_out_queries: int
    near_held_out_queries: int
    golden_queries: int
    near_golden_queries: int
    held_out_compared: int
    golden_compared: int
    held_out_judges: int
    golden_judges: int

    @property
    def total(self) -> int:
        """All leaks together; 0 is the only good number."""
        near = self.near_held_out_queries + self.near_golden_queries
        return self.passages + self.negatives + self.held_out_queries + self.golden_queries + near

    @property
    def not_compared(self) -> str:
        """A sentence when nearness could not be looked up everywhere, so that 0 leaks would promise too much."""
        missing = [
            f"{self.training_pairs - compared} of {self.training_pairs} with the {kind} ones"
            for kind, judges, compared in (
                ("held-out", self.held_out_judges, self.held_out_compared),
                ("golden", self.golden_judges, self.golden_compared),
            )
            if judges and compared < self.training_pairs
        ]
        if not missing:
            return ""
        return (
            "Vectors are missing from the store's cache, so that training queries were not compared for nearness: "
            f"{', '.join(missing)}."
        )


def leaks_of_today(store: Store, settings: Settings) -> Leaks:
    """Those of the training set as it is, by whoever judges the candidate that learns from it."""
    made_of = stored_detail(store.warehouse, "training_set", "chunks_version")
    return find_leaks(
        store,
        golden_decides=golden_queries_decide(store.warehouse),
        golden_similarity=settings.pairs.golden_similarity,
        near_duplicate_similarity=settings.chunking.near_duplicate_similarity,
        of_these_chunks=made_of is None or made_of == data_versions(store.warehouse, "chunks")["chunks"],
    )


def find_leaks(
    store: Store,
    *,
    golden_decides: bool,
    golden_similarity: float,
    near_duplicate_similarity: float,
    of_these_chunks: bool = True,
) -> Leaks:
    """Count them. Vectors are looked up, never computed: the check also runs where nothing is to be done.

    Args:
        store: with `training_pairs`, `chunks` and `golden_queries` of today.
        golden_decides: golden queries judge the candidate, so that the test side is trained on.
        golden_similarity: cosine from which on a training query is too near to a golden or a held-out one.
        near_duplicate_similarity: Jaccard similarity of 3-grams from which on a passage nearly repeats another one.
        of_these_chunks: the training set was made of the chunks of today. Otherwise a new copy of a passage that is trained on
            may lie on a held-out side, and judges nothing: only passages that judge are held out.
    """
    held_out = {"validation"} if golden_decides else {"validation", "test"}
    with store.warehouse.read() as connection:
        chunks = records(connection, "SELECT chunk_id, near_duplicate_group, side, text FROM chunks")
        kept = records(
            connection, "SELECT query, chunk_id, side, negatives FROM training_pairs WHERE dropped_because IS NULL"
        )
        golden = [row["query"] for row in records(connection, "SELECT query FROM golden_queries")]
    group = {row["chunk_id"]: row["near_duplicate_group"] for row in chunks}
    judging_chunks = {row["chunk_id"] for row in kept if row["side"] in held_out}
    text = {row["chunk_id"]: row["text"] for row in chunks}
    held = {
        row["chunk_id"]
        for row in chunks
        if (row["side"] in held_out if of_these_chunks else row["chunk_id"] in judging_chunks)
    }
    groups = {group[chunk_id] for chunk_id in held}
    secret = {chunk_id for chunk_id in group if group[chunk_id] in groups}
    asked = [row["query"] for row in kept if row["side"] in held_out]
    judging = {query_key(query) for query in asked}
    trained = [row for row in kept if row["side"] not in held_out]
    # What is in no held-out group is compared with the held-out passages themselves.
    read = {chunk_id for row in trained for chunk_id in (row["chunk_id"], *row["negatives"])} & text.keys() - secret
    repeats = _near_repeats({text[c] for c in read}, {text[c] for c in held}, near_duplicate_similarity)
    secret |= {chunk_id for chunk_id in read if text[chunk_id] in repeats}
    wordings = [query_key(row["query"]) for row in trained]
    golden_wordings = {query_key(query) for query in golden}
    to_held_out, to_golden = _nearness(store, [row["query"] for row in trained], asked, golden)
    return Leaks(
        training_pairs=len(trained),
        passages=sum(row["chunk_id"] in secret for row in trained),
        negatives=sum(negative in secret for row in trained for negative in row["negatives"]),
        held_out_queries=sum(wording in judging for wording in wordings),
        near_held_out_queries=int((to_held_out >= golden_similarity + _ROUNDING).sum()),
        golden_queries=sum(wording in golden_wordings for wording in wordings),
        near_golden_queries=int((to_golden >= golden_similarity + _ROUNDING).sum()),
        held_out_compared=len(to_held_out),
        golden_compared=len(to_golden),
        held_out_judges=len(asked),
        golden_judges=len(golden),
    )


def _near_repeats(texts: set[str], held_out: set[str], similarity: float) -> set[str]:
    """The texts of which a held-out one has this Jaccard similarity of 3-grams.

    Similar sets share one of their rarest elements, the first of which are enough (prefix filter: Chaudhuri et al. 2006).
    A text is compared with the few held-out ones that share its rarest 3-grams; phrases that stand in hundreds are left to
    the groups.
    """
    grams_of = {text: shingles(text) for text in texts | held_out}
    frequency = Counter(gram for grams in grams_of.values() for gram in grams)

    def rarest(grams: set[str]) -> list[str]:
        enough = len(grams) - math.ceil(similarity * len(grams) - _ROUNDING) + 1
        elsewhere = [gram for gram in grams if frequency[gram] > 1]
        enough -= len(grams) - len(elsewhere)
        return sorted(elsewhere, key=lambda gram: (frequency[gram], gram))[:enough] if enough > 0 else []

    holders: dict[str, list[str]] = {}
    for text in held_out:
        for gram in rarest(grams_of[text]):
            holders.setdefault(gram, []).append(text)
    found = set()
    for text in texts:
        grams = grams_of[text]
        compared: set[str] = set()
        for gram in rarest(grams):
            sharing = holders.get(gram, [])
            if len(sharing) > _MOST_COMPARED:
                break
            fresh = [other for other in sharing if other not in compared]
            compared.update(fresh)
            both = (len(grams & grams_of[other]) for other in fresh)
            unions = (len(grams) + len(grams_of[other]) for other in fresh)
            if any(shared >= similarity * (total - shared) for shared, total in zip(both, unions, strict=True)):
                found.add(text)
                break
            if len(compared) > _MOST_COMPARED:
                break
    return found


def _nearness(store: Store, queries: Sequence[str], *judges: Sequence[str]) -> list[np.ndarray]:
    """For each group of judging queries the cosine of each query with the nearest of them, shape (queries,).

    Queries without a stored vector are left out.
    """
    digest = stored_detail(store.warehouse, "base_index", "model_digest")
    known = embedding_cache(store).known_queries(str(digest), [*queries, *(q for group in judges for q in group)])
    asked = [known[query] for query in queries if query in known]
    found = []
    for group in judges:
        judging = [known[query] for query in group if query in known]
        if not asked or not judging:
            found.append(np.zeros(0))
            continue
        found.append(nearest_cosines(asked, judging))
    return found


def nearest_cosines(asked: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> np.ndarray:
    """The cosine of each vector with the nearest of others, shape (asked,); both hold at least one vector."""
    rows, columns = _unit(asked), _unit(others).T
    # In blocks: a large collection has tens of thousands of held-out queries.
    blocks = [(rows[first : first + 512] @ columns).max(axis=1) for first in range(0, len(rows), 512)]
    return np.concatenate(blocks)


def _unit(vectors: Sequence[np.ndarray]) -> np.ndarray:
    rows = np.stack(vectors).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
