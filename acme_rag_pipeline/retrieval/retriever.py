"""Reading: search in the promoted index, or in any arm, without ever waiting for a run."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
from pydantic import ValidationError

from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.retrieval.expansion import joined_words
from acme_rag_pipeline.retrieval.fusion import fuse, judged_fusion
from acme_rag_pipeline.retrieval.neighbours import Place
from acme_rag_pipeline.retrieval.reordering import reordered, reordered_depth
from acme_rag_pipeline.retrieval.sentences import best_sentence, with_best_sentence
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.arms_file import known_arms
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import NothingPromoted, PointerDamaged, Promoted, in_words, read_pointer

if TYPE_CHECKING:
    import pyarrow as pa
    from lancedb.query import LanceVectorQueryBuilder
    from lancedb.table import Table

RetrieverName = Literal["promoted", "bm25", "base", "base_hybrid", "fine_tuned", "fine_tuned_hybrid"]
RETRIEVERS: tuple[str, ...] = get_args(RetrieverName)
_COLUMNS = ["id", "text", "metadata"]
_TRIES = 3


class UnknownRetriever(ValueError):
    """No retriever of that name."""


class ArmMissing(RuntimeError):
    """That arm has no index in this store yet."""


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


@dataclass
class _Arm:
    """An opened table with its model."""

    table: Table
    encoder: Encoder
    hybrid: bool
    fusion: RetrievalSettings


class Retriever:
    """Search over a store's promoted index.

    It follows promotions: each search looks at the pointer first and answers from exactly one promoted state.

    Example:
        >>> Retriever.open("data/store").search("remote work from Spain", k=5)
    """

    def __init__(self, store: Store, settings: RetrievalSettings) -> None:
        self._store = store
        self._settings = settings
        self._promoted: tuple[Promoted, _Arm] | None = None
        self._encoders: dict[str, Encoder] = {}
        self._lock = threading.Lock()
        self._encoding = threading.Lock()

    @classmethod
    def open(cls, store: str | Path, settings: RetrievalSettings | None = None) -> Retriever:
        """Open a store for reading.

        Raises:
            NothingPromoted: nothing has been served from this store yet.
            PointerDamaged: `promoted.json` cannot be used.
        """
        opened = Store(Path(store))
        read_pointer(opened.pointer)
        return cls(opened, settings or RetrievalSettings())

    def search(self, query: str, k: int = 10, retriever: str = "promoted") -> list[SearchHit]:
        """The best passages, best first.

        Args:
            query: any text; an empty one finds nothing.
            k: most hits.
            retriever: one of `RETRIEVERS`.

        Raises:
            UnknownRetriever: another name.
            ArmMissing: the arm has no index yet, or no longer.
            NothingPromoted, PointerDamaged: as for `open`; or the table or the version that the pointer names is gone.
        """
        return self.search_many([query], k, retriever)[0]

    def search_many(self, queries: Sequence[str], k: int = 10, retriever: str = "promoted") -> list[list[SearchHit]]:
        """The same for many queries, encoded in one go and answered from one promoted state."""
        if k < 1:
            raise ValueError(f"k is {k}, it must be at least 1")
        if retriever not in RETRIEVERS:
            raise UnknownRetriever(f"no retriever `{retriever}`; there are {', '.join(RETRIEVERS)}")
        tries_left = _TRIES
        while True:
            before = self._named(retriever)
            try:
                arm = self._open_arm(retriever)
                return self._search_arm(arm, [_whole_characters(q).strip() for q in queries], k, retriever)
            except Exception:
                # The version may have been cleaned up between reading its name and searching; look again. However
                # slow this reader is, each version that overtakes it is another chance and no failure.
                tries_left -= self._named(retriever) == before
                if not tries_left:
                    raise
                with self._lock:
                    self._promoted = None

    def promoted(self) -> Promoted:
        """What the pointer names now."""
        return read_pointer(self._store.pointer)

    def _named(self, retriever: str) -> Any:
        """Which finished table the retriever is to search now."""
        if retriever in ("promoted", "bm25"):
            return self.promoted()
        arms = known_arms(self._store)
        return arms.get(_arm_name(retriever)), arms.get(retriever)

    def _search_arm(self, arm: _Arm, queries: list[str], k: int, retriever: str) -> list[list[SearchHit]]:
        asked = [query for query in queries if query]
        deep = max(k, arm.fusion.candidates)
        if retriever == "bm25":
            found = [lexical(arm.table, query, k) for query in asked]
        else:
            encoded = self._encoded(arm.encoder, asked) if asked else np.zeros((0, 0), np.float32)
            if arm.hybrid:
                found = [
                    _fused(
                        dense_for_fusion(arm.table, vector, deep, arm.fusion),
                        # As deep as it was judged: a longer answer must begin with the shorter one.
                        lexical_for_fusion(arm.table, query, arm.fusion.candidates, arm.fusion),
                        arm.fusion,
                        k,
                    )
                    for query, vector in zip(asked, encoded, strict=True)
                ]
            else:
                found = [dense(arm.table, vector, k) for vector in encoded]
        answers = iter(found)
        return [next(answers) if query else [] for query in queries]

    def _encoded(self, encoder: Encoder, queries: list[str]) -> np.ndarray:
        # A fast tokenizer that two threads use at once fails with "Already borrowed".
        with self._encoding:
            return encoder.encode_queries(queries)

    def _open_arm(self, retriever: str) -> _Arm:
        with self._lock:
            if retriever in ("promoted", "bm25"):
                return self._open_promoted()
            name = _arm_name(retriever)
            arms = known_arms(self._store)
            entry = arms.get(name)
            if entry is None:
                raise ArmMissing(f"this store has no `{name}` index yet: materialise it first (`make materialize`)")
            expanded = arms.get(retriever)
            # Until `served_index` has run, that of a new candidate is still the one of the candidate before.
            if self._settings.expansion_weight and expanded is not None and _same_model(expanded, entry):
                entry = expanded
            try:
                table = self._table(entry["table"], entry.get("lance_version"))
            except vectors.VersionGone as error:
                raise ArmMissing(f"{error}: materialise `{name}_index` again") from error
            if table is None:
                raise ArmMissing(f"table {entry['table']} is missing: materialise `{name}_index` again")
            encoder = self._encoder(entry["model_digest"], entry["model_dir"])
            return _Arm(table, encoder, retriever.endswith("_hybrid"), self._settings)

    def _open_promoted(self) -> _Arm:
        promoted = read_pointer(self._store.pointer)
        if self._promoted is not None and self._promoted[0] == promoted:
            return self._promoted[1]
        try:
            table = self._table(promoted.table, promoted.lance_version)
        except vectors.VersionGone as error:
            raise PointerDamaged(
                f"{self._store.pointer}: {error}: materialise `served_index` to write it anew"
            ) from error
        if table is None:
            raise NothingPromoted(f"table {promoted.table} is missing: materialise `served_index` to build it again")
        encoder = self._encoder(promoted.model_digest, promoted.model_dir)
        arm = _Arm(table, encoder, promoted.recipe == "hybrid", _pinned(promoted) or self._settings)
        self._promoted = (promoted, arm)
        return arm

    def _table(self, name: str, version: int | None) -> Table | None:
        if not self._store.lancedb.is_dir():
            return None  # connecting would create it
        return vectors.open_table(vectors.connect(self._store.lancedb), name, version)

    def _encoder(self, digest: str, model_dir: str) -> Encoder:
        if digest not in self._encoders:
            # A reader that lives through many promotions must not hold every model that it ever used.
            arms = {entry["model_digest"] for entry in known_arms(self._store).values()}
            self._encoders = {known: e for known, e in self._encoders.items() if known in arms}
            self._encoders[digest] = Encoder(self._store.root / model_dir, digest)
        return self._encoders[digest]


def _whole_characters(query: str) -> str:
    # A terminal that is not UTF-8 and a text that was cut within a character leave halves, which no library takes.
    return query.encode("utf-8", "replace").decode("utf-8")


def _arm_name(retriever: str) -> str:
    return "base" if retriever.startswith("base") else "fine_tuned"


def _same_model(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[name] == other[name] for name in ("model_digest", "passage_prefix"))


def _pinned(promoted: Promoted) -> RetrievalSettings | None:
    """How the promoted recipe joins its rankings; None in pointers of an earlier version."""
    try:
        return judged_fusion(promoted.fusion) if promoted.fusion else None
    except ValidationError as error:
        raise PointerDamaged(
            f"promoted.json: fusion is not usable ({in_words(error)}): materialise `served_index` to write it anew"
        ) from error


def _fused(first: list[SearchHit], second: list[SearchHit], fusion: RetrievalSettings, k: int) -> list[SearchHit]:
    by_id = {hit.chunk_id: hit for hit in (*first, *second)}
    ranking = fuse([(hit.chunk_id, hit.score) for hit in first], [(hit.chunk_id, hit.score) for hit in second], fusion)
    return [SearchHit(**(by_id[chunk_id].as_dict() | {"score": score})) for chunk_id, score in ranking[:k]]


def dense(table: Table, vector: np.ndarray, k: int) -> list[SearchHit]:
    """Passages by cosine similarity of their vectors; exact up to `EXACT_SEARCH_ROWS` rows."""
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
        rows = rows.take([*(row for row, _ in order), *range(len(order), len(cosines))])
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
    import pyarrow as pa

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
    return rows.take(pa.array(order[:k], pa.int64()))  # an empty list has no type of its own


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
