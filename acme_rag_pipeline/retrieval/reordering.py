"""The order of the nearest passages before they are fused: by their vectors, their queries and their neighbours.

Readers and the evaluation both ask here, so that what was judged is what is served.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from acme_rag_pipeline.retrieval.expansion import expanded_cosine
from acme_rag_pipeline.retrieval.neighbours import Place, with_neighbours
from acme_rag_pipeline.setting_groups import RetrievalSettings

# The first `candidates` x this passages by their own vectors are ordered anew; what lies behind them is found by BM25 or not.
DEPTH = 4


def reordered_depth(fusion: RetrievalSettings, *, by_queries: bool) -> int:
    """How many of the nearest passages are ordered anew; 0 where nothing but their own vectors counts.

    Args:
        fusion: how the hybrid joins its rankings.
        by_queries: whether the passages' own queries are known.
    """
    return DEPTH * fusion.candidates if by_queries or fusion.neighbour_weight else 0


def reordered(
    query: np.ndarray,
    cosines: Sequence[float],
    places: Sequence[Place],
    moves: Sequence[tuple[np.ndarray, bytes] | None],
    fusion: RetrievalSettings,
) -> list[tuple[int, float]]:
    """The nearest passages by what is known of them beside their cosines.

    Args:
        query: unit vector.
        cosines: of the passages, best first.
        places: of the same passages.
        moves: vector and shift of those that have queries of their own, else None.
        fusion: the weights.

    Returns:
        (which of the passages, dense score), best first; equal scores in the order that they came in.
    """
    scores = [
        cosine if move is None else expanded_cosine(query, *move, fusion.expansion_weight)
        for cosine, move in zip(cosines, moves, strict=True)
    ]
    scores = with_neighbours(scores, places, fusion.neighbour_weight)
    return sorted(enumerate(scores), key=lambda scored: -scored[1])
