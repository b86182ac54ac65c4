"""A contest: who is compared with whom, on which questions, and the gate's answer. Reads the store, writes nothing."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from acme_rag_pipeline.evaluation.arms import (
    BASE,
    BASE_HYBRID,
    BM25,
    CHAMPION,
    FINE_TUNED,
    FINE_TUNED_HYBRID,
    Arm,
    ArmResult,
    ArmRunner,
)
from acme_rag_pipeline.evaluation.forgetting import Forgetting, general_probe
from acme_rag_pipeline.evaluation.gate import PEOPLE, ArmScores, Decision, GateSettings, decide
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.metrics import PRIMARY
from acme_rag_pipeline.evaluation.query_sets import GOLDEN, HELD_OUT, query_sets
from acme_rag_pipeline.evaluation.words_alone import bm25_ahead
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.fusion import judged_fusion
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import Recipe
from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import records

logger = logging.getLogger(__name__)

# A tail that is smaller by far would be lost where the level 1 - 2 * tail is rounded; what this adds to the sum is nothing.
_MOST_HALVINGS = 30


@dataclass(frozen=True)
class Contest:
    """Who is compared: the candidate, its twin, and the champion it must beat.

    Attributes:
        candidate: as it would be served; None when none was trained.
        twin: what is measured on held-out units in its place; None where the candidate itself never saw them.
        champion: what readers use before this decision.
        champion_twin: what is measured in the champion's place on held-out units.
        champion_twin_lost: the champion had a twin and the store has not: the champion itself, which was trained on these
            units, is measured.
        champion_trained: the champion's model learned from questions. One that was the base once did not.
        golden_decides: golden queries decide; else held-out units do.
        candidate_key: identity of this candidate for the rule of one decision each.
        decided_before: decisions on this candidate by other golden queries, or with another fusion: each was a chance to be
            promoted by chance, so this one asks for more.
        base: the base model as it is indexed.
        fusion: how the fused challengers join their rankings; the champion keeps what it was promoted with.
    """

    candidate: index.PassageEncoder | None
    twin: index.PassageEncoder | None
    champion: decisions.Decision
    champion_twin: index.PassageEncoder | None
    golden_decides: bool
    candidate_key: str
    base: index.PassageEncoder
    fusion: RetrievalSettings
    decided_before: int = 0
    champion_twin_lost: bool = False
    champion_trained: bool = False

    @property
    def champion_fusion(self) -> RetrievalSettings:
        """How the champion joins its rankings, if it is fused."""
        return judged_fusion(self.champion.fusion) if self.champion.fusion else self.fusion

    @property
    def deciding_set(self) -> str:
        """The query set whose comparison is the verdict."""
        return GOLDEN if self.golden_decides else HELD_OUT


@dataclass(frozen=True)
class Evaluation:
    """The outcome of a contest.

    Attributes:
        results: query set to arms.
        decision: the gate's answer.
        winner: encoder and recipe of the winning arm, None when the champion stays.
        forgetting: general questions, base against candidate; None where there is no candidate with weights of its own.
        bm25_ahead: where BM25 alone scores higher than what readers get, in words.
    """

    evaluation_id: str
    contest: Contest
    queries: Mapping[str, Sequence[JudgedQuery]]
    results: Mapping[str, Sequence[ArmResult]]
    decision: Decision
    winner: tuple[index.PassageEncoder, Recipe] | None
    seconds: float
    forgetting: Forgetting | None = None
    bm25_ahead: str = ""

    def result(self, query_set: str, arm: str) -> ArmResult | None:
        """One arm's result, None if it did not run."""
        return next((r for r in self.results.get(query_set, ()) if r.arm == arm), None)


def contest(store: Store, settings: Settings) -> Contest:
    """Read from the store who is to be compared. Before the first decision two calls differ in the champion's time."""
    base = index.PassageEncoder(index.install_base(store, settings).digest, index.BASE_PREFIX)
    candidate = index.newest_candidate(store)
    key = _key_of_today(store, candidate) + _other_fusion(settings)
    before = decisions.champion_before(store, settings, key)
    champion_twin = _twin_of(store, before)
    champion_twin_lost = champion_twin is not None and not _in_store(store, champion_twin)
    return Contest(
        candidate=candidate,
        twin=_twin(candidate, stored_detail(store.warehouse, "fine_tuned_model", "twin_digest")),
        champion=before,
        champion_twin=None if champion_twin_lost else champion_twin,
        golden_decides=_golden_decides(store),
        candidate_key=key,
        base=base,
        fusion=settings.retrieval,
        decided_before=decisions.decided_with_other_evidence(store, candidate, key),
        champion_twin_lost=champion_twin_lost,
        champion_trained=_trained(store, before.model_digest),
    )


def candidate_undecided(store: Store) -> bool:
    """Whether the newest candidate was never decided on with the evidence of today: a run ended too early."""
    candidate = index.newest_candidate(store)
    if candidate is None:
        return False
    key = _key_of_today(store, candidate)
    return all(not (decision.candidate_key or "").startswith(key) for decision in decisions.decisions(store))


def _key_of_today(store: Store, candidate: index.PassageEncoder | None) -> str:
    """New judged queries are new evidence where they decide: then a candidate may be decided on again.

    Where held-out units decide it is decided on once: golden queries that are only shown are no evidence for the verdict.
    """
    golden: list[Any] = []
    if _golden_decides(store):
        with store.warehouse.read() as connection:
            golden = connection.execute(
                "SELECT query_id, query, doc_path, quote, relevance FROM golden_queries JOIN golden_judgements "
                "USING (query_id) ORDER BY query_id, ordinal"
            ).fetchall()
    return f"{decisions.candidate_key(candidate)}/{fingerprint(golden)[:12]}"


