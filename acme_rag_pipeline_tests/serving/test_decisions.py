"""Decisions: one for each candidate, a kept champion is one too, and what a person rolled back from stays behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.embedding.base_model import resolve_base_model
from acme_rag_pipeline.evaluation.contestants import candidate_undecided, contest
from acme_rag_pipeline.evaluation.golden import golden_queries, resolve_golden_queries
from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.orchestration.automation import gate
from acme_rag_pipeline.orchestration.resources import Pipeline
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder
from acme_rag_pipeline.serving import decisions, promote, serve
from acme_rag_pipeline.settings import EMBEDDED_BASE_MODEL, Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import write_pointer
from acme_rag_pipeline.store.stages import StageResult, record
from acme_rag_pipeline.store.warehouse import insert

CANDIDATE = PassageEncoder("c" * 64, "none")


@pytest.fixture
def settings(settings_for: Callable[..., Settings]) -> Settings:
    return settings_for()


def evaluated(
    store: Store,
    verdict: str,
    key: str,
    number: int,
    winner: PassageEncoder | None = CANDIDATE,
    recipe: decisions.Recipe = "hybrid",
) -> None:
    """Stand in for an evaluation: its verdict, and the stage that recorded it."""
    promoted = verdict == "promoted"
    past = decisions.decisions(store)
    row: dict[str, Any] = {
        "evaluation_id": f"evaluation-{number}",
        "candidate_digest": CANDIDATE.model_digest,
        "candidate_key": key,
        "champion_digest": past[-1].model_digest
        if past
        else resolve_base_model(EMBEDDED_BASE_MODEL, store.root).digest,
        "champion_recipe": past[-1].recipe if past else "dense",
        "verdict": verdict,
        "reason": f"{verdict}, because",
        "winner_digest": winner.model_digest if promoted and winner else None,
        "winner_prefix": winner.prefix if promoted and winner else None,
        "winner_recipe": recipe if promoted else None,
        "evidence": "golden",
        "details": "{}",
        "evaluated_at": f"2026-11-21 00:00:{number:02}+00",
    }
    with store.warehouse.write() as connection:
        insert(connection, "verdicts", [row])
        details = {"evaluation_id": row["evaluation_id"]}
        result = StageResult("evaluation_report", f"version-{number}", details=details)
        record(connection, result, f"fingerprint-{number}")


def verdicts(store: Store) -> list[str]:
    return [decision.verdict for decision in decisions.decisions(store)]


def test_the_first_champion_is_the_base(store: Store, settings: Settings) -> None:
    first = decisions.champion(store, settings)
    assert (first.verdict, first.recipe, first.passage_prefix) == ("bootstrap", "dense", "none")
    assert decisions.champion(store, settings) == first
    assert verdicts(store) == ["bootstrap"]


def test_a_promotion_changes_what_readers_use(store: Store, settings: Settings) -> None:
    evaluated(store, "promoted", "k1", 1)
    result = promote.decide_promotion(store, settings)
    now = decisions.champion(store, settings)
    assert (now.encoder, now.recipe, now.verdict) == (CANDIDATE, "hybrid", "promoted")
    assert result.details["verdict"] == "promoted"


@pytest.mark.parametrize("verdict", ["kept: not better", "kept: cannot tell", "kept: segment folder=it falls"])
def test_a_kept_champion_is_recorded_and_stays(store: Store, settings: Settings, verdict: str) -> None:
    evaluated(store, verdict, "k1", 1)
    promote.decide_promotion(store, settings)
    assert verdicts(store) == ["bootstrap", verdict]
    assert decisions.champion(store, settings).recipe == "dense"


def test_the_same_candidate_is_not_tested_again_every_night(store: Store, settings: Settings) -> None:
    evaluated(store, "kept: cannot tell", "k1", 1)
    promote.decide_promotion(store, settings)
    evaluated(store, "promoted", "k1", 2)
    result = promote.decide_promotion(store, settings)
    assert verdicts(store) == ["bootstrap", "kept: cannot tell"]
    assert "decided on before" in result.details["outcome"]


def test_a_clock_that_was_ahead_does_not_hide_the_candidates_that_follow(store: Store, settings: Settings) -> None:
    evaluated(store, "kept: not better", "k1", 59)
    promote.decide_promotion(store, settings)
    # The clock was put right: the next evaluation is the older one by its time.
    evaluated(store, "promoted", "k2", 1)
    promote.decide_promotion(store, settings)
    assert verdicts(store) == ["bootstrap", "kept: not better", "promoted"]
    found = decisions.on_the_newest_candidate(store)
    assert found is not None
    assert found.verdict == "promoted"


def test_nothing_new_writes_nothing(store: Store, settings: Settings) -> None:
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    before = store.warehouse.path.read_bytes()
    assert promote.decide_promotion(store, settings).unchanged
    assert store.warehouse.path.read_bytes() == before


def test_a_candidate_is_compared_with_the_champion_before_it(store: Store, settings: Settings) -> None:
    base = decisions.champion(store, settings)
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    assert decisions.champion_before(store, settings, "k1") == base
    assert decisions.champion_before(store, settings, "k2").encoder == CANDIDATE


def test_what_was_rolled_back_is_not_promoted_again_by_itself(store: Store, settings: Settings) -> None:
    base = decisions.champion(store, settings)
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    decisions.append(
        store, encoder=base.encoder, recipe="dense", verdict=decisions.ROLLED_BACK, reason="by hand", candidate_key="k1"
    )
    # New judged questions make a new key: the retriever that a person left behind still stays behind.
    evaluated(store, "promoted", "k2", 2)
    result = promote.decide_promotion(store, settings)
    assert verdicts(store) == ["bootstrap", "promoted", "rolled back", "kept: rolled back before"]
    assert decisions.champion(store, settings).encoder == base.encoder
    assert "rolled back" in result.details["outcome"]
    assert not gate_passes(store)


def rolled_back(store: Store, to: decisions.Decision) -> None:
    decisions.append(
        store, encoder=to.encoder, recipe=to.recipe, fusion=to.fusion, verdict=decisions.ROLLED_BACK, reason="by hand"
    )


def test_a_rollback_from_another_promotion_says_nothing_about_a_kept_candidate(
    store: Store, settings: Settings
) -> None:
    base = decisions.champion(store, settings)
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    promoted = decisions.champion(store, settings)
    evaluated(store, "kept: not better", "k2", 2)
    promote.decide_promotion(store, settings)
    for to, key in ((base, "k2"), (promoted, "k2"), (base, "k2")):
        # As `serve.rollback` writes it: with the candidate of the newest decision.
        decisions.append(
            store, encoder=to.encoder, recipe=to.recipe, verdict=decisions.ROLLED_BACK, reason="r", candidate_key=key
        )
    assert decisions.decision_on(store, "k2").verdict == "kept: not better"
    assert decisions.decision_on(store, "k1").verdict == decisions.ROLLED_BACK
    assert decisions.decision_on(store, "k3") is None


def test_what_was_compared_with_something_else_than_readers_get_by_now_is_not_promoted(
    store: Store, settings: Settings
) -> None:
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    evaluated(store, "promoted", "k2", 2, winner=PassageEncoder("d" * 64, "none"))
    # Between the comparison and the decision a person goes back.
    base = decisions.decisions(store)[0]
    decisions.append(
        store, encoder=base.encoder, recipe="dense", verdict=decisions.ROLLED_BACK, reason="by hand", candidate_key="k1"
    )
    result = promote.decide_promotion(store, settings)
    assert decisions.champion(store, settings).encoder == base.encoder
    assert result.details["outcome"].startswith(promote.NOT_COMPARED)
    assert decisions.on_the_newest_candidate(store) is None
    assert not gate_passes(store)
    # Compared with what readers get today, it may be promoted.
    evaluated(store, "promoted", "k2", 3, winner=PassageEncoder("d" * 64, "none"))
    promote.decide_promotion(store, settings)
    assert decisions.champion(store, settings).model_digest == "d" * 64


def test_a_candidate_whose_own_promotion_was_gone_back_from_is_rolled_back(store: Store, settings: Settings) -> None:
    base = decisions.champion(store, settings)
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    decisions.append(
        store, encoder=base.encoder, recipe="dense", verdict=decisions.ROLLED_BACK, reason="r", candidate_key="k1"
    )
    assert decisions.decision_on(store, "k1").verdict == decisions.ROLLED_BACK


def test_a_candidate_that_a_person_went_back_to_is_promoted_again(store: Store, settings: Settings) -> None:
    base = decisions.champion(store, settings)
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    promoted = decisions.champion(store, settings)
    said = []
    passes = []
    for to in (base, promoted, base):
        decisions.append(
            store, encoder=to.encoder, recipe=to.recipe, verdict=decisions.ROLLED_BACK, reason="r", candidate_key="k1"
        )
        said.append(decisions.decision_on(store, "k1").verdict)
        passes.append(gate_passes(store))
    assert said == [decisions.ROLLED_BACK, decisions.PROMOTED, decisions.ROLLED_BACK]
    assert passes == [False, True, False]


def test_a_model_that_was_rolled_back_does_not_return_with_another_recipe(store: Store, settings: Settings) -> None:
    base = decisions.champion(store, settings)
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    rolled_back(store, base)
    evaluated(store, "promoted", "k2", 2, recipe="dense")
    promote.decide_promotion(store, settings)
    now = decisions.champion(store, settings)
    assert (now.verdict, now.encoder) == ("kept: rolled back before", base.encoder)
    assert now.reason.startswith("a person rolled back from the winner")
    assert "promoted, because" in now.reason
    # Another model is another matter.
    evaluated(store, "promoted", "k3", 3, winner=PassageEncoder("d" * 64, "none"))
    promote.decide_promotion(store, settings)
    assert decisions.champion(store, settings).model_digest == "d" * 64


def test_a_rollback_between_recipes_of_one_model_leaves_the_recipe_behind(store: Store, settings: Settings) -> None:
    base = decisions.champion(store, settings)
    evaluated(store, "promoted", "k1", 1, winner=base.encoder)
    promote.decide_promotion(store, settings)
    fused = decisions.champion(store, settings)
    rolled_back(store, base)
    assert decisions.is_left_behind(store, fused.retriever)
    assert not decisions.is_left_behind(store, base.retriever)
    # Who goes back to it by hand wants it again.
    rolled_back(store, fused)
    assert not decisions.is_left_behind(store, fused.retriever)
    assert decisions.is_left_behind(store, base.retriever)


def gate_passes(store: Store, *, served: bool = True) -> bool:
    """Whether the job `gate` ends with success where readers get what was decided last, or what was served before."""
    if served and (past := decisions.decisions(store)):
        write_pointer(store.pointer, serve._pointer(past[-1], 1))
    run = gate.execute_in_process(resources={"pipeline": Pipeline(store=str(store.root))}, raise_on_error=False)
    return run.success


def test_the_gate_passes_for_a_promotion_that_was_decided_and_for_nothing_else(
    store: Store, settings: Settings
) -> None:
    evaluated(store, "promoted", "k1", 1)
    assert not gate_passes(store), "an evaluation is no promotion yet"
    promote.decide_promotion(store, settings)
    assert not gate_passes(store, served=False), "a run that was killed after its decision has served nothing"
    assert gate_passes(store)
    evaluated(store, "kept: not better", "k2", 2)
    promote.decide_promotion(store, settings)
    assert not gate_passes(store)


def test_the_gate_does_not_pass_over_a_store_with_a_defect(
    store: Store, settings: Settings, capfd: pytest.CaptureFixture[str]
) -> None:
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    chunk = {"chunk_id": "c", "doc_path": "gone.md", "ordinal": 0, "start_char": 0, "end_char": 4, "text": "text"}
    about = {"heading_path": [], "title": "", "text_hash": "h", "tokens": 1, "near_duplicate_group": "g", "unit": "u"}
    with store.warehouse.write() as connection:
        insert(connection, "chunks", [chunk | about | {"side": "train"}])
    assert gate_passes(store), "`chunks` never ran here"
    with store.warehouse.write() as connection:
        record(connection, StageResult("chunks", "v"), "f")
    assert not gate_passes(store)
    assert "checks stand in ERROR: spans_are_exact (chunks 1; wrong 1)" in capfd.readouterr().err


def test_a_model_that_a_later_evaluation_compares_with_is_kept_and_one_that_is_gone_is_not_asked_for(
    store: Store, settings: Settings
) -> None:
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    other = PassageEncoder("d" * 64, "none")
    decisions.append(store, encoder=other, recipe="dense", verdict="promoted", reason="r", candidate_key="k2")
    assert decisions.champion_before(store, settings, "k2").encoder == other, "that of k1 has no directory"
    (store.models / CANDIDATE.model_digest).mkdir(parents=True)
    assert decisions.champion_before(store, settings, "k2").encoder == CANDIDATE


def test_a_candidate_without_a_decision_is_noticed_and_looking_writes_nothing(store: Store, settings: Settings) -> None:
    assert not candidate_undecided(store)
    assert (verdicts(store), store.models.exists()) == ([], False), "the schedule looks at empty stores too"
    (store.models / CANDIDATE.model_digest).mkdir(parents=True)
    details = {"model_digest": CANDIDATE.model_digest, "passage_prefix": "none"}
    with store.warehouse.write() as connection:
        record(connection, StageResult("fine_tuned_model", "v", details=details), "f")
    before = store.warehouse.path.read_bytes()
    assert candidate_undecided(store)
    assert store.warehouse.path.read_bytes() == before
    evaluated(store, "kept: not better", contest(store, settings).candidate_key, 1)
    promote.decide_promotion(store, settings)
    assert not candidate_undecided(store)


@pytest.mark.parametrize(("judged_by", "again"), [("held-out units", False), ("golden queries", True)])
def test_golden_queries_are_new_evidence_only_where_they_decide(
    store: Store, settings: Settings, judged_by: str, again: bool
) -> None:
    (store.models / CANDIDATE.model_digest).mkdir(parents=True)
    details = {"model_digest": CANDIDATE.model_digest, "passage_prefix": "none"}
    with store.warehouse.write() as connection:
        record(connection, StageResult("fine_tuned_model", "v", details=details), "f")
        record(connection, StageResult("training_set", "v", details={"judged_by": judged_by}), "f")
    key = contest(store, settings).candidate_key
    evaluated(store, "kept: cannot tell", key, 1)
    promote.decide_promotion(store, settings)

    query = {"query_id": "a", "query": "who pays?", "style": "question", "unit": "u", "status": "resolved"}
    judgement = {
        "judgement_id": "j", "query_id": "a", "ordinal": 0, "doc_path": "a.md", "relevance": 1, "status": "resolved",
    }  # fmt: skip
    with store.warehouse.write() as connection:
        insert(connection, "golden_queries", [query])
        insert(connection, "golden_judgements", [judgement])
    who = contest(store, settings)
    assert (who.candidate_key != key) is again
    assert who.decided_before == again
    assert candidate_undecided(store) is again

    # An empty quote is none: other programs write one into every line.
    for quote in ("NULL", "''"):
        with store.warehouse.write() as connection:
            connection.execute(f"UPDATE golden_judgements SET judgement_id = 'j', quote = {quote}")
        before = contest(store, settings).candidate_key
        with store.warehouse.write() as connection:
            connection.execute("UPDATE golden_judgements SET judgement_id = 'another span'")
        assert (contest(store, settings).candidate_key != before) is again, "a corrected span is other evidence"
    with store.warehouse.write() as connection:
        connection.execute("UPDATE golden_judgements SET quote = 'the company pays'")
    quoted = contest(store, settings).candidate_key
    with store.warehouse.write() as connection:
        connection.execute("UPDATE golden_judgements SET judgement_id = 'j', start_char = 7, end_char = 24")
    assert contest(store, settings).candidate_key == quoted, "a quote is the same evidence wherever it stands"

    # A line about a document that is not there judges nothing; once it is there, it does.
    with store.warehouse.write() as connection:
        insert(
            connection,
            "golden_judgements",
            [judgement | {"judgement_id": "k", "doc_path": "b.md", "status": "unresolved"}],
        )
    assert contest(store, settings).candidate_key == quoted
    with store.warehouse.write() as connection:
        connection.execute("UPDATE golden_judgements SET status = 'resolved' WHERE judgement_id = 'k'")
    assert (contest(store, settings).candidate_key != quoted) is again


def test_a_quote_that_an_edit_took_away_opens_no_new_decision(
    store: Store, settings: Settings, documents: Path
) -> None:
    ingest_documents(store, settings)
    with store.warehouse.write() as connection:
        record(connection, StageResult("training_set", "v", details={"judged_by": "golden queries"}), "f")
        query = {"query_id": "a", "query": "who pays?", "style": "question", "unit": "u", "status": "resolved"}
        insert(connection, "golden_queries", [query])
        judgement = {
            "judgement_id": "j",
            "query_id": "a",
            "ordinal": 0,
            "doc_path": "travel.md",
            "quote": "the company",
        }
        insert(connection, "golden_judgements", [judgement | {"relevance": 1, "status": "resolved"}])
    key = contest(store, settings).candidate_key
    with store.warehouse.write() as connection:
        connection.execute("UPDATE golden_judgements SET status = 'unresolved'")
    assert contest(store, settings).candidate_key == key


def test_another_name_of_a_document_opens_no_new_decision(
    store: Store, settings: Settings, documents: Path, tmp_path: Path
) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden/queries.jsonl").write_text(
        '{"query_id": "a", "query": "hotel limit"}\n{"query_id": "b", "query": "who pays for a desk?"}\n',
        encoding="utf-8",
    )
    (tmp_path / "golden/qrels.jsonl").write_text(
        '{"query_id": "a", "doc_path": "./travel.md", "quote": "hotels in London 210 euros"}\n'
        '{"query_id": "b", "doc_path": "./remote.txt", "quote": "Acme pays for a chair, a desk"}\n',
        encoding="utf-8",
    )
    judged = settings.model_copy(update={"golden": tmp_path / "golden"})
    with store.warehouse.write() as connection:
        record(connection, StageResult("training_set", "v", details={"judged_by": "golden queries"}), "f")

    def key() -> tuple[str, list[str]]:
        for stage in (ingest_documents, split_documents, resolve_golden_queries):
            stage(store, judged)
        return contest(store, judged).candidate_key, sorted(
            e.doc_path for q in golden_queries(store) for e in q.evidence
        )

    known, found = key()
    assert found == ["remote.txt", "travel.md"]
    (documents / "travel.md").rename(documents / "trips.md")
    assert key() == (known, ["remote.txt", "trips.md"])
    (documents / "remote.txt").unlink()
    assert key() == (known, ["trips.md"]), "a document that is gone"


def test_a_setting_of_the_fusion_that_nothing_reads_opens_no_new_decision(store: Store, settings: Settings) -> None:
    def key(**changed: object) -> str:
        retrieval = settings.retrieval.model_copy(update=changed)
        return contest(store, settings.model_copy(update={"retrieval": retrieval})).candidate_key

    assert key() == key(rrf_k=61) != key(dense_weight=0.5)
    assert key(fusion="rrf") == key(fusion="rrf", dense_weight=0.5) != key(fusion="rrf", rrf_k=61)


def test_the_check_is_about_the_newest_candidate_also_where_it_was_decided_on_before(
    store: Store, settings: Settings
) -> None:
    for number, (verdict, key) in enumerate([("kept: not significant", "first"), ("promoted", "second")]):
        evaluated(store, verdict, key, number)
        promote.decide_promotion(store, settings)
    (found,) = checks.results("promoted_retriever", store, settings)
    assert found.passed
    # An edit was reverted: the first candidate is the newest again, and nothing is decided on it anew.
    evaluated(store, "promoted", "first", 2)
    promote.decide_promotion(store, settings)
    (found,) = checks.results("promoted_retriever", store, settings)
    assert not found.passed
    assert found.metadata["verdict"].value == "kept: not significant"


def test_a_promotion_that_another_one_followed_is_not_what_readers_get(store: Store, settings: Settings) -> None:
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    evaluated(store, "promoted", "k2", 2, winner=PassageEncoder("d" * 64, "none"))
    promote.decide_promotion(store, settings)
    assert gate_passes(store)
    # An edit that is taken back makes the first candidate the newest again.
    evaluated(store, "promoted", "k1", 3)
    assert promote.decide_promotion(store, settings).details["outcome"] == (
        f"this candidate was decided on before ({decisions.REPLACED}); promoted stands"
    )
    assert decisions.champion(store, settings).model_digest == "d" * 64
    assert not gate_passes(store)


def test_the_gate_does_not_pass_for_an_earlier_candidate_than_the_newest(store: Store, settings: Settings) -> None:
    evaluated(store, "promoted", "k1", 1)
    promote.decide_promotion(store, settings)
    assert gate_passes(store)
    (store.models / ("e" * 64)).mkdir(parents=True)
    with store.warehouse.write() as connection:
        details = {"model_digest": "e" * 64, "passage_prefix": "none"}
        record(connection, StageResult("fine_tuned_model", "v", details=details), "f")
    assert not gate_passes(store), "it was trained, and its evaluation failed"


@pytest.mark.parametrize("trained", [False, True])
def test_without_a_trained_candidate_twice_as_many_held_out_questions_are_new_evidence(
    store: Store, settings: Settings, trained: bool
) -> None:
    if trained:
        (store.models / CANDIDATE.model_digest).mkdir(parents=True)
        details = {"model_digest": CANDIDATE.model_digest, "passage_prefix": "none"}
        with store.warehouse.write() as connection:
            record(connection, StageResult("fine_tuned_model", "v", details=details), "f")

    def key_with(pairs: int) -> str:
        rows = [
            {
                "pair_id": str(n),
                "query": f"q{n}",
                "chunk_id": "c",
                "side": "test",
                "origin": "offline",
                "style": "s",
                "method": "m",
                "unit": "u",
                "overlap": 0.0,
                "negatives": [],
            }
            for n in range(pairs)
        ]
        with store.warehouse.write() as connection:
            connection.execute("DELETE FROM training_pairs")
            insert(connection, "training_pairs", rows)
        return contest(store, settings).candidate_key

    first = key_with(40)
    evaluated(store, "kept: cannot tell", first, 1)
    promote.decide_promotion(store, settings)
    assert key_with(50) == key_with(79) == first
    # Fewer are no new evidence either.
    assert key_with(39) == key_with(3) == first
    assert (key_with(80) != first) is not trained
    assert contest(store, settings).decided_before == (0 if trained else 1)


def test_other_evidence_on_what_is_promoted_already_leaves_the_gate_green(store: Store, settings: Settings) -> None:
    evaluated(store, "promoted", "c/none/some questions", 1)
    promote.decide_promotion(store, settings)
    # It is the champion by now, and a comparison with itself can only be kept.
    evaluated(store, "kept: cannot tell", "c/none/more questions", 2)
    promote.decide_promotion(store, settings)
    assert verdicts(store) == ["bootstrap", "promoted", "kept: cannot tell"]
    assert gate_passes(store)
    (found,) = checks.results("promoted_retriever", store, settings)
    assert found.passed
    evaluated(store, "kept: not better", "another/none/more questions", 3)
    promote.decide_promotion(store, settings)
    assert not gate_passes(store)


@pytest.mark.parametrize("same", [True, False])
def test_a_champion_of_another_fusion_by_now_is_not_what_was_compared(
    store: Store, settings: Settings, same: bool
) -> None:
    fusion = settings.retrieval.model_dump()
    base = decisions.champion(store, settings)
    decisions.append(
        store, encoder=base.encoder, recipe="hybrid", verdict="promoted", reason="r", candidate_key="k", fusion=fusion
    )
    evaluated(store, "promoted", "k1", 1)
    with store.warehouse.write() as connection:
        connection.execute("UPDATE verdicts SET champion_fusion = ?", [json.dumps(fusion)])
    if not same:
        other = fusion | {"dense_weight": 0.5}
        decisions.append(
            store, encoder=base.encoder, recipe="hybrid", verdict="rolled back", reason="by hand", fusion=other
        )
    outcome = promote.decide_promotion(store, settings).details["outcome"]
    assert outcome.startswith(promote.NOT_COMPARED) is not same
    assert (decisions.champion(store, settings).encoder == CANDIDATE) is same


def test_a_decision_without_a_question_is_no_look_at_the_evidence(store: Store, settings: Settings) -> None:
    for number, (key, comparisons) in enumerate([("c/none/0", []), ("c/none/1", [{}])], start=1):
        evaluated(store, "kept: cannot tell", key, number)
        with store.warehouse.write() as connection:
            details = json.dumps({"comparisons": comparisons})
            connection.execute("UPDATE verdicts SET details = ? WHERE candidate_key = ?", [details, key])
        promote.decide_promotion(store, settings)
    candidate = PassageEncoder("c", "none")
    assert decisions.decided_with_other_evidence(store, candidate, "c/none/1") == 0
    assert decisions.decided_with_other_evidence(store, candidate, "c/none/2") == 1
