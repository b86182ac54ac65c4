"""When a retrain is due: the newest candidate stays for small changes, and says why."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.setting_groups import AutomationSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.stages import StageResult, data_versions, record
from acme_rag_pipeline.store.warehouse import insert
from acme_rag_pipeline.training.due import change_since_training, remember_chunks, retrain_due
from acme_rag_pipeline.training.rows import KeptPair

TWO_PERCENT = AutomationSettings(retrain_changed_share=0.02)
PASSAGE = LivePassage("c", "c.md", 0, 9, "C", (), "text", "g", "c.md", "train")


def pair(name: str, *named: str) -> KeptPair:
    return KeptPair(name, "q", PASSAGE, "openai", "llm", (), frozenset(named))


PAIRS = [pair(f"pair{i}") for i in range(100)]


@pytest.fixture
def trained(store: Store) -> Store:
    """A store whose newest candidate was trained on `PAIRS`."""
    details = {"model_digest": "d" * 64, "twin_digest": None, "training_key": "k", "config_key": "c"}
    with store.writer("test"), store.warehouse.write() as connection:
        insert(connection, "trained_pairs", [{"training_key": "k", "pair_id": pair.pair_id} for pair in PAIRS])
        record(connection, StageResult("fine_tuned_model", "v", details=details), "f")
    models.model_folder(store, "d" * 64).mkdir(parents=True)
    return store


def held_out(store: Store, **given: Any) -> None:
    row = {
        "pair_id": PAIRS[0].pair_id,
        "side": "train",
        "dropped_because": None,
        "query": "q",
        "chunk_id": "c",
        "origin": "offline",
        "style": "question",
        "method": "heading",
        "unit": "u",
        "overlap": 0.5,
        "negatives": [],
    }
    with store.writer("test"), store.warehouse.write() as connection:
        insert(connection, "training_pairs", [row | given])


def test_the_first_candidate_is_due(store: Store) -> None:
    due = retrain_due(store, PAIRS, "c", TWO_PERCENT)
    assert due.candidate is None
    assert "no candidate yet" in due.reason


def test_a_small_change_keeps_the_candidate_and_says_so(trained: Store) -> None:
    due = retrain_due(trained, [*PAIRS[1:]], "c", TWO_PERCENT)
    assert due.candidate is not None
    assert due.candidate["model_digest"] == "d" * 64
    assert "1.0% of the training pairs changed (0 new, 1 gone)" in due.reason
    assert "ACME_RAG_AUTOMATION__RETRAIN_CHANGED_SHARE" in due.reason


def test_the_threshold_itself_trains(trained: Store) -> None:
    due = retrain_due(trained, [*PAIRS[1:], pair("new")], "c", AutomationSettings(retrain_changed_share=2 / 101))
    assert due.candidate is None
    assert "2.0%" in due.reason


def test_a_store_without_chunks_has_nothing_to_retrain(store: Store) -> None:
    assert change_since_training(store).changed_share == 0.0


def test_a_threshold_of_zero_always_trains(trained: Store) -> None:
    assert retrain_due(trained, PAIRS, "c", AutomationSettings(retrain_changed_share=0)).candidate is None


def test_other_settings_train(trained: Store) -> None:
    assert "setting" in retrain_due(trained, PAIRS, "other", TWO_PERCENT).reason


def test_a_negative_that_people_named_makes_another_pair(trained: Store) -> None:
    named = [pair(p.pair_id, "wrong one", "another") for p in PAIRS[:3]]
    due = retrain_due(trained, [*named, *PAIRS[3:]], "c", TWO_PERCENT)
    assert due.candidate is None
    assert "(3 new, 3 gone)" in due.reason
    with trained.warehouse.write() as connection:
        connection.execute(
            "UPDATE trained_pairs SET named_negatives = ['another', 'wrong one'] WHERE pair_id IN ('pair0', 'pair1', 'pair2')"
        )
    assert retrain_due(trained, [*named, *PAIRS[3:]], "c", TWO_PERCENT).candidate is not None


@pytest.mark.parametrize("strong", [False, True])
def test_enough_questions_to_draw_to_are_another_recipe_unless_the_base_is_strong(trained: Store, strong: bool) -> None:
    with trained.warehouse.write() as connection:
        details = {"model_digest": "d" * 64, "twin_digest": None, "training_key": "k", "config_key": "c"}
        details |= {"draws": False, "strong_base": strong}
        record(connection, StageResult("fine_tuned_model", "v", details=details), "f")
    assert retrain_due(trained, PAIRS, "c", TWO_PERCENT, draws=False).candidate is not None
    due = retrain_due(trained, PAIRS, "c", TWO_PERCENT, draws=True)
    assert (due.candidate is not None) is strong
    assert strong or "asked about half of the passages or more" in due.reason


def test_a_missing_directory_trains(trained: Store) -> None:
    models.model_folder(trained, "d" * 64).rmdir()
    assert retrain_due(trained, PAIRS, "c", TWO_PERCENT).candidate is None


@pytest.mark.parametrize(
    "leak",
    [
        {"side": "validation"},
        {"dropped_because": "near a golden query"},
        {"dropped_because": "passage nearly repeats one of the test side"},
    ],
)
def test_a_candidate_that_knows_what_is_held_out_today_never_stays(trained: Store, leak: dict[str, str]) -> None:
    held_out(trained, **leak)
    due = retrain_due(trained, PAIRS[1:], "c", TWO_PERCENT)
    assert due.candidate is None
    assert "held out today" in due.reason


def test_pairs_that_were_dropped_for_other_reasons_are_only_gone(trained: Store) -> None:
    held_out(trained, dropped_because="repeats another query of the passage")
    assert retrain_due(trained, PAIRS[1:], "c", TWO_PERCENT).candidate is not None


def remember(store: Store, passages: Sequence[LivePassage], chunks_version: str) -> None:
    with store.warehouse.write() as connection:
        remember_chunks(connection, passages, chunks_version)


def test_text_that_went_and_came_back_is_new_since_its_questions_went_too(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    def refreshed() -> str:
        ingest_documents(store, settings_for())
        split_documents(store, settings_for())
        return data_versions(store.warehouse, "chunks")["chunks"]

    version = refreshed()
    remember(store, live_passages(store.warehouse), version)
    assert change_since_training(store).added == 0
    text = (documents / "travel.md").read_text()
    (documents / "travel.md").unlink()
    refreshed()
    gone = change_since_training(store)
    assert gone.removed > 0
    (documents / "travel.md").write_text(text)
    assert refreshed() == version
    assert change_since_training(store).added == gone.removed
    remember(store, live_passages(store.warehouse), version)
    assert change_since_training(store).changed_share == 0


def test_what_a_refresh_brought_beside_a_long_run_is_still_to_be_dealt_with(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    ingest_documents(store, settings_for())
    split_documents(store, settings_for())
    at_the_start = live_passages(store.warehouse)
    asked_about = data_versions(store.warehouse, "chunks")["chunks"]
    (documents / "new.md").write_text("# New\n\nA refresh found this while the model trained.\n")
    ingest_documents(store, settings_for())
    split_documents(store, settings_for())
    remember(store, at_the_start, asked_about)
    assert change_since_training(store).added == 1
    # It came while the LLM was asked: the training read it, and nobody has asked about it.
    now = data_versions(store.warehouse, "chunks")["chunks"]
    with store.warehouse.write() as connection:
        record(connection, StageResult("synthetic_pairs", "v", details={"chunks_version": asked_about}), "f")
    remember(store, live_passages(store.warehouse), now)
    assert change_since_training(store).added == 1
    with store.warehouse.write() as connection:
        record(connection, StageResult("synthetic_pairs", "v", details={"chunks_version": now}), "f")
    remember(store, live_passages(store.warehouse), now)
    assert change_since_training(store).added == 0


def test_a_pair_that_people_moved_to_the_golden_queries_trains(trained: Store) -> None:
    golden = {"query_id": "g", "query": "Who pays?", "style": "question", "unit": "u", "status": "resolved"}
    with trained.warehouse.write() as connection:
        connection.execute("UPDATE trained_pairs SET query_key = 'who pays' WHERE pair_id = 'pair0'")
    assert retrain_due(trained, PAIRS[1:], "c", TWO_PERCENT).candidate is not None
    with trained.warehouse.write() as connection:
        insert(connection, "golden_queries", [golden])
    due = retrain_due(trained, PAIRS[1:], "c", TWO_PERCENT)
    assert due.candidate is None
    assert "1 pairs of the newest candidate are held out today" in due.reason
