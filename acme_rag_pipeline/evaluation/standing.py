"""The verdict that holds: what the gate says today, or what was decided on this candidate before."""

from __future__ import annotations

from dataclasses import dataclass

from acme_rag_pipeline.evaluation.contest import Evaluation
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.store.layout import Store


@dataclass(frozen=True)
class Standing:
    """What people are told wherever an evaluation is shown.

    Attributes:
        verdict: of an earlier decision on this candidate, of the person who left the winner behind, or of the gate today.
        of_today: whether it is what the gate says with the numbers of today.
        reason: in words; where an earlier decision stands, that these are the gate's words of today.
    """

    verdict: str
    of_today: bool
    reason: str


def standing_of(store: Store, done: Evaluation) -> Standing:
    """The verdict that holds after an evaluation."""
    verdict, of_today = _standing(store, done)
    told = "" if of_today else "With the numbers of today the gate would say: "
    return Standing(verdict, of_today, told + done.decision.reason)


def _standing(store: Store, done: Evaluation) -> tuple[str, bool]:
    winner = None
    if done.winner is not None:
        encoder, recipe = done.winner
        fusion = done.fusion.model_dump() if recipe == "hybrid" else None
        winner = decisions.retriever_of(encoder.model_digest, recipe, fusion)
    earlier = decisions.decision_on(store, done.contest.candidate_key)
    if earlier is not None:
        if earlier.verdict == decisions.KEPT_BY_A_PERSON and winner and not decisions.is_left_behind(store, winner):
            # Who goes back to the winner by hand puts its promotion in force again.
            earlier = decisions.in_force(store, done.contest.candidate_key) or earlier
        # Of two promotions of one candidate the recipes may differ.
        alike = earlier.verdict == done.decision.verdict and winner in (None, earlier.retriever)
        return earlier.verdict, alike
    if winner is not None and decisions.is_left_behind(store, winner):
        return decisions.KEPT_BY_A_PERSON, False
    return done.decision.verdict, True
