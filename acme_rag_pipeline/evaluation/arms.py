"""The arms of a comparison: what each retriever returns for each query, and how it scores."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.intervals import Interval, score_interval
from acme_rag_pipeline.evaluation.metrics import METRICS, Hit, evidence_ranks, finds, score_query
from acme_rag_pipeline.retrieval import expansion, index
from acme_rag_pipeline.retrieval.fusion import Scored, fuse
from acme_rag_pipeline.retrieval.passage_encoder import (
    PassageEncoder,
    embedding_cache,
    encoder_for,
)
from acme_rag_pipeline.retrieval.reordering import reordered, reordered_depth
from acme_rag_pipeline.retrieval.sentences import best_sentence, packed_sentences, with_best_sentence
from acme_rag_pipeline.retrieval.words import PassageWords
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.written_queries import nearly_all_asked, written_queries

DEPTH = 20
# Queries whose cosines to all passages are held at a time.
_BLOCK = 512
BM25, BASE, BASE_HYBRID = "bm25", "base", "base_hybrid"
FINE_TUNED, FINE_TUNED_HYBRID, CHAMPION = "fine_tuned", "fine_tuned_hybrid", "champion"


@dataclass(frozen=True)
class Arm:
    """A retriever under test.

    Attributes:
        encoder: of the passages; None: BM25 alone.
        hybrid: with the passages' own queries, their neighbours and best sentences, and fused with BM25.
        fusion: how; None: as the settings say, without the passages' own queries where an LLM was asked about few of them.
    """

    name: str
    encoder: PassageEncoder | None
    hybrid: bool
    fusion: RetrievalSettings | None = None


@dataclass(frozen=True)
class ArmResult:
    """Scores and best passages of one arm on one query set.

    Attributes:
        scores: by query id, then metric.
        best: chunk ids of the first hits by query id.
        ranks: by query id, for each piece of its evidence the rank of the first hit that finds it; None: not among the first
            `DEPTH`.
    """

    arm: str
    scores: Mapping[str, Mapping[str, float]]
    best: Mapping[str, Sequence[str]]
    ranks: Mapping[str, Sequence[int | None]] = field(default_factory=dict)

    def metric(self, name: str) -> dict[str, float]:
        """One metric by query id."""
        return {query_id: scores[name] for query_id, scores in self.scores.items()}

    def interval(self, name: str, units: Mapping[str, str]) -> Interval:
        """Mean of a metric with its interval, units resampled."""
        ids = sorted(self.scores)
        return score_interval([self.scores[i][name] for i in ids], [units[i] for i in ids])


class ArmRunner:
    """Runs arms over the passages of today. Rankings are those of the served index: exact cosine, the same BM25, the
    same fusion; vectors come from the cache, so a model that is not served (a twin) needs no table.

    Args:
        store, settings: where the passages are, and how rankings are fused.
    """

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._settings = settings
        self.passages = live_passages(store.warehouse)
        self._by_id: dict[str, LivePassage] = {passage.chunk_id: passage for passage in self.passages}
        self._cache: EmbeddingCache = embedding_cache(store)
        self._encoders: dict[str, Encoder] = {}
        self._queries = written_queries(store.warehouse)
        self._lexical: dict[tuple[str, int, bool], list[Scored]] = {}
        self._words = {False: PassageWords(self.passages), True: PassageWords(self.passages, self._queries)}

    def run(self, arm: Arm, queries: Sequence[JudgedQuery]) -> ArmResult:
        """Rank and score every query."""
        rankings = self._rankings(arm, [query.query for query in queries])
        scores, best, ranks = {}, {}, {}
        for query, ranking in zip(queries, rankings, strict=True):
            hits = [Hit(p.doc_path, p.start_char, p.end_char) for p in (self._by_id[i] for i in ranking)]
            scores[query.query_id] = score_query(hits, query.evidence)
            best[query.query_id] = ranking[:3]
            ranks[query.query_id] = evidence_ranks(hits, query.evidence)
        return ArmResult(arm.name, scores, best, ranks)

    @functools.cached_property
    def fusion(self) -> RetrievalSettings:
        """How a hybrid joins its rankings where nothing else is said."""
        known = self._settings.retrieval.expansion_weight and nearly_all_asked(self._store.warehouse)
        return self._settings.retrieval if known else expansion.without_expansion(self._settings.retrieval)

    def with_asked(self, queries: Sequence[JudgedQuery]) -> list[JudgedQuery]:
        """The queries with a segment `asked about`: whether a passage that answers it has written queries in the index.

        Passages without any are found less beside those that have some.
        """
        of_document: dict[str, list[Hit]] = {}
        for chunk_id in self._queries:
            passage = self._by_id[chunk_id]
            hit = Hit(passage.doc_path, passage.start_char, passage.end_char).read()
            of_document.setdefault(passage.doc_path, []).append(hit)
        found = []
        for query in queries:
            asked = any(finds(hit, e) for e in query.evidence for hit in of_document.get(e.doc_path, ()))
            found.append(replace(query, segments=query.segments | {"asked about": "yes" if asked else "no"}))
        return found

    def passage(self, chunk_id: str) -> LivePassage:
        """The passage of a hit."""
        return self._by_id[chunk_id]

    def _rankings(self, arm: Arm, queries: Sequence[str]) -> list[list[str]]:
        if not self.passages:
            return [[] for _ in queries]
        fusion = arm.fusion or self.fusion
        if arm.encoder is None:
            return [_ids(self._bm25(query, fusion.candidates))[:DEPTH] for query in queries]
        if not arm.hybrid:
            return [_ids(ranking) for ranking in self._dense(arm.encoder, queries, DEPTH)]
        expanded = fusion.expansion_weight > 0 and bool(self._queries)
        dense = self._dense_for_fusion(arm.encoder, queries, fusion, expanded=expanded)
        if fusion.sentence_weight:
            dense = self._with_sentences(arm.encoder, queries, dense, fusion.sentence_weight)
        return [
            _ids(fuse(ranking, self._bm25(query, fusion.candidates, expanded=expanded), fusion))[:DEPTH]
            for query, ranking in zip(queries, dense, strict=True)
        ]

    def _dense(self, which: PassageEncoder, queries: Sequence[str], depth: int) -> list[list[Scored]]:
        nearest = self._nearest(which, self._held(which), queries, depth)
        return [[(self.passages[i].chunk_id, cosine) for i, cosine in ranking] for _, ranking in nearest]

    def _dense_for_fusion(
        self, which: PassageEncoder, queries: Sequence[str], fusion: RetrievalSettings, *, expanded: bool
    ) -> list[list[Scored]]:
        shifts = self._shifts(which) if expanded else {}
        anew = reordered_depth(fusion, by_queries=bool(shifts))
        if not anew:
            return self._dense(which, queries, fusion.candidates)
        held, rankings = self._held(which), []
        for vector, nearest in self._nearest(which, held, queries, anew):
            of_rank = [self.passages[i] for i, _ in nearest]
            order = reordered(
                vector,
                [cosine for _, cosine in nearest],
                [(p.doc_path, p.start_char, p.end_char) for p in of_rank],
                [
                    (held[i], shifts[p.chunk_id]) if p.chunk_id in shifts else None
                    for (i, _), p in zip(nearest, of_rank, strict=True)
                ],
                fusion,
            )
            rankings.append([(of_rank[rank].chunk_id, score) for rank, score in order[: fusion.candidates]])
        return rankings

    def _nearest(
        self, which: PassageEncoder, held: np.ndarray, queries: Sequence[str], depth: int
    ) -> Iterator[tuple[np.ndarray, list[tuple[int, float]]]]:
        """Each query's vector with the nearest passages, (which of them, cosine), best first."""
        asked, _ = self._cache.queries(self._encoder(which.model_digest), queries)
        deep = min(depth, len(self.passages))
        blocks = [asked[first : first + _BLOCK] for first in range(0, len(asked), _BLOCK)]
        lines = itertools.chain.from_iterable(block @ held.T for block in blocks)
        for vector, line in zip(asked, lines, strict=True):
            best = np.argpartition(-line, deep - 1)[:deep]
            order = sorted(best, key=lambda i: (-line[i], int(i)))
            yield vector, [(int(i), float(line[i])) for i in order]

    def _held(self, which: PassageEncoder) -> np.ndarray:
        """The vectors of the passages of today, a row each."""
        rendered = [passage.rendered(which.prefix) for passage in self.passages]
        return self._cache.passages(self._encoder(which.passage_model), rendered)[0]

    def _shifts(self, which: PassageEncoder) -> dict[str, bytes]:
        """By chunk id where the queries that were written for it move a passage."""
        asking = self._encoder(which.model_digest)
        packs, _ = expansion.packed_shifts(
            list(self._queries.values()),
            lambda texts: self._cache.queries(asking, texts),
            lambda: index.any_question(self._cache, asking),
        )
        return {chunk_id: shift for chunk_id, shift in zip(self._queries, packs, strict=True) if shift}

    def _with_sentences(
        self,
        which: PassageEncoder,
        queries: Sequence[str],
        rankings: list[list[Scored]],
        weight: float,
    ) -> list[list[Scored]]:
        encoder = self._encoder(which.passage_model)
        ranked = sorted({chunk_id for ranking in rankings for chunk_id, _ in ranking})
        packs, _ = packed_sentences(
            [self._by_id[chunk_id].text for chunk_id in ranked],
            lambda sentences: self._cache.passages(encoder, sentences),
        )
        of_passage = dict(zip(ranked, packs, strict=True))
        asked, _ = self._cache.queries(self._encoder(which.model_digest), queries)
        weighed = [
            [
                (key, with_best_sentence(cosine, best_sentence(vector, of_passage[key]), weight))
                for key, cosine in ranking
            ]
            for vector, ranking in zip(asked, rankings, strict=True)
        ]
        return [sorted(ranking, key=lambda scored: -scored[1]) for ranking in weighed]

    def _encoder(self, digest: str) -> Encoder:
        if digest not in self._encoders:
            self._encoders[digest] = encoder_for(self._store, digest, self._settings)
        return self._encoders[digest]

    def _bm25(self, query: str, depth: int, *, expanded: bool = False) -> list[Scored]:
        key = query, depth, expanded
        if key not in self._lexical:
            hits = self._words[expanded].search(query, depth)
            self._lexical[key] = [(hit.chunk_id, hit.score) for hit in hits if hit.chunk_id in self._by_id]
        return expansion.joined_words(self._bm25(query, depth), self._lexical[key]) if expanded else self._lexical[key]


def _ids(ranking: Sequence[Scored]) -> list[str]:
    return [chunk_id for chunk_id, _ in ranking]


def metric_rows(result: ArmResult, units: Mapping[str, str]) -> list[dict[str, float | str | int]]:
    """One row a metric: value and interval."""
    rows: list[dict[str, float | str | int]] = []
    for metric in METRICS:
        interval = result.interval(metric, units)
        rows.append(
            {
                "arm": result.arm,
                "metric": metric,
                "value": interval.mean,
                "low": max(0.0, interval.low),
                "high": min(1.0, interval.high),
                "queries": interval.queries,
                "units": interval.units,
            }
        )
    return rows
