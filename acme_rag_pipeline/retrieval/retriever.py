"""Reading: search in the promoted index, or in any arm, without ever waiting for a run."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.retrieval.fusion import UnknownFusion, judged_fusion
from acme_rag_pipeline.retrieval.table_search import SearchHit, dense, hybrid, lexical
from acme_rag_pipeline.retriever_names import RETRIEVERS
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.arms_file import known_arms
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import NothingPromoted, PointerDamaged, Promoted, read_pointer
from acme_rag_pipeline.store.unreadable_table import reading

if TYPE_CHECKING:
    from lancedb.table import Table

_TRIES = 3


class UnknownRetriever(ValueError):
    """No retriever of that name."""


class ArmMissing(UserError, RuntimeError):
    """That arm has no index in this store yet."""


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
            ModelDamaged: the model cannot be opened.
            TableUnreadable: files of the table cannot be read; the message says how it is built again.
        """
        return self.search_many([query], k, retriever)[0]

    def search_many(self, queries: Sequence[str], k: int = 10, retriever: str = "promoted") -> list[list[SearchHit]]:
        """The same for many queries, encoded in one go and answered from one promoted state; raises what `search` does.

        Raises:
            TypeError: a text instead of a list of texts, which would be a query for each of its letters.
        """
        if isinstance(queries, str) or not all(isinstance(query, str) for query in queries):
            raise TypeError("queries must be a list of texts; for one text there is `search`")
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
        by_words = retriever == "bm25" or not asked
        encoded = np.zeros((0, 0), np.float32) if by_words else self._encoded(arm.encoder, asked)
        with reading(self._store.lancedb, arm.table.name):
            if by_words:
                found = [lexical(arm.table, query, k) for query in asked]
            elif arm.hybrid:
                found = [
                    hybrid(arm.table, query, vector, k, arm.fusion)
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
            maker, expanded = f"{name}_index", arms.get(retriever)
            # Until `served_index` has run, that of a new candidate is still the one of the candidate before.
            if self._settings.expansion_weight and expanded is not None and _same_model(expanded, entry):
                maker, entry = "served_index", expanded
            try:
                table = self._table(entry["table"], entry.get("lance_version"))
            except vectors.VersionGone as error:
                raise ArmMissing(f"{error}: materialise `{maker}` again") from error
            if table is None:
                raise ArmMissing(f"table {entry['table']} is missing: materialise `{maker}` again")
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
        with reading(self._store.lancedb, name):
            db = vectors.connect(self._store.lancedb)
        return vectors.open_table(db, name, version)

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
    except UnknownFusion as error:
        raise PointerDamaged(f"promoted.json: {error}; else materialise `served_index` to write it anew") from error
