"""The funnel from raw pairs to training pairs: the filters in their order, then hard negatives for what is left.

Filters run in a canonical order, so the result depends on the pairs alone and not on the order in which they arrived.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.pairs.hard_negatives import mine
from acme_rag_pipeline.pairs.repeated_queries import repeated
from acme_rag_pipeline.pairs.wording import query_key, word_overlap
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, embedding_cache, encoder_for
from acme_rag_pipeline.retrieval.words import PassageWords
from acme_rag_pipeline.setting_groups import PairSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import records

# In smaller collections nearly every passage is in the top k, and the filter only costs pairs (Promptagator, sec. 4.3).
ROUND_TRIP_PASSAGES_PER_RANK = 5
ROUND_TRIP_LEAST_RANKS = 10


class Funnel:
    """The raw pairs of a store on their way through the filters.

    Attributes:
        passages: the live ones.
        golden_decides: golden queries decide, so that the test side trains too.
        steps: after `run`, of each filter how many pairs it dropped and how many were left.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self.store = store
        self.settings: PairSettings = settings.pairs
        self.passages = live_passages(store.warehouse)
        self.position = {passage.chunk_id: i for i, passage in enumerate(self.passages)}
        self.golden_decides = stored_detail(store.warehouse, "golden_queries", "decides") == "true"
        with store.warehouse.read() as connection:
            pairs = records(connection, "SELECT pair_id, query, chunk_id, origin, style, method FROM pairs")
            golden = connection.execute("SELECT query FROM golden_queries ORDER BY query_id").fetchall()
            rejected = records(
                connection, "SELECT query, doc_path, chunk_id, reason FROM rejected_pairs ORDER BY rejection_id"
            )
            named = records(connection, "SELECT pair_id, chunk_id FROM curated_negatives ORDER BY negative_id")
        self.held_out = {"validation"} if self.golden_decides else {"validation", "test"}
        # The canonical order of rejections is that of their ids: of two reasons the first stays.
        self.rejected: dict[tuple[str, str], str] = {}
        for row in rejected:
            if row["chunk_id"] in self.position:
                group = self.passages[self.position[row["chunk_id"]]].near_duplicate_group
                self.rejected.setdefault((query_key(row["query"]), group), row["reason"])
        # Where the passage is not found again, the wording stays out of its document.
        self.rejected_in_document: dict[tuple[str, str], str] = {}
        for row in rejected:
            if row["chunk_id"] is None:
                self.rejected_in_document.setdefault((query_key(row["query"]), row["doc_path"]), row["reason"])
        self.named_negatives: dict[str, list[int]] = {}
        for row in named:
            if row["chunk_id"] in self.position:
                self.named_negatives.setdefault(row["pair_id"], []).append(self.position[row["chunk_id"]])
        # People first, then by content: what comes first survives its duplicates.
        self.pairs = sorted(
            (pair for pair in pairs if pair["chunk_id"] in self.position),
            key=lambda p: (p["origin"] != "curated", p["chunk_id"], p["method"], p["pair_id"]),
        )
        base = resolve_base_model(settings.base_model, settings.root)
        self.encoder = encoder_for(store, base.digest, settings)
        self.cache = embedding_cache(store)
        self.golden = [row[0] for row in golden]
        # One call for all queries keeps the model from being loaded where everything is cached.
        queries, _ = self.cache.queries(self.encoder, [p["query"] for p in self.pairs] + self.golden)
        self.query_vectors, self.golden_vectors = queries[: len(self.pairs)], queries[len(self.pairs) :]
        self.passage_vectors, _ = self.cache.passages(self.encoder, [p.rendered(BASE_PREFIX) for p in self.passages])
        self.dropped: dict[int, str] = {}
        self.steps: list[dict[str, Any]] = []

    def run(self) -> list[dict[str, Any]]:
        """Rows of `training_pairs`, in canonical order."""
        self.steps = [{"filter": "raw pairs", "dropped": 0, "left": len(self.pairs)}]
        for name, one_filter in self._filters().items():
            before = len(self.dropped)
            for row, reason in one_filter():
                self.dropped.setdefault(row, reason)
            left = len(self.pairs) - len(self.dropped)
            self.steps.append({"filter": name, "dropped": len(self.dropped) - before, "left": left})
        barred = self._barred_from_training()
        eligible = [i for i in range(len(self.pairs)) if i not in self.dropped]
        answering = self._answering(eligible)
        negatives = mine(
            self.query_vectors[eligible],
            [self.position[self.pairs[i]["chunk_id"]] for i in eligible],
            self.passage_vectors,
            [p.near_duplicate_group for p in self.passages],
            barred,
            count=self.settings.hard_negatives,
            margin=self.settings.negative_margin,
            answering=[answering[query_key(self.pairs[i]["query"])] for i in eligible],
        )
        of_row = dict(zip(eligible, negatives, strict=True))
        first = self._people_s_negatives(eligible, barred, answering)
        for i, found in of_row.items():
            of_row[i] = list(dict.fromkeys([*first.get(i, []), *found]))
        return [self._row(i, of_row.get(i, [])) for i in range(len(self.pairs))]

    def _filters(self) -> dict[str, Callable[[], list[tuple[int, str]]]]:
        return {
            "empty": self._too_short,
            "review": self._rejected_in_review,
            "golden queries": self._near_golden,
            "ambiguous": self._ambiguous,
            "repeated": self._repeated,
            "held-out sides": self._near_other_sides,
            "round trip": self._not_found_back,
        }

    def _passage(self, row: int) -> LivePassage:
        return self.passages[self.position[self.pairs[row]["chunk_id"]]]

    def _kept(self) -> list[int]:
        return [i for i in range(len(self.pairs)) if i not in self.dropped]

    def _too_short(self) -> list[tuple[int, str]]:
        return [(i, "empty query") for i, pair in enumerate(self.pairs) if not re.search(r"\w", pair["query"])]

    def _rejected_in_review(self) -> list[tuple[int, str]]:
        """A generator's query that a person rejected for this passage, or for one that nearly repeats it.

        Where the rejected passage is not found again: for any passage of its document.
        """
        dropped = []
        for i, pair in enumerate(self.pairs):
            key, passage = query_key(pair["query"]), self._passage(i)
            reason = self.rejected.get((key, passage.near_duplicate_group))
            reason = reason or self.rejected_in_document.get((key, passage.doc_path))
            if reason is not None and pair["origin"] != "curated":
                dropped.append((i, reason))
        return dropped

    def _near_golden(self) -> list[tuple[int, str]]:
        near = self._golden_like([pair["query"] for pair in self.pairs], self.query_vectors)
        return [(i, "near a golden query") for i, is_near in enumerate(near) if is_near]

    def far_from_golden(self, rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
        """The rows whose `query` is near no golden one: what golden queries judge must not be chosen by their like."""
        queries = [row["query"] for row in rows]
        vectors, _ = self.cache.queries(self.encoder, queries)
        return [row for row, is_near in zip(rows, self._golden_like(queries, vectors), strict=True) if not is_near]

    def _golden_like(self, queries: Sequence[str], vectors: np.ndarray) -> list[bool]:
        wordings = {query_key(query) for query in self.golden}
        nearest = self._nearness(vectors, self.golden_vectors)
        return [
            query_key(query) in wordings or bool(cosine >= self.settings.golden_similarity)
            for query, cosine in zip(queries, nearest, strict=True)
        ]

    def _nearness(self, vectors: np.ndarray, judging: np.ndarray) -> np.ndarray:
        """Cosine of each query and the nearest judging one, base model, shape (queries,); -1 without any."""
        nearest = np.full(len(vectors), -1.0)
        # In blocks: a large collection has tens of thousands of held-out queries.
        for first in range(0, len(vectors) if len(judging) else 0, 1024):
            nearest[first : first + 1024] = (vectors[first : first + 1024] @ judging.T).max(axis=1)
        return nearest

    def _ambiguous(self) -> list[tuple[int, str]]:
        """A wording that belongs to several different passages cannot judge: one of them would count as the only answer.

        Training knows all of its answers, and gains by it (docs/experiments/training.md). A person's pair stays. Within one
        document it is a question whose answer goes on in the next passage: the nearest passage keeps it.
        """
        rows_of: dict[str, list[int]] = {}
        for i in self._kept():
            rows_of.setdefault(query_key(self.pairs[i]["query"]), []).append(i)
        dropped: list[int] = []
        for rows in rows_of.values():
            passages = [self._passage(i) for i in rows]
            if len({p.near_duplicate_group for p in passages}) == 1:
                continue
            keep = None
            if len({p.doc_path for p in passages}) == 1 and all(self.pairs[i]["origin"] != "curated" for i in rows):
                keep = max(rows, key=lambda i: (self._own_score(i), -i))
            judging = [i for i in rows if self._passage(i).side in self.held_out]
            dropped += [i for i in judging if i != keep and self.pairs[i]["origin"] != "curated"]
        return [(i, "same wording for different passages") for i in dropped]

    def _own_score(self, row: int) -> float:
        """Cosine of the query and its own passage, base model."""
        return float(self.query_vectors[row] @ self.passage_vectors[self.position[self.pairs[row]["chunk_id"]]])

    def _repeated(self) -> list[tuple[int, str]]:
        """Of nearly equal queries for one near-duplicate group the first stays.

        A person's query that judges gives way to none of another side: that one is the leak, and drops for it.
        """
        rows_of: dict[str, list[int]] = {}
        for i in self._kept():
            rows_of.setdefault(self._passage(i).near_duplicate_group, []).append(i)
        dropped: list[int] = []
        for rows in rows_of.values():
            sides = [self._passage(i).side for i in rows]
            curated = [self.pairs[i]["origin"] == "curated" for i in rows]
            found = repeated(
                [query_key(self.pairs[i]["query"]) for i in rows],
                self.query_vectors[rows],
                sides,
                [by_person and side in self.held_out for by_person, side in zip(curated, sides, strict=True)],
                self.settings.query_similarity,
            )
            dropped += [rows[position] for position in found]
        return [(i, "repeats another query of the passage") for i in sorted(dropped)]

    def _near_other_sides(self) -> list[tuple[int, str]]:
        """A training pair whose passage nearly repeats one that is held out, or whose query asks nearly the same as one there, leaks it."""
        held_out = self.held_out
        sides: dict[str, set[str]] = {}
        for passage in self.passages:
            sides.setdefault(passage.near_duplicate_group, set()).add(passage.side)
        kept = self._kept()
        judging = [i for i in kept if self._passage(i).side in held_out]
        trained = [i for i in kept if self._passage(i).side not in held_out]
        asked = {query_key(self.pairs[i]["query"]) for i in judging}
        nearest = self._nearness(self.query_vectors[trained], self.query_vectors[judging])
        dropped = []
        for i, nearness in zip(trained, nearest, strict=True):
            leaks = sides[self._passage(i).near_duplicate_group] & held_out
            if leaks:
                dropped.append((i, f"passage nearly repeats one of the {min(leaks)} side"))
            elif query_key(self.pairs[i]["query"]) in asked:
                dropped.append((i, "same wording as a held-out query"))
            elif nearness >= self.settings.golden_similarity:
                dropped.append((i, "near a held-out query"))
        return dropped

    def _not_found_back(self) -> list[tuple[int, str]]:
        """Round trip (Promptagator, Dai et al. 2022): neither base nor BM25 finds the passage with its own query.

        An LLM's queries are asked with a wide net: those that the base does not find yet are what a model learns most
        from (docs/experiments/training.md), so only what has little to do with its passage is dropped.
        """
        return [
            *self._missed("offline", self.settings.round_trip_top_k),
            *self._missed("openai", self.settings.llm_round_trip_top_k),
        ]

    def _missed(self, origin: str, top_k: int) -> list[tuple[int, str]]:
        """Training pairs of an origin that neither the base nor BM25 finds back; the fewer passages, the smaller the k."""
        top = min(top_k, len(self.passages) // ROUND_TRIP_PASSAGES_PER_RANK)
        if top < min(top_k, ROUND_TRIP_LEAST_RANKS) or not top:
            return []
        rows = [
            i for i in self._kept() if self.pairs[i]["origin"] == origin and self._passage(i).side not in self.held_out
        ]
        if not rows:
            return []
        group_of = np.array([p.near_duplicate_group for p in self.passages])
        missed = []
        for first in range(0, len(rows), 1024):
            batch = rows[first : first + 1024]
            scores = self.query_vectors[batch] @ self.passage_vectors.T
            best = np.argpartition(-scores, top - 1, axis=1)[:, :top]
            for i, found in zip(batch, best, strict=True):
                if self._passage(i).near_duplicate_group not in group_of[found]:
                    missed.append(i)
        words = PassageWords(self.passages)
        # A passage that nearly repeats it is as good an answer, as it is for the base.
        group_of_chunk = {p.chunk_id: p.near_duplicate_group for p in self.passages}
        return [
            (i, f"neither base nor BM25 finds its passage in the top {top}")
            for i in missed
            if self._passage(i).near_duplicate_group
            not in {group_of_chunk.get(hit.chunk_id) for hit in words.search(self.pairs[i]["query"], top)}
        ]

    def _answering(self, rows: Sequence[int]) -> dict[str, set[str]]:
        """The near-duplicate groups that answer each wording."""
        answering: dict[str, set[str]] = {}
        for i in rows:
            answering.setdefault(query_key(self.pairs[i]["query"]), set()).add(self._passage(i).near_duplicate_group)
        return answering

    def _people_s_negatives(
        self, eligible: Sequence[int], barred: np.ndarray, answering: dict[str, set[str]]
    ) -> dict[int, list[int]]:
        """Negatives that people named, of each pair that has any.

        Left out: held-out passages, and passages that nearly repeat one that answers the same query.
        """
        return {
            i: [
                n
                for n in self.named_negatives[self.pairs[i]["pair_id"]]
                if not barred[n]
                and self.passages[n].near_duplicate_group not in answering[query_key(self.pairs[i]["query"])]
            ]
            for i in eligible
            if self.pairs[i]["pair_id"] in self.named_negatives
        }

    def _barred_from_training(self) -> np.ndarray:
        """Passages that may not be negatives: held out, or nearly repeating what is."""
        held_out = self.held_out
        groups = {p.near_duplicate_group for p in self.passages if p.side in held_out}
        return np.array([p.near_duplicate_group in groups for p in self.passages], dtype=bool)

    def _row(self, i: int, negatives: list[int]) -> dict[str, Any]:
        pair, passage = self.pairs[i], self._passage(i)
        return {
            "pair_id": pair["pair_id"],
            "side": passage.side,
            "dropped_because": self.dropped.get(i),
            "query": pair["query"],
            "chunk_id": pair["chunk_id"],
            "origin": pair["origin"],
            "style": pair["style"],
            "method": pair["method"],
            "unit": passage.unit,
            "overlap": word_overlap(pair["query"], passage.text),
            "negatives": [self.passages[n].chunk_id for n in negatives],
        }
