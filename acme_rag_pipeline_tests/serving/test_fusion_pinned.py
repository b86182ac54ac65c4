"""A promoted fused recipe keeps the parameters that it was judged with, whatever the settings say later."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.evaluation.arms import BASE_HYBRID, CHAMPION
from acme_rag_pipeline.evaluation.contestants import arms_for, champion_arm, contest
from acme_rag_pipeline.retrieval import Retriever, index
from acme_rag_pipeline.retrieval.fusion import UnknownFusion
from acme_rag_pipeline.serving import decisions, serve
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import PointerDamaged, read_pointer

QUERY = "how long may I stay abroad and still be paid at home"
JUDGED = {"candidates": 50, "fusion": "weighted", "dense_weight": 1.0, "rrf_k": 60}
# Of these BM25 alone says the order.
CHANGED = RetrievalSettings(dense_weight=0.0)


@pytest.fixture
def settings(documents: Path, settings_for: Callable[..., Settings], store: Store) -> Settings:
    made = settings_for()
    ingest_documents(store, made)
    split_documents(store, made)
    index.index_base(store, made)
    return made


def promote(store: Store, settings: Settings, fusion: dict[str, Any] | None, **given: Any) -> decisions.Decision:
    base = decisions.champion(store, settings).encoder
    made = decisions.append(
        store, encoder=base, recipe="hybrid", verdict=decisions.PROMOTED, reason="r", fusion=fusion, **given
    )
    serve.serve(store, settings)
    return made


def order(store: Store, settings: RetrievalSettings, retriever: str = "promoted") -> list[str]:
    return [hit.chunk_id for hit in Retriever.open(store.root, settings).search(QUERY, retriever=retriever)]


def test_a_setting_does_not_change_what_is_served(store: Store, settings: Settings) -> None:
    promote(store, settings, JUDGED)
    assert read_pointer(store.pointer).fusion == JUDGED
    dense = order(store, CHANGED, "base")
    assert order(store, CHANGED) == order(store, RetrievalSettings()) == dense
    assert order(store, CHANGED, "base_hybrid") != dense, "the arms follow the settings"
    # The next run writes the same pointer.
    before = store.pointer.read_bytes()
    serve.serve(store, settings.model_copy(update={"retrieval": CHANGED}))
    assert store.pointer.read_bytes() == before


def test_a_pointer_of_an_earlier_version_follows_the_settings_as_before(store: Store, settings: Settings) -> None:
    promote(store, settings, JUDGED)
    pointer = json.loads(store.pointer.read_text())
    del pointer["fusion"]
    store.pointer.write_text(json.dumps(pointer))
    assert order(store, CHANGED) == order(store, CHANGED, "base_hybrid") != order(store, CHANGED, "base")
    store.pointer.write_text(json.dumps(pointer | {"fusion": {"weight": 3}}))
    with pytest.raises(PointerDamaged, match="served_index"):
        order(store, CHANGED)


def test_a_fusion_of_a_later_version_is_one_sentence_that_holds_after_a_refresh_too(
    store: Store, settings: Settings
) -> None:
    promote(store, settings, JUDGED | {"moon_weight": 0.1})
    with pytest.raises(PointerDamaged, match=r"moon_weight.* a later version .* rollback"):
        order(store, CHANGED)
    with pytest.raises(UnknownFusion, match=r"moon_weight.* a later version .* rollback"):
        arms_for(contest(store, settings), held_out=True)
    serve.rollback(store, settings)
    assert order(store, CHANGED) == order(store, CHANGED, "base")


def test_with_another_setting_the_champion_is_an_arm_of_its_own(store: Store, settings: Settings) -> None:
    promote(store, settings, settings.retrieval.model_dump())
    same = contest(store, settings)
    assert champion_arm(same, held_out=True) == BASE_HYBRID
    changed = settings.model_copy(update={"retrieval": CHANGED})
    other = contest(store, changed)
    assert champion_arm(other, held_out=True) == CHAMPION
    fusion = {arm.name: arm.fusion for arm in arms_for(other, held_out=False)}
    assert fusion[CHAMPION] == settings.retrieval
    assert other.candidate_key != same.candidate_key, "a recipe that nobody judged may be decided on"


def test_a_rollback_goes_back_to_the_parameters_of_then(store: Store, settings: Settings) -> None:
    first = promote(store, settings, JUDGED)
    promote(store, settings, CHANGED.model_dump())
    assert read_pointer(store.pointer).fusion == CHANGED.model_dump()
    assert serve.rollback(store, settings).retriever == first.retriever
    assert read_pointer(store.pointer).fusion == JUDGED
