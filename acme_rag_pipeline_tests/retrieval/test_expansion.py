"""Passages with the queries that were written for them: what a table holds, who finds what, and who may judge it."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.general_probe import probe_entries
from acme_rag_pipeline.evaluation.arms import BASE_HYBRID, BM25, Arm, ArmRunner
from acme_rag_pipeline.evaluation.contest import expansion_by_headings
from acme_rag_pipeline.evaluation.contestants import arms_for, champion_arm, contest
from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.retrieval.expansion import expanded_cosine, joined_words, packed_shifts
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base
from acme_rag_pipeline.retrieval.retriever import ArmMissing
from acme_rag_pipeline.serving import clean_up, decisions, serve
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.arms_file import arms_file, known_arms
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline.store.stages import StageResult, record
from acme_rag_pipeline.store.written_queries import nearly_all_asked, written_queries
from acme_rag_pipeline.training.validation import MINIMUM_HEADINGS
from acme_rag_pipeline_tests.increments import oracle
from acme_rag_pipeline_tests.increments.interrupted import Killed, before_write
from acme_rag_pipeline_tests.retrieval.ranked_alike import assert_ranked_alike

# Words of this company that stand in no document; the base takes other passages for them.
TEAL = "I have a teal day, whom must I phone"
MEETING = "which weekdays must I show my face downtown"
HEADINGS = {TEAL: "27 FLEX days", MEETING: "Hub days are counted"}
SOON_TAKEN_BACK = "what nobody shall find any more"
# Writes of `served_index` with a table of the base and of a candidate: `arms.json` after the first of them, the record.
KILLED_BEFORE = (4, 8)
OFF = RetrievalSettings(expansion_weight=0)
FAR = RetrievalSettings(expansion_weight=5)
ASKED = [TEAL, MEETING, "hotel in London", "paid leave after years of service", "?"]


@pytest.fixture
def settings(documents: Path, settings_for: Callable[..., Settings], store: Store) -> Settings:
    made = settings_for()
    oracle.run(store, made, oracle.REFRESH)
    return made


def chunk_of(store: Store, words: str) -> str:
    return next(p.chunk_id for p in live_passages(store.warehouse) if words in p.text)


def write(store: Store, queries: Mapping[str, str], origin: str = "openai", dropped: str | None = None) -> None:
    """Training pairs as `training_set` leaves them; query to words of its passage."""
    rows = [[f"{origin}/{query}", dropped, query, chunk_of(store, words), origin] for query, words in queries.items()]
    pairs = [[row[0], row[2], row[3], row[4]] for row in rows]
    with store.warehouse.write() as connection:
        connection.executemany("INSERT INTO pairs VALUES (?, ?, ?, ?, 'question', 'm', 'g', NULL)", pairs)
        connection.executemany(
            "INSERT INTO training_pairs VALUES (?, 'train', ?, ?, ?, ?, 'question', 'm', 'u', 0, [])", rows
        )


def asked_about(store: Store, prompts: int, unanswered: int) -> None:
    """What `synthetic_pairs` says about the LLM."""
    details = {"prompts": prompts, "unanswered": unanswered}
    with store.warehouse.write() as connection:
        record(connection, StageResult("synthetic_pairs", "v", details=details), "made from")


def promote(store: Store, settings: Settings, fusion: RetrievalSettings) -> None:
    encoder = decisions.champion(store, settings).encoder
    decisions.append(
        store, encoder=encoder, recipe="hybrid", verdict=decisions.PROMOTED, reason="r", fusion=fusion.model_dump()
    )
    serve.serve(store, settings)


def take_back(store: Store) -> None:
    with store.warehouse.write() as connection:
        for table in ("pairs", "training_pairs"):
            connection.execute(f"DELETE FROM {table} WHERE query = ?", [SOON_TAKEN_BACK])


def rows_of(store: Store, name: str, version: int | None = None) -> dict[str, dict[str, Any]]:
    table = vectors.open_table(vectors.connect(store.lancedb), name, version)
    assert table is not None
    return {row["id"]: row for row in table.search().limit(1_000).to_arrow().to_pylist()}


def served_rows(store: Store) -> dict[str, dict[str, Any]]:
    pointer = read_pointer(store.pointer)
    return rows_of(store, pointer.table, pointer.lance_version)


def found(store: Store, query: str, retriever: str = "promoted") -> list[str]:
    return [hit.chunk_id for hit in Retriever.open(store.root).search(query, k=20, retriever=retriever)]


def test_a_passage_moves_towards_its_queries_and_others_stay() -> None:
    rng = np.random.default_rng(0)
    unit = rng.normal(size=(6, 384)).astype(np.float32)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    own, query, common = unit[:3], unit[3], 0.3 * unit[5]
    asked = [["a", "b"], [], ["b"]]
    shifts, encoded = packed_shifts(asked, lambda texts: (unit[3 : 3 + len(texts)], len(texts)), lambda: common)
    assert encoded == 2, "a query that two passages share is encoded once"
    moved = own[0] + 0.5 * ((unit[3] + unit[4]) / 2 - common)
    assert shifts[0] is not None
    assert shifts[1] is None
    expected = moved @ query / np.linalg.norm(moved)
    assert expanded_cosine(query, own[0], shifts[0], 0.5) == pytest.approx(expected, abs=1e-3)
    assert expanded_cosine(query, own[0], shifts[0], 0) == pytest.approx(own[0] @ query, abs=1e-6)
    nothing = packed_shifts([[], []], lambda texts: pytest.fail("nothing is encoded"), lambda: pytest.fail("nor that"))
    assert nothing == ([None, None], 0)


def test_bm25_with_queries_and_without_count_alike_however_large_their_scores_are() -> None:
    assert joined_words([("a", 4.0), ("b", 2.0)], [("b", 30.0), ("c", 15.0)]) == [("b", 0.75), ("a", 0.5), ("c", 0.25)]
    assert joined_words([], [("c", 3.0)]) == [("c", 0.5)]


def test_people_and_an_llm_write_and_templates_do_not(store: Store, settings: Settings) -> None:
    write(store, {"who signs": "FRM-EX-09", TEAL: "Hub days are counted"}, origin="curated")
    write(store, {"mend days tern": "Mend days"}, origin="offline")
    assert written_queries(store.warehouse) == {}, "most passages would have none"
    write(store, HEADINGS)
    write(store, {"near a golden one": "Evergreen"}, origin="openai", dropped="near a golden query")
    assert written_queries(store.warehouse) == {
        chunk_of(store, "27 FLEX days"): (TEAL,),
        chunk_of(store, "FRM-EX-09"): ("who signs",),
        chunk_of(store, "Hub days are counted"): (TEAL, MEETING),
    }
    asked_about(store, prompts=100, unanswered=10)
    assert nearly_all_asked(store.warehouse)
    asked_about(store, prompts=100, unanswered=11)
    assert not nearly_all_asked(store.warehouse), "a budget ended it"


def test_who_searches_finds_a_passage_by_what_others_asked(store: Store, settings: Settings) -> None:
    right = chunk_of(store, "27 FLEX days")
    promote(store, settings, OFF)
    assert read_pointer(store.pointer).table.endswith("_queries") is False
    assert found(store, TEAL)[0] != right
    plain, by_words = served_rows(store), found(store, TEAL, "bm25")
    write(store, HEADINGS)
    promote(store, settings, settings.retrieval)
    assert found(store, TEAL)[0] == right
    assert found(store, "somebody has a teal day")[0] == right, "in other words, too"
    assert found(store, TEAL, "bm25") == by_words, "BM25 alone reads the passages"
    # The rows are those of before, their vectors too; the queries lie beside them.
    rows = served_rows(store)
    for name in ("id", "doc_id", "text", "metadata", "vector", "sentence_vectors"):
        assert {i: row[name] for i, row in rows.items()} == {i: row[name] for i, row in plain.items()}, name
    asked = {i for i, row in rows.items() if row[vectors.SHIFT_COLUMN]}
    assert asked == set(written_queries(store.warehouse))


def test_readers_and_the_evaluation_rank_alike(store: Store, settings: Settings) -> None:
    write(store, HEADINGS)
    serve.serve(store, settings)
    base = PassageEncoder(install_base(store, settings).digest, BASE_PREFIX)
    few = FAR.model_copy(update={"candidates": 3})
    for fusion in (settings.retrieval, FAR, few, OFF, FAR.model_copy(update={"sentence_weight": 0.0})):
        assert_ranked_alike(store, settings, fusion, (Arm(BASE_HYBRID, base, True), Arm(BM25, None, False)), ASKED)


def test_a_change_costs_what_it_touches(
    documents: Path, settings_for: Callable[..., Settings], store: Store, settings: Settings
) -> None:
    write(store, HEADINGS)
    with oracle.watched() as work:
        promote(store, settings, settings.retrieval)
        assert work.passages == [], "vectors of passages and sentences are known"
        probe = [query for query, _ in probe_entries()]
        assert sorted(work.queries) == sorted([*HEADINGS, *probe])
        before = served_rows(store)
        assert serve.serve(store, settings).unchanged
        write(store, {"may I carry days over to January": "27 FLEX days"})
        done = serve.serve(store, settings)
        assert (done.counts.added, done.counts.changed, done.counts.removed) == (0, 1, 0)
        assert len(work.queries) == len(HEADINGS) + len(probe) + 1
    changed = {i for i, row in served_rows(store).items() if row != before[i]}
    assert changed == {chunk_of(store, "27 FLEX days")}
    # Deleted text leaves every live table, and so does what was asked about it.
    gone = {p.chunk_id for p in live_passages(store.warehouse) if p.doc_path == "hr/leave.md"}
    (documents / "hr/leave.md").unlink()
    oracle.run(store, settings, oracle.REFRESH)
    for name in vectors.names(vectors.connect(store.lancedb)):
        rows = rows_of(store, name)
        assert rows.keys() == {p.chunk_id for p in live_passages(store.warehouse)}, name
        assert not gone & rows.keys()
        assert "teal" not in json.dumps([row["search_text"] for row in rows.values()])
    assert all(result.unchanged for result in oracle.run(store, settings, oracle.REFRESH).values())


def test_what_all_questions_have_in_common_stays_known(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many texts come and go: the clean-up takes the vectors that have been out of use the longest."""
    forget = EmbeddingCache.forget_unused
    monkeypatch.setattr(clean_up, "KEEP_UNUSED", 0)
    monkeypatch.setattr(EmbeddingCache, "forget_unused", lambda *in_use: forget(*in_use, keep=0))
    with oracle.watched() as work:
        for query in (TEAL, MEETING):
            write(store, {query: HEADINGS[query]})
            serve.serve(store, settings)
        assert len(work.queries) == len(probe_entries()) + len(HEADINGS)


