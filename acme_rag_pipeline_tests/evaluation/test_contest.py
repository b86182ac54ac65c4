"""What a contest knows about a query besides its scores: the age of its document, and how near right and wrong lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.evaluation.arms import BASE, CHAMPION, FINE_TUNED, ArmResult
from acme_rag_pipeline.evaluation.card import write_on_card
from acme_rag_pipeline.evaluation.contest import Evaluation, _unless_it_leaks, _verdict, run, with_document_age
from acme_rag_pipeline.evaluation.contestants import Contest, arms_for, contest, measured_candidate, seen_by_a_twin
from acme_rag_pipeline.evaluation.gate import Decision
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.metrics import PRIMARY, Evidence
from acme_rag_pipeline.evaluation.query_sets import GOLDEN, HELD_OUT, held_out_queries
from acme_rag_pipeline.evaluation.report_content import report_of
from acme_rag_pipeline.evaluation.similarity import similarities
from acme_rag_pipeline.evaluation.standing import standing_of
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.models import ModelDamaged
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.stages import StageResult, record
from acme_rag_pipeline.store.warehouse import insert

DECIDED = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def settings(documents: Path, settings_for: Callable[..., Settings], store: Store) -> Settings:
    """The small company, cut into chunks."""
    made = settings_for()
    ingest_documents(store, made)
    split_documents(store, made)
    return made


def judged(
    doc_path: str, query: str = "how many days", start: int | None = None, end: int | None = None
) -> JudgedQuery:
    return JudgedQuery(f"{doc_path}/{query}", query, (Evidence(doc_path, start, end),), doc_path, {"style": "keywords"})


def ages(store: Store) -> list[str | None]:
    queries = [judged(path) for path in ("hr/leave.md", "travel.md", "remote.txt")]
    return [query.segments.get("documents") for query in with_document_age(store, queries, DECIDED)]


def test_a_document_is_new_until_a_training_before_the_decision_saw_it(store: Store, settings: Settings) -> None:
    with store.warehouse.write() as connection:
        # A chunk that a store of an earlier version recorded has no time.
        for path, since in (("hr/leave.md", None), ("travel.md", DECIDED - timedelta(days=1)), ("remote.txt", DECIDED)):
            connection.execute(
                "INSERT INTO trained_chunks (chunk_id, since) SELECT chunk_id, ? FROM chunks WHERE doc_path = ?",
                [since, path],
            )
    assert ages(store) == ["old", "old", "new"]


def test_queries_of_one_age_get_no_such_segment(store: Store, settings: Settings) -> None:
    assert ages(store) == [None, None, None]


def test_a_store_of_an_earlier_version_gets_the_column_and_its_chunks_are_old(store: Store, settings: Settings) -> None:
    with store.warehouse.write() as connection:
        connection.execute("DROP TABLE trained_chunks; CREATE TABLE trained_chunks(chunk_id VARCHAR PRIMARY KEY)")
        connection.execute("INSERT INTO trained_chunks SELECT chunk_id FROM chunks WHERE doc_path <> 'travel.md'")
        connection.execute("UPDATE schema_version SET version = 'earlier'")
    assert ages(Store(store.root)) == ["old", "new", "old"]


def test_similarities_tell_the_evidence_from_the_nearest_other_passage(store: Store, settings: Settings) -> None:
    base = PassageEncoder(install_base(store, settings).digest, BASE_PREFIX)
    passages = live_passages(store.warehouse)
    hotel = next(p for p in passages if "London 210" in p.text)
    query = "hotel limit for a night in London"
    right = judged(hotel.doc_path, query, hotel.start_char, hotel.end_char)
    wrong = judged("hr/leave.md", query)
    lost = judged("gone.md", query)

    near, far = similarities(store, settings, base, [right, wrong, lost])
    assert near.right > near.wrong
    assert far.right < far.wrong
    # The best passage for this query is right for one judgement and wrong for the other.
    assert near.right == pytest.approx(far.wrong)


def with_twin(store: Store, digest: str, twin: str) -> None:
    """Stand in for a training: the candidate, which the store holds, and its twin, which it does not."""
    (store.models / digest).mkdir(parents=True)
    details = {"model_digest": digest, "passage_prefix": "none", "twin_digest": twin}
    row = {"model_digest": digest, "training_key": "k", "twin_digest": twin, "kind": "candidate"}
    with store.warehouse.write() as connection:
        record(connection, StageResult("fine_tuned_model", "v", details=details), "f")
        insert(
            connection, "models", [row | {"passage_prefix": "none", "manifest": "{}", "created_at": datetime.now(UTC)}]
        )


def test_without_its_twin_a_candidate_is_not_judged_on_what_it_was_trained_on(store: Store, settings: Settings) -> None:
    with_twin(store, "c" * 64, "d" * 64)
    who = contest(store, settings)
    assert who.candidate is not None
    assert measured_candidate(who, held_out=True) == replace(who.candidate, model_digest="d" * 64)
    with pytest.raises(ModelDamaged, match=f"{'d' * 64} is gone.*run `retrain`"):
        run(store, settings, who, "without the twin")


@pytest.mark.parametrize(
    ("winner", "query", "verdict"),
    [
        ("fine_tuned", "how many FLEX days", "kept: cannot tell"),
        ("fine_tuned_hybrid", "How many FLEX days?", "kept: cannot tell"),
        ("fine_tuned", "what a badge costs", "promoted"),
        ("base_hybrid", "how many FLEX days", "promoted"),
    ],
)
def test_a_model_that_learned_what_judges_it_is_not_promoted(
    store: Store, settings: Settings, winner: str, query: str, verdict: str
) -> None:
    golden = {"query_id": "q", "query": "how many FLEX days", "style": "question", "unit": "u", "status": "resolved"}
    pair = {"pair_id": "p", "side": "train", "query": query, "chunk_id": "c", "origin": "offline", "style": "question"}
    with store.warehouse.write() as connection:
        insert(connection, "golden_queries", [golden | {"reason": None}])
        insert(
            connection,
            "training_pairs",
            [pair | {"dropped_because": None, "method": "m", "unit": "u", "overlap": 0.0, "negatives": []}],
        )
    gate = Decision("promoted", winner, "base", "It is better.", "golden", (), (), 9, 9, None)
    found = _unless_it_leaks(store, settings, gate)
    assert found.verdict == verdict
    assert found.winner == (winner if verdict == "promoted" else None)
    assert found.reason.endswith("It is better.")
    assert ("nothing_leaks" in found.reason) == (verdict != "promoted")


def test_a_champion_whose_twin_is_gone_is_measured_itself_and_that_is_said(store: Store, settings: Settings) -> None:
    with_twin(store, "c" * 64, "d" * 64)
    champion = PassageEncoder("c" * 64, "none")
    decisions.append(store, encoder=champion, recipe="dense", verdict=decisions.PROMOTED, reason="by hand")
    with store.warehouse.write() as connection:
        connection.execute("DELETE FROM stages WHERE stage = 'fine_tuned_model'")
    who = contest(store, settings)
    assert who.champion_twin_lost
    assert next(arm.encoder for arm in arms_for(who, held_out=True) if arm.name == CHAMPION) == champion
    done = run(store, settings, who, "without the champion's twin")
    report = report_of(store, settings, done, standing_of(store, done))
    assert any("twin is gone" in caveat for caveat in report.caveats)
    (store.models / ("d" * 64)).mkdir()
    assert contest(store, settings).champion_twin == replace(champion, model_digest="d" * 64)


def test_questions_about_what_a_twin_was_trained_on_are_left_out_and_that_is_said(
    store: Store, settings: Settings
) -> None:
    index.index_base(store, settings)
    base = install_base(store, settings).digest
    with_twin(store, "c" * 64, "d" * 64)
    passages = live_passages(store.warehouse)
    assert len(passages) > 4
    common = {"dropped_because": None, "origin": "offline", "style": "keywords", "method": "heading", "overlap": 0.5}
    pairs = [
        common | {"pair_id": str(n), "side": "test", "query": f"question {n}", "chunk_id": p.chunk_id, "unit": p.unit, "negatives": []}
        for n, p in enumerate(passages)
    ]  # fmt: skip
    sides = ["train", "test", None]
    with store.warehouse.write() as connection:
        insert(connection, "training_pairs", pairs)
        for number, side in enumerate(sides):
            # Whatever the pair was called then: a document that was renamed has other pairs.
            connection.execute(
                "INSERT INTO trained_pairs SELECT 'k', ?, ?, text_hash, [], NULL FROM chunks WHERE chunk_id = ?",
                [f"then {number}", side, passages[number].chunk_id],
            )
    who = contest(store, settings)
    assert seen_by_a_twin(store, who) == {"0"}, "not what only the refit saw, nor what an earlier version did not note"
    assert seen_by_a_twin(store, replace(who, twin=None, champion_twin=who.twin)) == {"0"}, (
        "a champion's twin is asked too"
    )
    untrained = replace(who, twin=PassageEncoder(base, "none"))
    with store.warehouse.write() as connection:
        connection.execute("UPDATE models SET twin_digest = ?", [base])
    assert seen_by_a_twin(store, untrained) == set(), "a twin that is the base learned nothing"
    with store.warehouse.write() as connection:
        connection.execute("UPDATE models SET twin_digest = ?", ["d" * 64])

    shutil.copytree(models.model_folder(store, base), store.models / ("d" * 64))
    measured = replace(who, candidate=replace(who.base, model_digest="d" * 64))
    done = run(store, settings, measured, "without what was seen")
    assert {query.query_id for query in done.queries[HELD_OUT]} == {str(n) for n in range(1, len(passages))}
    assert f"1 of {len(passages)} held-out questions are left out" in done.decision.reason
    with store.warehouse.write() as connection:
        connection.execute("INSERT INTO trained_pairs SELECT 'k', chunk_id, 'train', text_hash, [], NULL FROM chunks")
    nothing = run(store, settings, measured, "nothing is left")
    assert HELD_OUT not in nothing.queries
    assert nothing.winner is None


def test_what_a_person_asked_about_several_passages_is_one_query_that_all_of_them_answer(
    store: Store, settings: Settings
) -> None:
    passages = live_passages(store.warehouse)
    asked = [
        ("1", "curated", "Who pays?", 0, "test", None),
        ("2", "curated", "who pays", 1, "test", None),
        ("3", "curated", "Who pays?", 2, "train", "same wording as a held-out query"),
        ("4", "offline", "When?", 3, "test", None),
        ("5", "offline", "when", 4, "test", None),
    ]
    rows = [
        {"pair_id": i, "side": side, "dropped_because": why, "query": query, "chunk_id": passages[n].chunk_id, "origin": origin,
         "style": "question", "method": "m", "unit": "u", "overlap": 0.0, "negatives": []}
        for i, origin, query, n, side, why in asked
    ]  # fmt: skip
    with store.warehouse.write() as connection:
        insert(connection, "training_pairs", rows)
    found = {query.query_id: query.evidence for query in held_out_queries(store, "test")}
    assert {name: len(evidence) for name, evidence in found.items()} == {"1": 3, "4": 1, "5": 1}
    assert {(e.start, e.end) for e in found["1"]} == {(p.start_char, p.end_char) for p in passages[:3]}


def candidate_over(settings: Settings, decided_before: int = 0) -> Contest:
    """A contest of one candidate with the base."""
    base, candidate = (PassageEncoder(letter * 64, "none") for letter in "bc")
    champion = decisions.Decision(
        1, DECIDED, base.model_digest, "dense", "none", decisions.BOOTSTRAP, "the first", None, None, None
    )
    return Contest(
        candidate, None, champion, None, True, "key", base, settings.retrieval, decided_before=decided_before
    )


def decided(settings: Settings, decided_before: int, gain: float = 0.01) -> Decision:
    """The gate's answer on one challenger over 60 documents, for a candidate that was decided on before."""
    queries = [judged(f"{n}.md") for n in range(60)]
    scores = {BASE: [0.4] * 60, FINE_TUNED: [0.4 + gain + (n % 7 - 3) * 0.05 for n in range(60)]}
    results = [
        ArmResult(arm, {q.query_id: {PRIMARY: value} for q, value in zip(queries, values, strict=True)}, {})
        for arm, values in scores.items()
    ]
    return _verdict(candidate_over(settings, decided_before), {GOLDEN: queries}, {GOLDEN: results}, settings)