def _golden_decides(store: Store) -> bool:
    return stored_detail(store.warehouse, "training_set", "judged_by") == "golden queries"


def _other_fusion(settings: Settings) -> str:
    """Rankings that are joined in another way than by the first version's defaults are another recipe, to be decided on."""
    first = RetrievalSettings(sentence_weight=0, dense_weight=0.6).model_dump()
    changed = {name: value for name, value in settings.retrieval.model_dump().items() if value != first[name]}
    return f"/{fingerprint(changed)[:12]}" if changed else ""


def run(store: Store, settings: Settings, who: Contest, evaluation_id: str) -> Evaluation:
    """Run every arm on every query set and ask the gate.

    Raises:
        ModelDamaged: the candidate's twin is gone; the candidate was trained on the units that its twin answers for.
    """
    if who.twin is not None and not _in_store(store, who.twin):
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
    results: dict[str, list[ArmResult]] = {}
    for name, queries in sets.items():
        results[name] = []
        for arm in arms_for(who, held_out=name == HELD_OUT):
            results[name].append(runner.run(arm, queries))
            mean = results[name][-1].metric(PRIMARY)
            logger.info("%s, %s: %s %.4f", name, arm.name, PRIMARY, sum(mean.values()) / max(1, len(mean)))
    decision = _verdict(who, sets, results, settings)
    winner = _winner(decision, who)
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
        forgetting=forgetting,
        bm25_ahead=bm25_ahead(sets, results, _arm_of_readers(store, settings, who, decision)),
    )


def arms_for(who: Contest, *, held_out: bool) -> list[Arm]:
    """The arms, the simplest first; on held-out units twins stand in for models that have seen them."""
    arms = [Arm(BM25, None, False), Arm(BASE, who.base, False), Arm(BASE_HYBRID, who.base, True)]
    if who.candidate is not None:
        measured = measured_candidate(who, held_out=held_out)
        arms += [Arm(FINE_TUNED, measured, False), Arm(FINE_TUNED_HYBRID, measured, True)]
    if champion_arm(who) == CHAMPION:
        measured = who.champion_twin if held_out and who.champion_twin else who.champion.encoder
        arms.append(Arm(CHAMPION, measured, who.champion.recipe == "hybrid", who.champion_fusion))
    return arms


def measured_candidate(who: Contest, *, held_out: bool) -> index.PassageEncoder | None:
    """What is measured in the candidate's name: its twin on held-out units, where it has one."""
    return who.twin if held_out and who.twin else who.candidate


def champion_arm(who: Contest) -> str:
    """The name under which the champion runs: one of the other arms where it is the same."""
    hybrid = who.champion.recipe == "hybrid"
    if hybrid and who.champion_fusion != who.fusion:
        return CHAMPION
    if who.champion.encoder == who.base:
        return BASE_HYBRID if hybrid else BASE
    if who.champion.encoder == who.candidate:
        return FINE_TUNED_HYBRID if hybrid else FINE_TUNED
    return CHAMPION


def _arm_of_readers(store: Store, settings: Settings, who: Contest, decision: Decision) -> str:
    """The arm that readers get after this evaluation; empty where none of the arms is it."""
    if decisions.decision_on(store, who.candidate_key) is None:
        return decision.winner or champion_arm(who)
    current = decisions.champion_unrecorded(store, settings)
    arm = champion_arm(replace(who, champion=current))
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
    machine = sum(query.segments.get("origin") != PEOPLE for query in queries)
    synthetic = not who.golden_decides and 2 * machine > len(queries)
    incumbent = champion_arm(who)
    trained = {FINE_TUNED, FINE_TUNED_HYBRID} | ({incumbent} if who.champion_trained else set())
    scores = {
        r.arm: ArmScores(r.arm, r.metric(PRIMARY), flattered=synthetic and r.arm in trained)
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


def _winner(decision: Decision, who: Contest) -> tuple[index.PassageEncoder, Recipe] | None:
    if decision.winner is None:
        return None
    recipe: Recipe = "hybrid" if decision.winner.endswith("_hybrid") else "dense"
    encoder = who.base if decision.winner.startswith(BASE) else who.candidate
    return (encoder, recipe) if encoder is not None else None


def _twin_of(store: Store, decision: decisions.Decision) -> index.PassageEncoder | None:
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT twin_digest FROM models WHERE model_digest = ? AND twin_digest IS NOT NULL ORDER BY created_at DESC",
            [decision.model_digest],
        )
    return _twin(decision.encoder, rows[0]["twin_digest"]) if rows else None


def _twin(served: index.PassageEncoder | None, digest: str | None) -> index.PassageEncoder | None:
    return replace(served, model_digest=digest) if served is not None and digest is not None else None


def _trained(store: Store, digest: str) -> bool:
    """Whether a model has tuned weights: a candidate that validation gave none of them is the base, or the base whitened."""
    with store.warehouse.read() as connection:
        rows = records(connection, "SELECT manifest FROM models WHERE model_digest = ?", [digest])
    return any(json.loads(row["manifest"]).get("share") != 0 for row in rows)


def _in_store(store: Store, encoder: index.PassageEncoder) -> bool:
    return models.model_folder(store, encoder.model_digest).exists()
