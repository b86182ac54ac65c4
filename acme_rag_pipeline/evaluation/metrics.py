"""Retrieval metrics on character spans, independent of how documents were cut into chunks.

A hit finds a piece of evidence when it holds at least half of it or lies at least half inside it, each piece counts
once, and a hit is read only up to its first ``MAX_HIT_CHARACTERS`` characters, so that neither small overlapping chunks
nor whole documents earn anything extra.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PRIMARY = "ndcg@10"
METRICS: tuple[str, ...] = (PRIMARY, "mrr@10", "recall@1", "recall@5", "recall@10", "recall@20")

MAX_HIT_CHARACTERS = 2400
DEPTH = 10
RECALL_DEPTHS = (1, 5, 10, 20)


@dataclass(frozen=True)
class Evidence:
    """A judged piece of text that answers a query.

    Attributes:
        doc_path: POSIX path of the document, relative to the documents folder.
        start: First character in the parsed text; None means the whole document.
        end: Character after the last one; ignored when ``start`` is None.
        relevance: Gain of the piece; pieces with a gain of zero or less are not evidence.
    """

    doc_path: str
    start: int | None
    end: int | None
    relevance: int = 1

    def __post_init__(self) -> None:
        if self.start is not None and (self.end is None or self.end <= self.start):
            raise ValueError(
                f"evidence in {self.doc_path!r} starts at {self.start} and ends at {self.end}: an empty span"
            )


@dataclass(frozen=True)
class Hit:
    """A passage that a retriever returned: characters ``start`` to ``end`` of a document's parsed text."""

    doc_path: str
    start: int
    end: int

    def read(self) -> Hit:
        """The part that counts: its first ``MAX_HIT_CHARACTERS`` characters."""
        return Hit(self.doc_path, self.start, min(self.end, self.start + MAX_HIT_CHARACTERS))


def finds(hit: Hit, evidence: Evidence) -> bool:
    """Tell whether a hit finds a piece of evidence: it holds half of it, or lies half inside it.

    The hit is taken as it is; ``Hit.read`` cuts it to what counts.
    """
    if hit.doc_path != evidence.doc_path:
        return False
    if evidence.start is None or evidence.end is None:
        return True
    overlap = min(hit.end, evidence.end) - max(hit.start, evidence.start)
    return overlap > 0 and (2 * overlap >= evidence.end - evidence.start or 2 * overlap >= hit.end - hit.start)


def score_query(hits: Sequence[Hit], evidence: Sequence[Evidence]) -> dict[str, float]:
    """Score one query's ranked hits.

    nDCG follows Järvelin and Kekäläinen (2002) with linear gains and a log2 discount. It is capped at 1, because one
    hit may find several pieces, which the ideal ranking lists one a rank. Recall@k divides by ``min(k, pieces)``, so
    that 1 can be reached at every depth.

    Args:
        hits: Best first. Hits below rank 20 do not matter.
        evidence: The judged pieces of this query, in any order.

    Returns:
        A value between 0 and 1 for each name in ``METRICS``.

    Raises:
        ValueError: No piece of evidence has a relevance above zero, so nothing could be found.
    """
    pieces = [piece for piece in evidence if piece.relevance > 0]
    if not pieces:
        raise ValueError("a query without relevant evidence cannot be scored")

    dcg, reciprocal_rank, found = 0.0, 0.0, dict.fromkeys(RECALL_DEPTHS, 0)
    for rank, new in _first_finds(hits[: max(RECALL_DEPTHS)], pieces):
        if rank < DEPTH:
            dcg += sum(piece.relevance for piece in new) / math.log2(rank + 2)
            reciprocal_rank = reciprocal_rank or 1 / (rank + 1)
        for depth in RECALL_DEPTHS:
            if rank < depth:
                found[depth] += len(new)

    gains = sorted((piece.relevance for piece in pieces), reverse=True)[:DEPTH]
    ideal = sum(gain / math.log2(rank + 2) for rank, gain in enumerate(gains))
    scores = {PRIMARY: min(1.0, dcg / ideal), "mrr@10": reciprocal_rank}
    # One hit can find more pieces than k ranks could list; a share above 1 would read as a mistake.
    return scores | {f"recall@{k}": min(1.0, found[k] / min(k, len(pieces))) for k in RECALL_DEPTHS}


def evidence_ranks(hits: Sequence[Hit], evidence: Sequence[Evidence]) -> list[int | None]:
    """The rank, counted from 1, of the first hit that finds each piece of evidence; None: no hit does."""
    read = [hit.read() for hit in hits]
    return [next((rank for rank, hit in enumerate(read, start=1) if finds(hit, piece)), None) for piece in evidence]


def _first_finds(hits: Sequence[Hit], pieces: Sequence[Evidence]) -> Iterator[tuple[int, list[Evidence]]]:
    """Yield (zero-based rank, pieces found there for the first time) for each rank that finds something new."""
    left = list(pieces)
    for rank, hit in enumerate(hits):
        new = [piece for piece in left if finds(hit.read(), piece)]
        if new:
            yield rank, new
            left = [piece for piece in left if piece not in new]