def test_all_decisions_after_the_first_together_promote_by_chance_at_most_as_often_as_the_first(
    settings_for: Callable[..., Settings],
) -> None:
    settings = settings_for()
    tails = [(1 - decided(settings, before).comparisons[0].level) / 2 for before in range(40)]
    assert tails[:4] == pytest.approx([0.025, 0.0125, 0.00625, 0.003125])
    assert sum(tails[1:]) <= tails[0] * (1 + 1e-6)
    assert all(tail > 0 for tail in tails)
    said = (
        "This candidate was decided on 2 times before, by other evidence or with another fusion, so this time it may be promoted "
        "by chance in 0.63 % of such decisions instead of 2.5 %: all decisions after the first together may promote it by chance at most as often as "
        "the first alone."
    )
    assert decided(settings, 2).reason.endswith(said)


def test_a_model_that_was_the_base_once_is_no_trained_one_that_the_questions_flatter_too(
    store: Store, settings: Settings
) -> None:
    with_twin(store, "c" * 64, "d" * 64)
    (store.models / ("d" * 64)).mkdir()
    trained = {}
    for digest in ("e" * 64, "c" * 64):
        encoder = PassageEncoder(digest, "none")
        decisions.append(store, encoder=encoder, recipe="dense", verdict=decisions.PROMOTED, reason="by hand")
        trained[digest[0]] = contest(store, settings).champion_trained
    assert trained == {"e": False, "c": True}

    queries = [judged(f"{n}.md") for n in range(60)]
    gains = {CHAMPION: [0.4] * 60, FINE_TUNED: [0.44 + (n % 7 - 3) * 0.05 for n in range(60)]}
    results = [
        ArmResult(arm, {q.query_id: {PRIMARY: value} for q, value in zip(queries, values, strict=True)}, {})
        for arm, values in gains.items()
    ]
    known = candidate_over(settings)
    old_base = replace(known.champion, model_digest="e" * 64)
    who = replace(known, champion=old_base, golden_decides=False)
    found = _verdict(who, {HELD_OUT: queries}, {HELD_OUT: results}, settings)
    assert found.winner is None
    assert "0.05 is taken off" in found.reason
    who = replace(who, champion_trained=True)
    assert _verdict(who, {HELD_OUT: queries}, {HELD_OUT: results}, settings).winner == FINE_TUNED