def test_a_query_tower_shares_the_passages_of_the_base_and_not_its_queries() -> None:
    base, tower = PassageEncoder("1" * 64, "none"), PassageEncoder("2" * 64, "none", "1" * 64)
    assert base.table == tower.table
    assert base.expanded_table != tower.expanded_table
    assert "2" * 16 in tower.expanded_table, "by this the clean-up knows whose table it is"


def test_without_queries_or_with_a_weight_of_0_there_is_no_further_table(store: Store, settings: Settings) -> None:
    def tables() -> list[str]:
        return [name for name in vectors.names(vectors.connect(store.lancedb)) if name.endswith("_queries")]

    assert tables() == []
    write(store, HEADINGS)
    serve.serve(store, settings)
    assert len(tables()) == 1
    assert "base_hybrid" in known_arms(store)
    serve.serve(store, settings.model_copy(update={"retrieval": OFF}))
    assert tables() == []
    assert "base_hybrid" not in known_arms(store)
    assert found(store, TEAL, "base_hybrid")


def test_a_lost_table_of_an_arm_is_built_again(store: Store, settings: Settings) -> None:
    write(store, HEADINGS)
    serve.serve(store, settings)
    answers = found(store, TEAL, "base_hybrid")
    assert answers[0] == chunk_of(store, "27 FLEX days")
    shutil.rmtree(store.lancedb / f"{known_arms(store)['base_hybrid']['table']}.lance/data")
    assert not serve.serve(store, settings).unchanged
    assert found(store, TEAL, "base_hybrid") == answers
    shutil.rmtree(store.lancedb / f"{known_arms(store)['base_hybrid']['table']}.lance")
    with pytest.raises(ArmMissing, match="materialise `served_index` again"):
        found(store, TEAL, "base_hybrid")
    serve.serve(store, settings)
    assert found(store, TEAL, "base_hybrid") == answers
    arms_file(store).unlink()
    oracle.run(store, settings, oracle.REFRESH)
    assert found(store, TEAL, "base_hybrid") == answers
    assert all(result.unchanged for result in oracle.run(store, settings, oracle.REFRESH).values())


