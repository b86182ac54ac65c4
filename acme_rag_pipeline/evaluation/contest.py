"""A contest: every arm on every query set, and the gate's answer.

Reads the store and writes nothing to it but vectors that were never needed before, into the embedding cache.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from acme_rag_pipeline.evaluation.arms import (
    BASE,
    BASE_HYBRID,
    CHAMPION,
    FINE_TUNED,
    FINE_TUNED_HYBRID,
    Arm,
    ArmResult,
    ArmRunner,
)
from acme_rag_pipeline.evaluation.contestants import Contest, arms_for, champion_arm, in_store, seen_by_a_twin
from acme_rag_pipeline.evaluation.forgetting import Forgetting, general_probe
from acme_rag_pipeline.evaluation.gate import CANNOT_TELL, ArmScores, Decision, GateSettings, decide
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.evaluation.query_sets import HELD_OUT, heading_questions, query_sets
from acme_rag_pipeline.evaluation.words_alone import bm25_ahead
from acme_rag_pipeline.pairs.leaks import leaks_of_today
from acme_rag_pipeline.retrieval.expansion import without_expansion
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import Recipe
from acme_rag_pipeline.training.validation import MINIMUM_HEADINGS

logger = logging.getLogger(__name__)

# A tail that is smaller by far would be lost where the level 1 - 2 * tail is rounded; what this adds to the sum is nothing.
_MOST_HALVINGS = 30


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a contest.

    Attributes:
        results: query set to arms.
        decision: the gate's answer.
        winner: encoder and recipe of the winning arm, None when the champion stays.
        forgetting: general questions, base against candidate; None where there is no candidate with weights of its own.
        fusion: how the winner joins its rankings, if it is a hybrid one.
        bm25_ahead: where BM25 alone scores higher than what readers get, in words.
    """

    evaluation_id: str
    contest: Contest
    queries: Mapping[str, Sequence[JudgedQuery]]
    results: Mapping[str, Sequence[ArmResult]]
    decision: Decision
    winner: tuple[PassageEncoder, Recipe] | None
    seconds: float
    fusion: RetrievalSettings
    forgetting: Forgetting | None = None
    bm25_ahead: str = ""

    def result(self, query_set: str, arm: str) -> ArmResult | None:
        """One arm's result, None if it did not run."""
        return next((r for r in self.results.get(query_set, ()) if r.arm == arm), None)