def test_many_decisions_do_not_forbid_a_promotion(settings_for: Callable[..., Settings]) -> None:
    found = decided(settings_for(), 12, gain=0.3)
    assert found.winner == FINE_TUNED
    assert "with 99.999 % confidence" in found.reason


def test_a_card_that_is_not_utf_8_stays_as_it_is_and_the_log_says_so(
    store: Store, settings_for: Callable[..., Settings], caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for()
    who = candidate_over(settings)
    done = Evaluation("e", who, {}, {}, decided(settings, 0), None, 0.0, who.fusion)
    assert who.candidate is not None
    card = models.model_folder(store, who.candidate.model_digest) / "README.md"
    card.parent.mkdir(parents=True)
    saved = "Für uns.".encode("latin-1")
    card.write_bytes(saved)
    write_on_card(store, done, "promoted")
    assert card.read_bytes() == saved
    assert "README.md is not UTF-8: it stays as it is" in caplog.text


def test_a_champion_that_learned_the_held_out_units_and_never_had_a_twin_is_said(
    store: Store, settings: Settings
) -> None:
    with_twin(store, "c" * 64, "d" * 64)
    champion = PassageEncoder("e" * 64, "none")
    decisions.append(store, encoder=champion, recipe="dense", verdict=decisions.PROMOTED, reason="by hand")
    row = {"model_digest": "e" * 64, "training_key": "golden", "kind": "candidate", "passage_prefix": "none"}
    with store.warehouse.write() as connection:
        insert(connection, "models", [row | {"manifest": "{}", "created_at": datetime.now(UTC)}])
        insert(connection, "trained_pairs", [{"training_key": "golden", "pair_id": "p", "side": "train"}])
    assert not contest(store, settings).champion_without_twin
    with store.warehouse.write() as connection:
        connection.execute("UPDATE trained_pairs SET side = 'test'")
    assert contest(store, settings).champion_without_twin


@pytest.mark.parametrize(("share", "kept", "trained"), [(0, False, False), (0, True, True), (0.75, False, True)])
def test_a_candidate_that_learned_nothing_is_not_flattered_by_its_questions(
    store: Store, settings: Settings, share: float, kept: bool, trained: bool
) -> None:
    with_twin(store, "c" * 64, "d" * 64)
    (store.models / ("d" * 64)).mkdir()
    manifest = json.dumps({"share": share, "drawn_to_queries": {"kept": kept}})
    with store.warehouse.write() as connection:
        connection.execute("UPDATE models SET manifest = ?", [manifest])
    who = contest(store, settings)
    assert who.candidate_trained is trained
    queries = [judged(f"{n}.md") for n in range(60)]
    scores = {BASE: [0.4] * 60, FINE_TUNED: [0.44 + (n % 7 - 3) * 0.05 for n in range(60)]}
    results = [
        ArmResult(arm, {q.query_id: {PRIMARY: value} for q, value in zip(queries, values, strict=True)}, {})
        for arm, values in scores.items()
    ]
    found = _verdict(who, {HELD_OUT: queries}, {HELD_OUT: results}, settings)
    assert (found.winner is None) is trained