def test_queries_that_came_and_went_with_a_killed_run_are_in_no_table(store: Store, settings: Settings) -> None:
    oracle.adopt_headed_candidate(store, settings)
    write(store, HEADINGS)
    oracle.run(store, settings, oracle.REFRESH)
    before = {arm: live.rows(store) for arm, live in oracle.live_tables(store).items()}
    assert before.keys() == {"promoted", "base", "fine_tuned", "base_hybrid", "fine_tuned_hybrid"}
    for number in KILLED_BEFORE:
        write(store, {SOON_TAKEN_BACK: "27 FLEX days"})
        with pytest.raises(Killed), before_write(number):
            serve.serve(store, settings)
        take_back(store)
        serve.serve(store, settings)
        assert {arm: live.rows(store) for arm, live in oracle.live_tables(store).items()} == before, number


def test_a_run_that_waited_for_another_brings_no_query_back(store: Store, settings: Settings) -> None:
    write(store, HEADINGS)
    promote(store, settings, settings.retrieval)
    write(store, {SOON_TAKEN_BACK: "27 FLEX days"})
    with Store(store.root, wait_seconds=10).writer("a retrain"):
        run = threading.Thread(target=serve.serve, args=(store, settings))
        run.start()
        time.sleep(0.5)
        take_back(store)
    run.join()
    texts = json.dumps([row[vectors.EXPANDED_COLUMN] for row in served_rows(store).values()])
    assert TEAL in texts
    assert SOON_TAKEN_BACK not in texts
    assert serve.serve(store, settings).unchanged