def run(store: Store, settings: Settings, who: Contest, evaluation_id: str) -> Evaluation:
    """Run every arm on every query set and ask the gate.

    Raises:
        ModelDamaged: the candidate's twin is gone; the candidate was trained on the units that its twin answers for.
    """
    if who.twin is not None and not in_store(store, who.twin):
        raise models.ModelDamaged(
            f"the candidate's twin {models.model_folder(store, who.twin.model_digest)} is gone, and on held-out questions "
            "nothing else may be measured in its place. Bring the folder back from a backup, or run `retrain`, which trains "
            "the candidate again"
        )
    started = time.monotonic()
    runner = ArmRunner(store, settings)
    side = "validation" if who.golden_decides else "test"
    sets = {
        name: with_document_age(store, queries, who.champion.decided_at)
        for name, queries in query_sets(store, side).items()
    }
    said, words, unseen = None, "", ""
    if not who.golden_decides and (seen := seen_by_a_twin(store, who)):
        asked = sets.pop(HELD_OUT, [])
        if left := [query for query in asked if query.query_id not in seen]:
            sets[HELD_OUT] = left
        if len(left) < len(asked):
            unseen = (
                f"{len(asked) - len(left)} of {len(asked)} held-out questions are left out: a model that is measured was trained "
                "on their passages, when these belonged to another unit or another share was held out."
            )
            logger.info("%s", unseen)
    if who.fusion.expansion_weight:
        sets |= {name: runner.with_asked(queries) for name, queries in sets.items() if name != HELD_OUT}
        said = expansion_by_headings(store, runner, who.base)
        if said is not None and said[1] < 0:
            # An LLM that asks about something else must not spoil every hybrid.
            who = replace(who, fusion=without_expansion(who.fusion))
            words = f"No challenger knows the queries that were written for the passages: {_on_headings(*said)}."
    results: dict[str, list[ArmResult]] = {}
    for name, queries in sets.items():
        results[name] = []
        for arm in arms_for(who, held_out=name == HELD_OUT):
            results[name].append(runner.run(arm, queries))
            mean = results[name][-1].metric(PRIMARY)
            logger.info("%s, %s: %s %.4f", name, arm.name, PRIMARY, sum(mean.values()) / max(1, len(mean)))
    decision = _unless_it_leaks(store, settings, _verdict(who, sets, results, settings))
    winner = _winner(decision, who)
    fusion = who.fusion
    if winner is not None and winner[1] == "hybrid" and not who.golden_decides:
        # As a twin that never saw the held-out units stands for a refit that has, the hybrid that does not know the queries,
        # since they judge, stands for the one that does.
        said = expansion_by_headings(store, runner, winner[0])
        if said is not None:
            fusion = runner.fusion if said[1] >= 0 else fusion
            words = (
                f"It is served {'with' if said[1] >= 0 else 'without'} the queries that were written for the passages, which no "
                f"figure here knows, since they are the ones that judge: {_on_headings(*said)}."
            )
    decision = replace(decision, reason=" ".join(filter(None, [decision.reason, unseen, words])))
    forgetting = None
    if who.candidate is not None and who.candidate.model_digest != who.base.model_digest:
        forgetting = general_probe(store, settings, who.base, who.candidate)
        logger.info("%s", forgetting.sentence)
    return Evaluation(
        evaluation_id=evaluation_id,
        contest=who,
        queries=sets,
        results=results,
        decision=decision,
        winner=winner,
        seconds=time.monotonic() - started,
        fusion=fusion,
        forgetting=forgetting,
        bm25_ahead=bm25_ahead(
            sets,
            results,
            {name: arm_of_readers(store, settings, who, decision, fusion, held_out=name == HELD_OUT) for name in sets},
            GateSettings(**settings.gate.model_dump()),
            validation=who.golden_decides,
        ),
    )


def _unless_it_leaks(store: Store, settings: Settings, decision: Decision) -> Decision:
    """The same decision; no promotion of a model that was trained on something that judges it."""
    if decision.winner not in (FINE_TUNED, FINE_TUNED_HYBRID):
        return decision
    leaks = leaks_of_today(store, settings).total
    if not leaks:
        return decision
    reason = (
        f"Training saw {leaks} of what judges the candidate (the check `nothing_leaks` says of which kind), so its numbers "
        f"prove nothing. They say: {decision.reason}"
    )
    return replace(decision, verdict=CANNOT_TELL, winner=None, reason=reason)


def expansion_by_headings(store: Store, runner: ArmRunner, encoder: PassageEncoder) -> tuple[int, float] | None:
    """What the authors' headings, which no LLM wrote, say about the queries that were written for the passages.

    Returns:
        How many headings, and by how much the hybrid's nDCG@10 on them changes when it knows the queries; None where there is
        nothing to choose, or too few headings.
    """
    headings = heading_questions(store)
    if not runner.fusion.expansion_weight or len(headings) < MINIMUM_HEADINGS:
        return None
    means = []
    for fusion in (without_expansion(runner.fusion), runner.fusion):
        scores = runner.run(Arm(FINE_TUNED_HYBRID, encoder, True, fusion), headings).metric(PRIMARY)
        means.append(sum(scores.values()) / len(scores))
    return len(headings), means[1] - means[0]


def _on_headings(headings: int, gain: float) -> str:
    return f"on {headings} headings of the authors they change nDCG@10 by {gain:+.3f}"


def arm_of_readers(
    store: Store, settings: Settings, who: Contest, decision: Decision, fusion: RetrievalSettings, *, held_out: bool
) -> str:
    """The arm of a query set that readers get after this evaluation; empty where none of the arms is it."""
    if decisions.decision_on(store, who.candidate_key) is None:
        if decision.winner is None:
            return champion_arm(who, held_out=held_out)
        # Golden queries that do not decide are asked without the passages' queries, which readers may get all the same.
        as_served = held_out or fusion == who.fusion or not decision.winner.endswith("_hybrid")
        return decision.winner if as_served else ""
    current = decisions.champion_unrecorded(store, settings)
    arm = champion_arm(replace(who, champion=current), held_out=held_out)
    return "" if arm == CHAMPION and current.retriever != who.champion.retriever else arm


