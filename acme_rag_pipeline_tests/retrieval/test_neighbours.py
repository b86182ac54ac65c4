"""What a passage has from the passages beside it, and that readers and the evaluation agree on it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.evaluation.arms import BASE, BASE_HYBRID, Arm
from acme_rag_pipeline.evaluation.contestants import arms_for, contest
from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.retrieval.neighbours import GAP, Place, with_neighbours
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base
from acme_rag_pipeline.retrieval.reordering import DEPTH
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline_tests.increments import oracle
from acme_rag_pipeline_tests.retrieval.ranked_alike import assert_ranked_alike

QUERIES = ["who signs the form when a receipt is lost", "paid leave after years of service", "hotel in London", "?"]
# The better neighbour alone says the order of the candidates.
ALONE = RetrievalSettings(sentence_weight=0, dense_weight=1, neighbour_weight=1)
OFF = RetrievalSettings(neighbour_weight=0)

scored_places = st.lists(
    st.tuples(st.floats(-1, 1), st.sampled_from("ab"), st.integers(0, 30)), max_size=12, unique_by=lambda row: row[1:]
).map(lambda rows: ([score for score, _, _ in rows], [(doc, 50 * at, 50 * at + 40) for _, doc, at in rows]))


def test_the_better_neighbour_counts_and_what_has_none_has_the_lowest_score() -> None:
    places: list[Place] = [
        ("a", 0, 100),
        ("a", 101, 180),
        ("a", 182, 300),
        ("b", 0, 90),
        ("a", 301 + GAP, 500),
        ("b", 90 + GAP, 300),
    ]
    scores = [0.9, 0.2, 0.5, 0.8, 0.7, 0.1]
    beside = [0.2, 0.9, 0.2, 0.1, 0.1, 0.8]
    assert with_neighbours(scores, places, 1) == beside
    half = [(own + other) / 2 for own, other in zip(scores, beside, strict=True)]
    assert with_neighbours(scores, places, 0.5) == pytest.approx(half)
    assert with_neighbours(scores, places, 0) == scores
    assert with_neighbours([], [], 0.5) == []


@given(scored_places, st.floats(0, 1), st.randoms())
def test_the_order_that_passages_come_in_does_not_matter_and_no_score_leaves_the_range(
    given: tuple[list[float], list[Place]], weight: float, random: object
) -> None:
    scores, places = given
    found = with_neighbours(scores, places, weight)
    order = list(range(len(scores)))
    random.shuffle(order)  # type: ignore[attr-defined]
    again = with_neighbours([scores[i] for i in order], [places[i] for i in order], weight)
    assert again == [found[i] for i in order]
    assert all(min(scores) - 1e-9 <= score <= max(scores) + 1e-9 for score in found)


@given(scored_places, st.floats(0.01, 0.49))
def test_of_two_that_stand_alone_the_nearer_one_stays_ahead(
    given: tuple[list[float], list[Place]], weight: float
) -> None:
    scores, places = given
    alone = [(f"{doc} {number}", start, end) for number, (doc, start, end) in enumerate(places)]
    found = with_neighbours(scores, alone, weight)
    for (one, other), (before, after) in zip(itertools.pairwise(scores), itertools.pairwise(found), strict=True):
        assert before >= after if one >= other else before <= after


@pytest.fixture
def settings(documents: Path, settings_for: Callable[..., Settings], store: Store) -> Settings:
    made = settings_for()
    oracle.run(store, made, oracle.REFRESH)
    return made


def stand_together(one: LivePassage, other: LivePassage) -> bool:
    gaps = (other.start_char - one.end_char, one.start_char - other.end_char)
    return one.doc_path == other.doc_path and any(0 <= gap <= GAP for gap in gaps)


def test_who_searches_finds_a_passage_by_the_one_beside_it(store: Store, settings: Settings) -> None:
    passages = live_passages(store.warehouse)
    plain = oracle.PlainModel(install_base(store, settings).folder)
    held = plain.vectors([p.text for p in passages])
    beside = [[n for n, other in enumerate(passages) if stand_together(passage, other)] for passage in passages]
    assert len(passages) <= DEPTH * ALONE.candidates, "all of them are ordered anew"
    for query, vector in zip(QUERIES, plain.vectors(QUERIES), strict=True):
        cosines = (held @ vector).tolist()
        best = [max((cosines[n] for n in found), default=min(cosines)) for found in beside]
        hits = Retriever.open(store.root, ALONE).search(query, k=50, retriever="base_hybrid")
        found = [best[next(i for i, p in enumerate(passages) if p.chunk_id == hit.chunk_id)] for hit in hits]
        assert found == pytest.approx(sorted(best, reverse=True)[: len(hits)], abs=1e-5)
        # The vectors alone stay what they are.
        for retriever in ("base", "bm25"):
            with_them = Retriever.open(store.root, ALONE).search(query, retriever=retriever)
            assert with_them == Retriever.open(store.root, OFF).search(query, retriever=retriever)


def test_readers_and_the_evaluation_rank_alike(store: Store, settings: Settings) -> None:
    base = PassageEncoder(install_base(store, settings).digest, BASE_PREFIX)
    few = settings.retrieval.model_copy(update={"candidates": 3, "neighbour_weight": 0.5})
    for fusion in (settings.retrieval, few, OFF, RetrievalSettings(sentence_weight=0, fusion="rrf")):
        assert_ranked_alike(store, settings, fusion, (Arm(BASE_HYBRID, base, True), Arm(BASE, base, False)), QUERIES)


def test_another_weight_is_another_recipe_to_be_decided_on(store: Store, settings: Settings) -> None:
    keys = {
        contest(store, settings.model_copy(update={"retrieval": fusion})).candidate_key
        for fusion in (settings.retrieval, OFF)
    }
    assert len(keys) == 2
    arms = arms_for(contest(store, settings), held_out=False)
    assert {arm.fusion.neighbour_weight for arm in arms if arm.hybrid and arm.fusion} == {
        settings.retrieval.neighbour_weight
    }
