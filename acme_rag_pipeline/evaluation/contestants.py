"""Who is compared with whom: the candidate, its twin, the champion, and the arms that stand for them.

Reads the store; but `contest` sees to it that the store holds a whole copy of the base model.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from acme_rag_pipeline.evaluation.arms import (
    BASE,
    BASE_HYBRID,
    BM25,
    CHAMPION,
    FINE_TUNED,
    FINE_TUNED_HYBRID,
    Arm,
)
from acme_rag_pipeline.evaluation.query_sets import GOLDEN, HELD_OUT
from acme_rag_pipeline.retrieval.expansion import without_expansion
from acme_rag_pipeline.retrieval.fusion import judged_fusion
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base, newest_candidate
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.judged_by import golden_queries_decide
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import records
from acme_rag_pipeline.store.written_queries import nearly_all_asked

NOT_DECIDED = "not decided"


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
        champion_without_twin: the champion never had a twin and was trained on test units, since golden queries decided then:
            where held-out units decide now it is measured on what it was trained on.
        candidate_trained: the candidate's model learned from questions: validation gave it tuned weights.
        golden_decides: golden queries decide; else held-out units do.
        candidate_key: identity of this candidate for the rule of one decision each.
        decided_before: decisions on this candidate by other golden queries, by half as many held-out questions, or with another
            fusion: each was a chance to be
            promoted by chance, so this one asks for more.
        base: the base model as it is indexed.
        fusion: how the fused challengers join their rankings; the champion keeps what it was promoted with.
    """

    candidate: PassageEncoder | None
    twin: PassageEncoder | None
    champion: decisions.Decision
    champion_twin: PassageEncoder | None
    golden_decides: bool
    candidate_key: str
    base: PassageEncoder
    fusion: RetrievalSettings
    decided_before: int = 0
    champion_twin_lost: bool = False
    champion_trained: bool = False
    champion_without_twin: bool = False
    candidate_trained: bool = True

    @property
    def champion_fusion(self) -> RetrievalSettings:
        """How the champion joins its rankings, if it is fused."""
        return judged_fusion(self.champion.fusion) if self.champion.fusion else self.fusion

    @property
    def deciding_set(self) -> str:
        """The query set whose comparison is the verdict."""
        return GOLDEN if self.golden_decides else HELD_OUT


def contest(store: Store, settings: Settings) -> Contest:
    """Read from the store who is to be compared. Before the first decision two calls differ in the champion's time.

    A base model that the store lacks, or that lost files, is copied into it first, under the writer lock (`install_base`).
    """
    base = PassageEncoder(install_base(store, settings).digest, BASE_PREFIX)
    candidate = newest_candidate(store)
    fusion = _fusion(store, settings)
    key = _key_of_today(store, candidate) + _other_fusion(fusion)
    before = decisions.champion_before(store, settings, key)
    champion_twin = _twin_of(store, before)
    champion_twin_lost = champion_twin is not None and not in_store(store, champion_twin)
    return Contest(
        candidate=candidate,
        twin=_twin(candidate, stored_detail(store.warehouse, "fine_tuned_model", "twin_digest")),
        champion=before,
        champion_twin=None if champion_twin_lost else champion_twin,
        golden_decides=golden_queries_decide(store.warehouse),
        candidate_key=key,
        base=base,
        fusion=fusion,
        decided_before=decisions.decided_with_other_evidence(store, candidate, key),
        champion_twin_lost=champion_twin_lost,
        champion_trained=_trained(store, before.model_digest),
        champion_without_twin=champion_twin is None
        and _trained(store, before.model_digest)
        and _trained_on_test(store, before.model_digest),
        candidate_trained=candidate is not None and _trained(store, candidate.model_digest, unknown=True),
    )


def candidate_undecided(store: Store) -> bool:
    """Whether the newest candidate was never decided on with the evidence of today: a run ended too early."""
    candidate = newest_candidate(store)
    if candidate is None:
        return False
    key = _key_of_today(store, candidate)
    return all(not (decision.candidate_key or "").startswith(key) for decision in decisions.decisions(store))


