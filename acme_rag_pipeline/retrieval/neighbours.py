"""A passage beside one that answers the query is the likelier to answer it, too.

Where a document was cut, an answer goes on in the next passage, or says what the one before had named. So hybrid retrieval
counts the better one of the two passages that stand beside it (docs/evaluation.md). Local context of a sentence is used so by
Fernández, Losada and Azzopardi (2011, "Extending the language modeling framework for sentence retrieval to include local
context"); what its document is worth to a passage is measured by Wang, Reimers and Gurevych (2023, arXiv:2305.13915). Nothing
is stored for it: it is read off the scores and the places of the nearest passages.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

# Document, first character, character after the last one.
Place = tuple[str, int, int]
# Characters, at most, between two passages that stand beside each other; the splitter leaves only white space.
GAP = 100


def with_neighbours(scores: Sequence[float], places: Sequence[Place], weight: float) -> list[float]:
    """The scores of passages, and `weight` of the better one of those that stand beside them.

    A neighbour that is not among them counts as the lowest of their scores. So does one that does not exist: what stands
    alone is not lifted over what an answer was cut into.

    Args:
        scores: of the passages that are nearest to the query.
        places: of the same passages.
        weight: 0..1; the passage's own score has the rest.
    """
    if not scores or not weight:
        return list(scores)
    beside = [min(scores)] * len(scores)
    order = sorted(range(len(scores)), key=lambda i: places[i])
    for one, other in itertools.pairwise(order):
        if places[one][0] == places[other][0] and places[other][1] - places[one][2] <= GAP:
            beside[one] = max(beside[one], scores[other])
            beside[other] = max(beside[other], scores[one])
    return [(1 - weight) * own + weight * best for own, best in zip(scores, beside, strict=True)]
