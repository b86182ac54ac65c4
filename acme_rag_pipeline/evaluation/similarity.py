"""How near each judged query lies to its evidence and to the best wrong passage, for one model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.metrics import Hit, finds
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder, embedding_cache, encoder_for
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages


@dataclass(frozen=True)
class QuerySimilarity:
    """Cosine of a query to the nearest passage that holds evidence, and to the nearest one that does not."""

    right: float
    wrong: float


def similarities(
    store: Store, settings: Settings, which: PassageEncoder, queries: Sequence[JudgedQuery]
) -> list[QuerySimilarity]:
    """One row for each query that has both a right and a wrong passage among those of today.

    Args:
        store, settings: where passages and cached vectors are.
        which: the model, and how it sees passages.
        queries: judged queries.
    """
    passages = live_passages(store.warehouse)
    if not passages or not queries:
        return []
    cache = embedding_cache(store)
    asked, _ = cache.queries(encoder_for(store, which.model_digest, settings), [q.query for q in queries])
    encoder = encoder_for(store, which.passage_model, settings)
    held, _ = cache.passages(encoder, [passage.rendered(which.prefix) for passage in passages])
    by_document: dict[str, list[int]] = {}
    for place, passage in enumerate(passages):
        by_document.setdefault(passage.doc_path, []).append(place)
    found = []
    for query, vector in zip(queries, asked, strict=True):
        right = _right(query, passages, by_document)
        if right and len(right) < len(passages):
            cosines = held @ vector
            wrong = float(np.delete(cosines, right).max())
            found.append(QuerySimilarity(float(cosines[right].max()), wrong))
    return found


def _right(query: JudgedQuery, passages: Sequence[LivePassage], by_document: dict[str, list[int]]) -> list[int]:
    places = set()
    for evidence in query.evidence:
        for place in by_document.get(evidence.doc_path, ()) if evidence.relevance > 0 else ():
            start, end = passages[place].start_char, passages[place].end_char
            if finds(Hit(evidence.doc_path, start, end).read(), evidence):
                places.add(place)
    return sorted(places)