def outcome_of_the_newest(store: Store) -> tuple[str, str]:
    """What became of the newest candidate: the verdict in force and its reason; `not decided`, and what to do, without one."""
    newest = decisions.newest_verdict(store)
    if newest is None:
        return NOT_DECIDED, "nothing has been evaluated yet: run `retrain` first"
    if candidate_undecided(store):
        return NOT_DECIDED, "the newest candidate was never judged: run `retrain`"
    decided = decisions.on_the_newest_candidate(store)
    if decided is None:
        return NOT_DECIDED, f"{newest['verdict']}, but nothing was decided on it yet: run `retrain` again"
    return decided.verdict, decided.reason


def arms_for(who: Contest, *, held_out: bool) -> list[Arm]:
    """The arms, the simplest first.

    On held-out units twins stand in for models that have seen them, and no arm knows the queries that were written for the
    passages: they are the ones that judge.
    """
    fusion, champion_fusion = who.fusion, who.champion_fusion
    if held_out:
        fusion, champion_fusion = without_expansion(fusion), without_expansion(champion_fusion)
    arms = [Arm(BM25, None, False), Arm(BASE, who.base, False), Arm(BASE_HYBRID, who.base, True, fusion)]
    if who.candidate is not None:
        measured = measured_candidate(who, held_out=held_out)
        arms += [Arm(FINE_TUNED, measured, False), Arm(FINE_TUNED_HYBRID, measured, True, fusion)]
    if champion_arm(who, held_out=held_out) == CHAMPION:
        measured = who.champion_twin if held_out and who.champion_twin else who.champion.encoder
        arms.append(Arm(CHAMPION, measured, who.champion.recipe == "hybrid", champion_fusion))
    return arms


def measured_candidate(who: Contest, *, held_out: bool) -> PassageEncoder | None:
    """What is measured in the candidate's name: its twin on held-out units, where it has one."""
    return who.twin if held_out and who.twin else who.candidate


def champion_arm(who: Contest, *, held_out: bool) -> str:
    """The name under which the champion runs: one of the other arms where it is the same."""
    hybrid = who.champion.recipe == "hybrid"
    fusions = [who.champion_fusion, who.fusion]
    if held_out:
        fusions = [without_expansion(fusion) for fusion in fusions]
    if hybrid and fusions[0] != fusions[1]:
        return CHAMPION
    if who.champion.encoder == who.base:
        return BASE_HYBRID if hybrid else BASE
    if who.champion.encoder == who.candidate:
        return FINE_TUNED_HYBRID if hybrid else FINE_TUNED
    return CHAMPION


def seen_by_a_twin(store: Store, who: Contest) -> set[str]:
    """Ids of held-out questions whose passage a measured twin was trained on.

    A side is a hash of a unit, but a unit can change: sections become documents as a collection grows, a document is renamed,
    the test share is another one. A champion's twin is as old as the champion.
    """
    twins = {twin.model_digest for twin in (who.twin, who.champion_twin) if twin is not None} - {who.base.model_digest}
    with store.warehouse.read() as connection:
        rows = connection.execute(
            "SELECT pair_id FROM training_pairs JOIN chunks USING (chunk_id) WHERE training_pairs.side = 'test' AND text_hash IN ("
            "SELECT text_hash FROM trained_pairs JOIN models USING (training_key) "
            "WHERE trained_pairs.side = 'train' AND list_contains(?, twin_digest))",
            [sorted(twins)],
        ).fetchall()
    return {row[0] for row in rows}


def in_store(store: Store, encoder: PassageEncoder) -> bool:
    """Whether a model's folder is there."""
    return models.model_folder(store, encoder.model_digest).exists()


def _key_of_today(store: Store, candidate: PassageEncoder | None) -> str:
    """New judged queries are new evidence where they decide: then a candidate may be decided on again.

    Where held-out units decide it is decided on once: golden queries that are only shown are no evidence for the verdict. Without
    a candidate that learned anything the fusion of the base is decided on again when there are twice as many held-out questions.
    A judgement without a quote is known by all that its line says, the span among it, and not by where it was found. The order of
    the lines, judgements of no relevance and those of a document that never was there are no evidence.
    """
    key = decisions.candidate_key(candidate)
    if not golden_queries_decide(store.warehouse) and (
        candidate is None or not _trained(store, candidate.model_digest, unknown=True)
    ):
        # A new training set brings another candidate, but for those that no training makes.
        return f"{key}/{_questions_decided_with(store, key)} questions"
    return f"{key}/{fingerprint(_judged(store))[:12]}"


