"""The `promoted_retriever` stage: acts on what the newest evaluation found."""

from __future__ import annotations

import json
from typing import Any, cast

from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder
from acme_rag_pipeline.serving.decisions import (
    KEPT_BY_A_PERSON,
    PROMOTED,
    STAGE,
    Decision,
    RetrieverKey,
    append,
    champion,
    decision_on,
    fusion_of,
    is_left_behind,
    newest_verdict,
    retriever_of,
)
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import Recipe
from acme_rag_pipeline.store.stages import StageResult, UpstreamMissing, data_versions, overtaken, record, recorded

CODE_VERSION = "1"
KEPT_BECAUSE = "a person rolled back from the winner: it is not promoted again by itself"
NOT_COMPARED = "not decided: readers get something else by now than the candidate was compared with"


def decide_promotion(store: Store, settings: Settings) -> StageResult:
    """Act on the stored verdict of the newest evaluation.

    A candidate is decided on once. Without a new one the last decision stands and nothing is written.

    Raises:
        UpstreamMissing: `evaluation_report` has never run.
    """
    upstream = data_versions(store.warehouse, "evaluation_report")
    made_from = fingerprint(STAGE, CODE_VERSION, upstream)
    current = champion(store, settings)
    if (unchanged := recorded(store.warehouse, STAGE, fingerprint(made_from, current.decision))) is not None:
        return unchanged
    with store.writer(STAGE):
        if overtaken(store.warehouse, upstream) or champion(store, settings) != current:
            return decide_promotion(store, settings)
        found = newest_verdict(store)
        if found is None:
            raise UpstreamMissing("`evaluation_report` left no verdict: run it again")
        key = found["candidate_key"]
        decided = decision_on(store, key)
        if decided is not None:
            outcome = f"this candidate was decided on before ({decided.verdict}); {current.verdict} stands"
        elif not _is_the_compared(found, current):
            # A person went back while, or after, the candidate was compared with what readers had before.
            outcome = f"{NOT_COMPARED}: run `retrain` to compare it with that"
        elif found["verdict"] == PROMOTED and is_left_behind(store, _winner(found)):
            refused = {
                "verdict": KEPT_BY_A_PERSON,
                "reason": f"{KEPT_BECAUSE}. Without that the verdict were: {found['reason']}",
            }
            current = _act(store, found | refused, current)
            outcome = KEPT_BECAUSE
        else:
            current = _act(store, found, current)
            outcome = current.reason
        details = details_of(current) | {"outcome": outcome}
        if ahead := json.loads(found["details"]).get("bm25_ahead"):
            details["bm25_ahead"] = ahead
        with store.warehouse.write() as connection:
            result = StageResult(STAGE, data_version_of(current), details=details)
            return record(connection, result, fingerprint(made_from, current.decision))


def details_of(decision: Decision) -> dict[str, Any]:
    """What is shown of a decision."""
    return {
        "verdict": decision.verdict,
        "reason": decision.reason,
        "model_digest": decision.model_digest,
        "recipe": decision.recipe,
        "decided_at": decision.decided_at.isoformat(),
        "decision": decision.decision,
    }


def data_version_of(decision: Decision) -> str:
    """Hash of what readers use by this decision."""
    served = [decision.model_digest, decision.recipe, decision.passage_prefix]
    return fingerprint(*served, *([decision.fusion] if decision.fusion else []))


def _is_the_compared(verdict: dict[str, Any], current: Decision) -> bool:
    """Whether what readers use is what the candidate was compared with."""
    compared = verdict["champion_digest"], verdict["champion_recipe"]
    known = verdict["champion_fusion"]
    alike = known is None or json.loads(known) == current.fusion
    return compared == (current.model_digest, current.recipe) and alike


def _act(store: Store, verdict: dict[str, Any], current: Decision) -> Decision:
    promoted = verdict["verdict"] == PROMOTED
    winner = [verdict[name] for name in ("winner_digest", "winner_prefix", "winner_passage_digest")]
    encoder = PassageEncoder(*winner) if promoted else current.encoder
    return append(
        store,
        encoder=encoder,
        recipe=cast(Recipe, verdict["winner_recipe"]) if promoted else current.recipe,
        fusion=fusion_of(verdict["winner_fusion"]) if promoted else current.fusion,
        verdict=verdict["verdict"],
        reason=verdict["reason"],
        candidate_digest=verdict["candidate_digest"],
        candidate_key=verdict["candidate_key"],
        evaluation_id=verdict["evaluation_id"],
    )


def _winner(verdict: dict[str, Any]) -> RetrieverKey:
    return retriever_of(verdict["winner_digest"], verdict["winner_recipe"], fusion_of(verdict["winner_fusion"]))
