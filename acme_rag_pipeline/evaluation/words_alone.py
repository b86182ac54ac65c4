"""BM25 alone is no challenger, because words find nothing that is said in others; where it does better, that must be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from acme_rag_pipeline.evaluation.arms import BM25, ArmResult
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.intervals import paired_interval
from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.evaluation.query_sets import HELD_OUT


def bm25_ahead(
    sets: Mapping[str, Sequence[JudgedQuery]], results: Mapping[str, Sequence[ArmResult]], arms: Mapping[str, str]
) -> str:
    """A sentence for each query set on which BM25 alone scores higher than what readers get; empty where there is none.

    Args:
        sets: judged queries by query set.
        results: the arms of each.
        arms: what readers get, by query set; one that did not run is passed over.
    """
    sentences = []
    for name, queries in sets.items():
        scores = {result.arm: result.metric(PRIMARY) for result in results[name]}
        if (arm := arms[name]) not in scores:
            continue
        ids = [query.query_id for query in queries]
        theirs, words = ([scores[which][i] for i in ids] for which in (arm, BM25))
        more = paired_interval(theirs, words, [query.unit for query in queries])
        if more.mean <= 0:
            continue
        sentence = (
            f"BM25 alone, without a model, scores higher than {arm} on the {name.replace('_', '-')} questions: nDCG@10 "
            f"{sum(words) / len(ids):.3f} against {sum(theirs) / len(ids):.3f} "
            f"({more.mean:+.3f}, 95 % interval {max(-1.0, more.low):+.3f} to {min(1.0, more.high):+.3f})"
        )
        sentence += "." if more.low > 0 else "; it may be chance."
        if name == HELD_OUT:
            sentence += " Questions that a machine wrote repeat words of their passage, which favours it."
        sentences.append(sentence)
    return " ".join(sentences)