def test_what_was_promoted_keeps_its_queries_and_a_rollback_brings_them_back(store: Store, settings: Settings) -> None:
    write(store, HEADINGS)
    promote(store, settings, settings.retrieval)
    answers = [found(store, query) for query in ASKED]
    off = settings.model_copy(update={"retrieval": OFF})
    oracle.run(store, off, oracle.REFRESH)
    assert [found(store, query) for query in ASKED] == answers
    asked_about(store, prompts=100, unanswered=50)
    oracle.run(store, settings, oracle.REFRESH)
    assert [found(store, query) for query in ASKED] == answers, "an LLM that was down takes nothing away"
    assert "base_hybrid" not in known_arms(store)
    promote(store, off, OFF)
    assert [found(store, query) for query in ASKED] != answers
    serve.rollback(store, off)
    assert read_pointer(store.pointer).table.endswith("_queries")
    assert [found(store, query) for query in ASKED] == answers
    assert all(result.unchanged for result in oracle.run(store, off, oracle.REFRESH).values())


def test_queries_in_the_index_are_judged_by_people_alone(
    store: Store, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def weights(golden: bool, *, held_out: bool) -> set[float]:
        monkeypatch.setattr("acme_rag_pipeline.evaluation.contestants.golden_queries_decide", lambda warehouse: golden)
        arms = arms_for(contest(store, settings), held_out=held_out)
        return {arm.fusion.expansion_weight for arm in arms if arm.hybrid and arm.fusion}

    assert weights(golden=True, held_out=False) == {0}, "nobody wrote any"
    write(store, HEADINGS)
    assert weights(golden=True, held_out=False) == {1.0}
    asked_about(store, prompts=100, unanswered=50)
    assert weights(golden=True, held_out=False) == {0}, "half of the passages would be hidden"
    asked_about(store, prompts=100, unanswered=0)
    assert weights(golden=True, held_out=True) == {0}, "each would find itself"
    assert weights(golden=False, held_out=True) == weights(golden=False, held_out=False) == {0}
    promote(store, settings, settings.retrieval)
    assert champion_arm(contest(store, settings), held_out=True) == BASE_HYBRID
    assert weights(golden=False, held_out=True) == {0}


@pytest.mark.parametrize(("written_for", "gains"), [("27 FLEX days", True), ("FRM-EX-09", False)])
def test_authors_headings_say_whether_the_queries_help(
    store: Store, settings: Settings, written_for: str, gains: bool
) -> None:
    # Of so few passages neighbours hold the first places whatever the queries do.
    settings = settings.model_copy(update={"retrieval": RetrievalSettings(neighbour_weight=0)})
    base = PassageEncoder(install_base(store, settings).digest, BASE_PREFIX)

    def said() -> tuple[int, float] | None:
        return expansion_by_headings(store, ArmRunner(store, settings), base)

    assert said() is None, "nobody wrote any"
    write(store, {TEAL: written_for})
    assert said() is None, "nobody can tell"
    heading = [[str(n), "The teal day", chunk_of(store, "27 FLEX days"), "heading"] for n in range(MINIMUM_HEADINGS)]
    with store.warehouse.write() as connection:
        connection.executemany("INSERT INTO heading_queries VALUES (?, ?, ?, ?)", heading)
    found = said()
    assert found is not None
    assert found[0] == MINIMUM_HEADINGS
    assert (found[1] > 0) == gains
    assert (found[1] < 0) != gains
