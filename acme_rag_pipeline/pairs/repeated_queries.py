"""Queries of one near-duplicate group that ask the same again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def repeated(
    wordings: Sequence[str], vectors: np.ndarray, sides: Sequence[str], judging: Sequence[bool], similarity: float
) -> list[int]:
    """Positions of the queries that nearly repeat one that was kept before them.

    Each is compared with all of these in one product: thousands of variants of one form are one group.

    Args:
        wordings: of each query what counts as the same wording.
        vectors: unit vectors of the queries, shape (queries, dimension).
        sides: of each query's passage.
        judging: whether a person's query judges: it gives way to none of another side. That one is the leak.
        similarity: cosine from which on two queries ask the same.
    """
    dropped = []
    held = np.empty_like(vectors)
    of_side = np.empty(len(wordings), dtype=object)
    sides_of: dict[str, set[str]] = {}
    count = 0
    for position, (wording, side, judges) in enumerate(zip(wordings, sides, judging, strict=True)):
        asked_on = sides_of.setdefault(wording, set())
        alike = held[:count] @ vectors[position] >= similarity
        if judges:
            repeats = side in asked_on or bool(alike[of_side[:count] == side].any())
        else:
            repeats = bool(asked_on) or bool(alike.any())
        if repeats:
            dropped.append(position)
        else:
            held[count], of_side[count] = vectors[position], side
            asked_on.add(side)
            count += 1
    return dropped
