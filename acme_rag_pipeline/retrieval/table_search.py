"""Search in one table: by vectors, by words, and as a hybrid asks for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from acme_rag_pipeline.retrieval.expansion import joined_words
from acme_rag_pipeline.retrieval.fusion import fuse
from acme_rag_pipeline.retrieval.neighbours import Place
from acme_rag_pipeline.retrieval.reordering import reordered, reordered_depth
from acme_rag_pipeline.retrieval.sentences import best_sentence, with_best_sentence
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.store import vectors

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

_COLUMNS = ["id", "text", "metadata"]


@dataclass(frozen=True, slots=True)
class SearchHit:
    """One passage of a ranking. `hit["text"]` reads the same as `hit.text`, as in the JSON of the command line."""

    chunk_id: str
    doc_path: str
    start: int
    end: int
    heading: str
    score: float
    text: str

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def as_dict(self) -> dict[str, Any]:
        """A plain dictionary."""
        return asdict(self)


def hybrid(table: Table, query: str, vector: np.ndarray, k: int, fusion: RetrievalSettings) -> list[SearchHit]:
    """Passages by vectors and words together, as the fusion says."""
    first = dense_for_fusion(table, vector, max(k, fusion.candidates), fusion)
    # As deep as it was judged: a longer answer must begin with the shorter one.
    second = lexical_for_fusion(table, query, fusion.candidates, fusion)
    by_id = {hit.chunk_id: hit for hit in (*first, *second)}
    ranking = fuse([(hit.chunk_id, hit.score) for hit in first], [(hit.chunk_id, hit.score) for hit in second], fusion)
    return [replace(by_id[chunk_id], score=score) for chunk_id, score in ranking[:k]]


def dense(table: Table, vector: np.ndarray, k: int) -> list[SearchHit]:
    """Passages by cosine similarity of their vectors; exact below `EXACT_SEARCH_ROWS` rows."""
    rows = _nearest(table, vector, k, _COLUMNS)
    return _hits(rows, [1.0 - distance for distance in rows["_distance"].to_pylist()])


def dense_for_fusion(table: Table, vector: np.ndarray, k: int, fusion: RetrievalSettings) -> list[SearchHit]:
    """The same, with the first ones scored and ordered by their own queries and by the passages beside them, and of these the
    first by their best sentences.

    A table without queries or sentences (of an earlier version, or of settings that weigh them with 0) does without.
    """
    known = set(table.schema.names)
    by_queries = bool(fusion.expansion_weight) and vectors.SHIFT_COLUMN in known
    by_sentences = bool(fusion.sentence_weight) and vectors.SENTENCES_COLUMN in known
    columns = [vectors.SENTENCES_COLUMN] * by_sentences + ["vector", vectors.SHIFT_COLUMN] * by_queries
    # As many as are ordered anew where they are judged: a longer answer begins with the shorter one.
    anew = reordered_depth(fusion, by_queries=by_queries)
    rows = _nearest(table, vector, max(k, anew), [*_COLUMNS, *columns])
    cosines = [1.0 - distance for distance in rows["_distance"].to_pylist()]
    if anew:
        first = rows.slice(0, anew)
        places = [_place(metadata) for metadata in first["metadata"].to_pylist()]
        moves = _moves(first) if by_queries else [None] * len(places)
        order = reordered(vector, cosines[:anew], places, moves, fusion)
        rows = _taken(rows, [*(row for row, _ in order), *range(len(order), len(cosines))])
        cosines[:anew] = [score for _, score in order]
    near = min(len(cosines), fusion.candidates) if by_sentences else 0
    packs = rows[vectors.SENTENCES_COLUMN].slice(0, near).to_pylist() if near else []
    scores = [
        with_best_sentence(cosine, best_sentence(vector, packed), fusion.sentence_weight)
        for cosine, packed in zip(cosines, packs, strict=False)
    ]
    hits = _hits(rows.select([*_COLUMNS, "_distance"]), scores + cosines[near:])
    return sorted(hits[:near], key=lambda hit: -hit.score) + hits[near:]


def _nearest(table: Table, vector: np.ndarray, k: int, columns: list[str]) -> pa.Table:
    """The first k rows by distance; equal ones by document and place, as the evaluation orders them.

    A text that stands in several documents is as near in each. Which of them the table gives first, or leaves out, is its
    history.
    """
    deep = k + 1
    while True:
        query = cast("LanceVectorQueryBuilder", table.search(vector, vector_column_name="vector", query_type="vector"))
        rows = query.distance_type("cosine").select([*columns, "_distance"]).limit(deep).to_arrow()
        distances = rows["_distance"].to_pylist()
        if len(distances) < deep or distances[-1] > distances[k - 1]:
            break
        deep *= 2
    places = [_place(metadata) for metadata in rows["metadata"].to_pylist()]
    order = sorted(range(len(distances)), key=lambda row: (distances[row], places[row]))
    return _taken(rows, order[:k])


def _taken(rows: pa.Table, order: Sequence[int]) -> pa.Table:
    import pyarrow as pa

    return rows.take(pa.array(order, pa.int64()))  # an empty list has no type of its own


def _moves(rows: pa.Table) -> list[tuple[np.ndarray, bytes] | None]:
    """Vector and shift of each passage that has queries of its own."""
    return [
        (np.array(rows["vector"][row].as_py(), dtype=np.float32), shift) if shift is not None else None
        for row, shift in enumerate(rows[vectors.SHIFT_COLUMN].to_pylist())
    ]


def _place(metadata: Mapping[str, Any]) -> Place:
    return metadata["doc_path"], metadata["start_char"], metadata["end_char"]


def lexical_for_fusion(table: Table, query: str, k: int, fusion: RetrievalSettings) -> list[SearchHit]:
    """The same as `lexical`, and over the queries that were written for the passages where the table knows them."""
    plain = lexical(table, query, k)
    if not fusion.expansion_weight or vectors.EXPANDED_COLUMN not in table.schema.names:
        return plain
    expanded = lexical(table, query, k, vectors.EXPANDED_COLUMN)
    by_id = {hit.chunk_id: hit for hit in (*plain, *expanded)}
    ranking = joined_words(*([(hit.chunk_id, hit.score) for hit in hits] for hits in (plain, expanded)))
    return [replace(by_id[chunk_id], score=score) for chunk_id, score in ranking]


def lexical(table: Table, query: str, k: int, column: str = vectors.SEARCH_COLUMN) -> list[SearchHit]:
    """Passages by BM25 over headings and text. The query is words only: it has no operators."""
    from lancedb.query import MatchQuery

    asked = MatchQuery(query, column)  # type: ignore[call-arg]
    deep = k + 1
    while True:
        rows = table.search(asked).select([*_COLUMNS, "_score"]).limit(deep).to_arrow()
        scores = rows["_score"].to_pylist()
        if len(scores) < deep or min(scores) < sorted(scores, reverse=True)[k - 1]:
            break
        deep *= 2
    # Equal scores come in any order from the index; an answer must not depend on the table's history.
    return sorted(_hits(rows, scores), key=lambda hit: (-hit.score, hit.chunk_id))[:k]


def _hits(rows: Any, scores: Sequence[float]) -> list[SearchHit]:
    return [
        SearchHit(
            row["id"],
            row["metadata"]["doc_path"],
            row["metadata"]["start_char"],
            row["metadata"]["end_char"],
            row["metadata"]["heading_path"],
            float(score),
            row["text"],
        )
        for row, score in zip(rows.to_pylist(), scores, strict=True)
    ]
