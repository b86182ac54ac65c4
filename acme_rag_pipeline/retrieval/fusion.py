"""Joining a dense and a lexical ranking into one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.store.promotion import in_words

Scored = tuple[str, float]
# Of sentences, written queries and neighbours earlier versions knew nothing.
_UNKNOWN_EARLIER = {"sentence_weight": 0.0, "expansion_weight": 0.0, "neighbour_weight": 0.0}


class UnknownFusion(UserError, ValueError):
    """What was decided on joins its rankings with settings that this version does not know."""


def judged_fusion(stored: Mapping[str, Any]) -> RetrievalSettings:
    """How a promoted recipe joins its rankings, as it was written down; earlier versions knew less.

    Raises:
        UnknownFusion: a later version knew more; the message says what to do.
        ValueError, TypeError: it is not what any version wrote.
    """
    try:
        return RetrievalSettings(**(_UNKNOWN_EARLIER | dict(stored)))
    except ValidationError as error:
        raise UnknownFusion(
            f"the fusion that was decided on is not usable ({in_words(error)}): where a later version of this code decided, "
            "go on with that one, or go back with `acme-rag rollback`"
        ) from error


def fuse(dense: Sequence[Scored], lexical: Sequence[Scored], settings: RetrievalSettings) -> list[Scored]:
    """The ranking that the settings ask for.

    Args:
        dense: (id, cosine), best first; hits behind the first `settings.candidates` only follow at the end.
        lexical: (id, BM25), best first.
        settings: method and weight.

    Returns:
        (id, score) pairs, best first; equal scores in the order of the ids.
    """
    near, far = dense[: settings.candidates], dense[settings.candidates :]
    words = lexical[: settings.candidates]
    if settings.fusion == "rrf":
        ranking = reciprocal_rank_fusion([[key for key, _ in near], [key for key, _ in words]], settings.rrf_k)
    else:
        ranking = convex_combination(near, words, settings.dense_weight)
    fused = {key for key, _ in ranking}
    return ranking + [(key, -float(rank)) for rank, (key, _) in enumerate(far, start=1) if key not in fused]


def convex_combination(dense: Sequence[Scored], lexical: Sequence[Scored], dense_weight: float) -> list[Scored]:
    """A weighted sum of the two scores (Bruch, Gai and Ingber 2023, arXiv:2210.11934).

    Cosines are scaled to 0..1 between the last and the first hit of the ranking, whatever range a model uses; BM25 is
    divided by the first hit's score. What only one ranking holds has 0 in the other. Unlike reciprocal ranks the scores
    keep how far ahead a hit is, so that a lexical ranking of nothing but chance words does little harm.

    Args:
        dense: (id, cosine), best first.
        lexical: (id, BM25), best first.
        dense_weight: share of the dense score, 0..1.
    """
    scores: dict[str, float] = {}
    if dense:
        best, last = dense[0][1], dense[-1][1]
        for key, value in dense:
            scores[key] = dense_weight * ((value - last) / (best - last) if best > last else 1.0)
    # With no weight a chance word must not lift a passage over those that the cosine alone has put behind the candidates.
    if lexical and lexical[0][1] > 0 and dense_weight < 1:
        for key, value in lexical:
            scores[key] = scores.get(key, 0.0) + (1 - dense_weight) * value / lexical[0][1]
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def reciprocal_rank_fusion(rankings: Sequence[Sequence[str]], rrf_k: int = 60) -> list[Scored]:
    """Reciprocal rank fusion (Cormack, Clarke and Büttcher, SIGIR 2009).

    Args:
        rankings: ids, best first, each id once in a ranking.
        rrf_k: damps the weight of the first ranks.

    Returns:
        (id, score) pairs, best first; equal scores in the order of the ids.
    """
    scores: dict[str, float] = {}
    for ranking in rankings:
        for rank, key in enumerate(ranking, start=1):
            scores[key] = scores.get(key, 0.0) + 1.0 / (rrf_k + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))
