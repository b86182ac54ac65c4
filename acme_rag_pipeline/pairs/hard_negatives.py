"""Mined hard negatives: passages the base ranks high for a query, but clearly below its own passage."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np


def mine(
    queries: np.ndarray,
    positives: Sequence[int],
    passages: np.ndarray,
    groups: Sequence[str],
    barred: np.ndarray,
    *,
    count: int,
    margin: float,
    answering: Sequence[Collection[str]] | None = None,
) -> list[list[int]]:
    """Positive-aware mining (NV-Retriever, Moreira et al. 2024, arXiv:2407.15831) over the whole collection.

    Args:
        queries: unit vectors, shape (queries, dimension).
        positives: row of each query's own passage.
        passages: unit vectors, shape (passages, dimension).
        groups: near-duplicate group of each passage; the positive's group is never a negative.
        barred: passages that may not be used, shape (passages,).
        count: most negatives of a query.
        margin: a negative scores below this share of the positive's score.
        answering: of each query further groups whose passages answer it, for instance other pairs of the same wording.

    Returns:
        Rows of the negatives of each query, hardest first.
    """
    if not count or not len(queries):
        return [[] for _ in range(len(queries))]
    codes = np.unique(np.asarray(groups), return_inverse=True)[1]
    rows = np.asarray(positives)
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    mined: list[list[int]] = []
    for first in range(0, len(queries), 512):
        batch = rows[first : first + 512]
        scores = queries[first : first + 512] @ passages.T
        own = scores[np.arange(len(batch)), batch]
        scores[codes[None, :] == codes[batch][:, None]] = -np.inf
        for line, right in zip(scores, answering[first : first + 512] if answering else (), strict=False):
            line[[number for group in right for number in members.get(group, ())]] = -np.inf
        scores[:, barred] = -np.inf
        scores[scores >= margin * own[:, None]] = -np.inf
        top = min(count, passages.shape[0])
        best = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        for line, columns in zip(scores, best, strict=True):
            ordered = sorted((c for c in columns if np.isfinite(line[c])), key=lambda c: (-line[c], c))
            mined.append([int(c) for c in ordered])
    return mined
