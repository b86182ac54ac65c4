"""Document expansion: a passage is found by the queries that were written for it, too.

People and an LLM ask in other words than the passage answers. What they asked stands beside the passage in the index: in the
text that BM25 reads (doc2query; Nogueira et al. 2019, arXiv:1904.08375), and as vectors: their mean moves the passage towards
them, and the nearest of them counts as a sentence of it (docs/evaluation.md). Templates of the embedded generator repeat the
passage's words and add nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from acme_rag_pipeline.retrieval.sentences import pack, unpacked
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.store.fingerprints import fingerprint

# Raised when the code from here on makes another vector or another text of the same queries.
EXPANSION_VERSION = "1"
# The first `candidates` x this passages by their own vectors are ordered anew; what lies behind them is found by BM25 or not.
DEPTH = 4


def without_expansion(fusion: RetrievalSettings) -> RetrievalSettings:
    """The same recipe with every passage for itself."""
    return fusion.model_copy(update={"expansion_weight": 0.0})


def expanded_text(text: str, queries: Sequence[str]) -> str:
    """What BM25 reads of a passage and the queries that were written for it."""
    return "\n".join((text, *queries))


def expansion_key(queries: Sequence[str]) -> str:
    """What tells a row with these queries from others."""
    return f"+queries{EXPANSION_VERSION}:{fingerprint(list(queries))[:16]}" if queries else ""


def packed_queries(
    queries: Sequence[Sequence[str]], vectors_of: Callable[[Sequence[str]], tuple[np.ndarray, int]]
) -> tuple[list[bytes | None], int]:
    """The vectors of each passage's queries as they lie in a table.

    Args:
        queries: of each passage, possibly none.
        vectors_of: queries to (unit vectors, how many had to be encoded).

    Returns:
        A `pack` or None for each passage, and how many queries had to be encoded.
    """
    flat = list(dict.fromkeys(query for asked in queries for query in asked))
    if not flat:
        return [None] * len(queries), 0
    vectors, encoded = vectors_of(flat)
    row = {query: number for number, query in enumerate(flat)}
    return [pack(vectors[[row[query] for query in asked]]) if asked else None for asked in queries], encoded


def expanded_cosine(query: np.ndarray, own: np.ndarray, packed: bytes, weight: float) -> float:
    """Cosine of a query with a passage that the queries which were written for it have moved.

    Args:
        query: unit vector.
        own: the passage's unit vector.
        packed: of the passage's queries, by `packed_queries`.
        weight: of their mean beside the passage's own vector.
    """
    moved = own + weight * unpacked(packed, len(query)).mean(axis=0)
    return float(moved @ query) / max(float(np.linalg.norm(moved)), 1e-12)


def weighed(fusion: Mapping[str, Any] | None) -> bool:
    """Whether a promoted recipe was judged with expansion."""
    return bool(fusion and fusion.get("expansion_weight"))
