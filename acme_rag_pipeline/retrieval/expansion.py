"""Document expansion: a passage is found by the queries that were written for it, too.

People and an LLM ask in other words than the passage answers. What they asked stands beside the passage in the index: in the
text that BM25 reads (doc2query; Nogueira et al. 2019, arXiv:1904.08375), and as a vector that moves the passage towards them
(docs/evaluation.md). Templates of the embedded generator repeat the passage's words and add nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from acme_rag_pipeline.retrieval.fusion import Scored
from acme_rag_pipeline.retrieval.sentences import pack, unpacked
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.store.fingerprints import fingerprint

# Raised when the code from here on makes another vector or another text of the same queries.
EXPANSION_VERSION = "1"


def without_expansion(fusion: RetrievalSettings) -> RetrievalSettings:
    """The same recipe with every passage for itself."""
    return fusion.model_copy(update={"expansion_weight": 0.0})


def expanded_text(text: str, queries: Sequence[str]) -> str:
    """What BM25 reads of a passage and the queries that were written for it."""
    return "\n".join((text, *queries))


def expansion_key(queries: Sequence[str]) -> str:
    """What tells a row with these queries from others."""
    return f"+queries{EXPANSION_VERSION}:{fingerprint(list(queries))[:16]}" if queries else ""


def packed_shifts(
    queries: Sequence[Sequence[str]],
    vectors_of: Callable[[Sequence[str]], tuple[np.ndarray, int]],
    any_question: Callable[[], np.ndarray],
) -> tuple[list[bytes | None], int]:
    """Where each passage's queries move it, as it lies in a table.

    What all questions have in common is taken off: else a passage that has queries is near to any question, and one that has
    none far.

    Args:
        queries: of each passage, possibly none.
        vectors_of: queries to (unit vectors, how many had to be encoded).
        any_question: the mean vector of general questions; not asked for without queries.

    Returns:
        Half-precision bytes of a vector, or None, for each passage; and how many queries had to be encoded.
    """
    flat = list(dict.fromkeys(query for asked in queries for query in asked))
    if not flat:
        return [None] * len(queries), 0
    vectors, encoded = vectors_of(flat)
    row = {query: number for number, query in enumerate(flat)}
    common = any_question()
    return [
        pack(vectors[[row[query] for query in asked]].mean(axis=0) - common) if asked else None for asked in queries
    ], encoded


def expanded_cosine(query: np.ndarray, own: np.ndarray, shift: bytes, weight: float) -> float:
    """Cosine of a query with a passage that the queries which were written for it have moved.

    Args:
        query: unit vector.
        own: the passage's unit vector.
        shift: of the passage, by `packed_shifts`.
        weight: of the shift.
    """
    moved = own + weight * unpacked(shift, len(query))[0]
    return float(moved @ query) / max(float(np.linalg.norm(moved)), 1e-12)


def joined_words(plain: Sequence[Scored], expanded: Sequence[Scored]) -> list[Scored]:
    """BM25 over the passages, and over the passages with their queries, each divided by its first hit's: half and half.

    The second alone would leave a passage that nobody asked about behind.

    Args:
        plain, expanded: (id, BM25), best first.
    """
    scores: dict[str, float] = {}
    for ranking in (plain, expanded):
        for key, value in ranking:
            scores[key] = scores.get(key, 0.0) + 0.5 * value / max(ranking[0][1], 1e-12)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def weighed(fusion: Mapping[str, Any] | None) -> bool:
    """Whether a promoted recipe was judged with expansion."""
    return bool(fusion and fusion.get("expansion_weight"))
