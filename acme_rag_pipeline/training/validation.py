"""Validation during training: nDCG@10 on queries whose passages the model never trains on."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.store.passages import LivePassage, PassagePrefix
from acme_rag_pipeline.training.rows import KeptPair, content_order
from acme_rag_pipeline.training.whitening import soft_whitening, whitened

# With fewer queries a choice between models would be a coin toss.
MINIMUM_QUERIES = 20
# Encoding the haystack is the cost of a validation; its size hardly moves the ranking of models.
LARGEST_HAYSTACK = 1000
# With fewer headings the LLM's own questions are the better judge of how far to go.
MINIMUM_HEADINGS = 50


class Validation:
    """The validation queries and the passages they are searched in.

    Args:
        pairs: kept pairs of the validation side.
        passages: all passages; a stable sample of them is searched when there are very many.
        headings: the authors' headings as queries, where an LLM wrote the other pairs.

    Attributes:
        pairs: kept pairs of the validation side.
        unlike_training: people's questions and the headings; empty with fewer than `MINIMUM_HEADINGS` of these.
        judging: the questions that a model is judged by: the pairs, or what is unlike training where those are too few.
        passages: what is searched.
    """

    def __init__(
        self, pairs: Sequence[KeptPair], passages: Sequence[LivePassage], headings: Sequence[KeptPair] = ()
    ) -> None:
        self.pairs = list(pairs)
        self.unlike_training: list[KeptPair] = []
        if len(headings) >= MINIMUM_HEADINGS:
            self.unlike_training = [*headings, *(pair for pair in pairs if pair.origin == "curated")]
        # Where there are too few questions the headings, of which there are enough or none, judge alone.
        self.judging = self.pairs if len(self.pairs) >= MINIMUM_QUERIES else self.unlike_training
        own = {pair.passage.chunk_id for pair in [*self.pairs, *self.unlike_training]}
        # By a hash of what they say: a rename takes no passage out of the sample.
        ordered = sorted(passages, key=content_order)
        others = [p for p in ordered if p.chunk_id not in own]
        self.passages = [p for p in ordered if p.chunk_id in own] + others[: max(0, LARGEST_HAYSTACK - len(own))]

        # What a person asked about several passages is answered by each of them.
        self._groups_of_wording: dict[str, list[str]] = {}
        for pair in self.pairs:
            if pair.origin == "curated":
                of_wording = self._groups_of_wording.setdefault(query_key(pair.query), [])
                of_wording.append(pair.passage.near_duplicate_group)

    def _answering(self, pair: KeptPair) -> list[str]:
        """Near-duplicate groups whose passages answer a query."""
        own = [pair.passage.near_duplicate_group]
        return own + (self._groups_of_wording[query_key(pair.query)] if pair.origin == "curated" else [])

    def searched(self) -> list[tuple[str, str, str]]:
        """What the passages say, in a canonical order: they decide what is chosen; empty where nothing is."""
        if not self.usable:
            return []
        return sorted((p.headings(), p.rendered("none"), p.near_duplicate_group) for p in self.passages)

    @property
    def usable(self) -> bool:
        """Whether there are enough queries to choose by."""
        return len(self.judging) >= MINIMUM_QUERIES

    def score(self, encoder: Encoder, prefix: PassagePrefix, held: np.ndarray | None = None) -> float | None:
        """Mean nDCG@10 of a model, or None with too few queries.

        Args:
            encoder: the model.
            prefix: how passages are rendered.
            held: vectors of `passages` from another model, for a query tower.
        """
        return self.scores(encoder, prefix, held)[0]

    def scores(
        self, encoder: Encoder, prefix: PassagePrefix, held: np.ndarray | None = None
    ) -> tuple[float | None, float | None]:
        """The same, and by the questions that are unlike those of the training (people's and headings); None without them."""
        if not self.usable:
            return None, None
        if held is None:
            held = encoder.encode_passages([p.rendered(prefix) for p in self.passages])
        queries = encoder.encode_queries([pair.query for pair in self.judging])
        found = self._ndcg(queries, held, self.judging)
        if self.judging is self.unlike_training:
            return found, found
        unlike = None
        if self.unlike_training:
            asked = encoder.encode_queries([pair.query for pair in self.unlike_training])
            unlike = self._ndcg(asked, held, self.unlike_training)
        return found, unlike

    def score_cached(
        self,
        encoder: Encoder,
        prefix: PassagePrefix,
        cache: EmbeddingCache,
        counts: Callable[[KeptPair], bool] | None = None,
        whitening: float = 0.0,
        *,
        query_side_only: bool = False,
    ) -> float | None:
        """The same for a model whose vectors are worth keeping, such as the base.

        Args:
            encoder: the model.
            prefix: how passages are rendered.
            cache: where its vectors lie.
            counts: which queries to score by; None for all of them.
            whitening: exponent of a soft whitening behind the model; 0 for none.
            query_side_only: the passages keep their vectors, and the queries' are whitened twice.
        """
        pairs = [pair for pair in self.judging if counts is None or counts(pair)]
        if len(pairs) < MINIMUM_QUERIES:
            return None
        queries, _ = cache.queries(encoder, [pair.query for pair in pairs])
        passages, _ = cache.passages(encoder, [p.rendered(prefix) for p in self.passages])
        if whitening:
            matrix = soft_whitening(passages, whitening)
            if query_side_only:
                queries = whitened(queries, matrix @ matrix)
            else:
                queries, passages = whitened(queries, matrix), whitened(passages, matrix)
        return self._ndcg(queries, passages, pairs)

    def _ndcg(self, queries: np.ndarray, passages: np.ndarray, pairs: Sequence[KeptPair]) -> float:
        groups = np.array([p.near_duplicate_group for p in self.passages])
        scores = queries @ passages.T
        gains = []
        for line, pair in zip(scores, pairs, strict=True):
            own = np.isin(groups, self._answering(pair))
            # The rank of the best passage of the group: those that nearly repeat it are as good an answer. An equal score is
            # no find: a model that gives every text one vector must not look perfect.
            rank = 1 + int((line[~own] >= line[own].max()).sum())
            gains.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
        return float(np.mean(gains))