def with_document_age(store: Store, queries: Sequence[JudgedQuery], decided_at: datetime) -> list[JudgedQuery]:
    """The queries with a segment `documents`: `new` or `old`, by the document of their first evidence.

    A document is old when a training run had seen a chunk of it before the champion was decided on. Queries that are all of
    one age get no such segment, because it would say nothing.
    """
    with store.warehouse.read() as connection:
        rows = connection.execute(
            "SELECT DISTINCT doc_path FROM chunks JOIN trained_chunks USING (chunk_id) WHERE since IS NULL OR since < ?",
            [decided_at],
        ).fetchall()
    old = {row[0] for row in rows}
    ages = ["old" if query.evidence[0].doc_path in old else "new" for query in queries]
    if len(set(ages)) < 2:
        return list(queries)
    return [
        replace(query, segments=query.segments | {"documents": age}) for query, age in zip(queries, ages, strict=True)
    ]


def segments_of(queries: Sequence[JudgedQuery]) -> dict[str, dict[str, str]]:
    """Segment kind to query id to segment."""
    segments: dict[str, dict[str, str]] = {}
    for query in queries:
        for kind, value in query.segments.items():
            segments.setdefault(kind, {})[query.query_id] = value
    return segments


def _verdict(
    who: Contest,
    sets: Mapping[str, Sequence[JudgedQuery]],
    results: Mapping[str, Sequence[ArmResult]],
    settings: Settings,
) -> Decision:
    queries = sets.get(who.deciding_set, ())
    incumbent = champion_arm(who, held_out=not who.golden_decides)
    trained = {FINE_TUNED, FINE_TUNED_HYBRID} if who.candidate_trained else set()
    trained |= {incumbent} if who.champion_trained else set()
    scores = {
        r.arm: ArmScores(r.arm, r.metric(PRIMARY), flattered=r.arm in trained)
        for r in results.get(who.deciding_set, ())
    }
    challengers = [
        scores[name]
        for name in (BASE, BASE_HYBRID, FINE_TUNED, FINE_TUNED_HYBRID)
        if name in scores and name != incumbent and not (name.startswith(FINE_TUNED) and who.candidate == who.base)
    ]
    allowed = (1 - settings.gate.level) / 2
    tail = tail_after(allowed, who.decided_before)
    found = decide(
        scores.get(incumbent, ArmScores(incumbent, {})),
        challengers,
        {query.query_id: query.unit for query in queries},
        segments_of(queries),
        GateSettings(**settings.gate.model_dump() | {"level": 1 - 2 * tail}),
        "golden" if who.golden_decides else "held_out",
        "documents" if all(" # " not in query.unit for query in queries) else "document sections",
    )
    if not who.decided_before or not found.comparisons:
        return found
    times = "once" if who.decided_before == 1 else f"{who.decided_before} times"
    again = (
        f"This candidate was decided on {times} before, by other evidence or with another fusion, so this time it may be "
        f"promoted by chance in {100 * tail:.2g} % of such decisions instead of {100 * allowed:.2g} %: all decisions after the "
        "first together may promote it by chance at most as often as the first alone."
    )
    return replace(found, reason=f"{found.reason} {again}")


def tail_after(allowed: float, decided_before: int) -> float:
    """Allowed rate of false promotions of a decision on a candidate that was decided on before.

    Bonferroni's inequality for a number of decisions that nobody knows beforehand, as in alpha spending (Lan and DeMets
    1983): each further one gets half of what the one before it got, all of them together at most as much as the first.

    Args:
        allowed: rate of the first decision, between 0 and 1.
        decided_before: decisions on this candidate up to now, by other evidence.
    """
    return allowed / 2 ** min(decided_before, _MOST_HALVINGS)


def _winner(decision: Decision, who: Contest) -> tuple[PassageEncoder, Recipe] | None:
    if decision.winner is None:
        return None
    recipe: Recipe = "hybrid" if decision.winner.endswith("_hybrid") else "dense"
    encoder = who.base if decision.winner.startswith(BASE) else who.candidate
    return (encoder, recipe) if encoder is not None else None