def _judged(store: Store) -> list[Any]:
    """The golden queries with their judgements, where they decide.

    Editing or renaming a document is no new evidence: what an edit made unusable stays, what moved goes by the old name.
    """
    if not golden_queries_decide(store.warehouse):
        return []
    with store.warehouse.read() as connection:
        return connection.execute(
            "SELECT query_id, query, coalesce(moved_from, doc_path), coalesce(nullif(quote, ''), judgement_id), relevance "
            "FROM golden_queries JOIN golden_judgements USING (query_id) WHERE relevance > 0 AND (golden_judgements.status <> 'unresolved' "
            "OR doc_path IN (SELECT doc_path FROM documents)) ORDER BY ALL"
        ).fetchall()


def _questions_decided_with(store: Store, key: str) -> int:
    """How many held-out questions there are; of a decision before, as long as there are not twice as many."""
    kept = "SELECT count(*) FROM training_pairs WHERE side = 'test' AND dropped_because IS NULL"
    with store.warehouse.read() as connection:
        today = int(connection.execute(kept).fetchall()[0][0])
    known = (
        re.match(re.escape(f"{key}/") + r"(\d+) questions", d.candidate_key or "") for d in decisions.decisions(store)
    )
    before = max((int(found[1]) for found in known if found), default=0)
    return today if today >= 2 * before else before


def _fusion(store: Store, settings: Settings) -> RetrievalSettings:
    """The settings' own; without the passages' queries where few have any, and where nobody could judge them.

    Held-out units are judged by the queries that were written for them: in the index each would find itself.
    """
    known = (
        golden_queries_decide(store.warehouse)
        and settings.retrieval.expansion_weight
        and nearly_all_asked(store.warehouse)
    )
    return settings.retrieval if known else without_expansion(settings.retrieval)


def _other_fusion(fusion: RetrievalSettings) -> str:
    """Rankings that are joined in another way than by the first version's defaults are another recipe, to be decided on."""
    first = judged_fusion({"dense_weight": 0.6}).model_dump()
    unread = "rrf_k" if fusion.fusion == "weighted" else "dense_weight"
    changed = {name: value for name, value in fusion.model_dump().items() if value != first[name] and name != unread}
    return f"/{fingerprint(changed)[:12]}" if changed else ""


def _twin_of(store: Store, decision: decisions.Decision) -> PassageEncoder | None:
    with store.warehouse.read() as connection:
        rows = records(
            connection,
            "SELECT twin_digest FROM models WHERE model_digest = ? AND twin_digest IS NOT NULL ORDER BY created_at DESC",
            [decision.model_digest],
        )
    return _twin(decision.encoder, rows[0]["twin_digest"]) if rows else None


def _twin(served: PassageEncoder | None, digest: str | None) -> PassageEncoder | None:
    return replace(served, model_digest=digest) if served is not None and digest is not None else None


def _trained(store: Store, digest: str, *, unknown: bool = False) -> bool:
    """Whether a model learned from questions: a candidate that validation gave no tuned weights is the base, or the base whitened.

    Args:
        store: whose `models` are asked.
        digest: of the model.
        unknown: the answer for a model that no training recorded, as the base.
    """
    with store.warehouse.read() as connection:
        rows = records(connection, "SELECT manifest FROM models WHERE model_digest = ?", [digest])
    about = [json.loads(row["manifest"]) for row in rows]
    learned = [m.get("share") != 0 or m.get("drawn_to_queries", {}).get("kept", False) for m in about]
    return any(learned) if learned else unknown


def _trained_on_test(store: Store, digest: str) -> bool:
    """Whether a model was trained on pairs of the test side."""
    with store.warehouse.read() as connection:
        found = connection.execute(
            "SELECT count(*) FROM trained_pairs JOIN models USING (training_key) WHERE model_digest = ? AND side = 'test'",
            [digest],
        )
        return bool(found.fetchall()[0][0])
