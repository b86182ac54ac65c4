"""BM25 alone is no challenger, because words find nothing that is said in others; where it does better, that must be said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from acme_rag_pipeline.evaluation.arms import BM25, ArmResult
from acme_rag_pipeline.evaluation.comparison import ArmScores, GateSettings, compare, percent
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.evaluation.query_sets import HELD_OUT


def bm25_ahead(
    sets: Mapping[str, Sequence[JudgedQuery]],
    results: Mapping[str, Sequence[ArmResult]],
    arms: Mapping[str, str],
    gate: GateSettings | None = None,
    *,
    validation: bool = False,
) -> str:
    """A sentence for each query set on which BM25 alone scores higher than what readers get; empty where there is none.

    The interval and whether it may be chance are those of the report's table of every other arm against what readers get:
    adjusted for the number of arms.

    Args:
        sets: judged queries by query set.
        results: the arms of each.
        arms: what readers get, by query set; one that did not run is passed over.
        gate: levels and margins; the defaults without.
        validation: the held-out questions are those that chose the weights.
    """
    sentences = []
    for name, queries in sets.items():
        scores = {result.arm: ArmScores(result.arm, result.metric(PRIMARY)) for result in results[name]}
        if (arm := arms[name]) not in scores or arm == BM25:
            continue
        units = {query.query_id: query.unit for query in queries}
        rows = compare(scores[arm], [s for s in scores.values() if s.arm != arm], units, gate or GateSettings())
        more = next((row for row in rows if row.arm == BM25), None)
        if more is None or more.difference <= 0:
            continue
        called = "validation" if validation and name == HELD_OUT else name.replace("_", "-")
        sentence = (
            f"BM25 alone, without a model, scores higher than {arm} on the {called} questions: nDCG@10 "
            f"{more.challenger_mean:.3f} against {more.champion_mean:.3f} "
            f"({more.difference:+.3f}, between {more.low:+.3f} and {more.high:+.3f} with {percent(more.level)} % confidence)"
        )
        sentence += "." if more.significant else "; it may be chance."
        if name == HELD_OUT:
            sentence += " Questions that a machine wrote repeat words of their passage, which favours it."
        sentences.append(sentence)
    return " ".join(sentences)
