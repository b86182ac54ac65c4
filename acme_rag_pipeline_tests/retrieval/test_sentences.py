"""A passage's best sentence: how text is cut, what a table holds, and that readers and the evaluation rank alike."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from acme_rag_pipeline.evaluation.arms import BASE_HYBRID, Arm, ArmRunner
from acme_rag_pipeline.evaluation.golden import JudgedQuery
from acme_rag_pipeline.evaluation.metrics import Evidence
from acme_rag_pipeline.retrieval import Retriever
from acme_rag_pipeline.retrieval.fusion import judged_fusion
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base
from acme_rag_pipeline.retrieval.sentences import MOST, best_sentence, pack, sentences, with_best_sentence
from acme_rag_pipeline.serving import decisions, serve
from acme_rag_pipeline.setting_groups import RetrievalSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline_tests.increments import oracle

QUERIES = ["who signs the form when a receipt is lost", "paid leave after years of service", "hotel in London", "?"]
OFF = RetrievalSettings(sentence_weight=0)
# Of these the best sentence alone says the order of the candidates.
ALONE = RetrievalSettings(sentence_weight=1, dense_weight=1, neighbour_weight=0)


@given(st.text(alphabet="aB3 .!?\n|-é。", max_size=400))
def test_nothing_of_a_text_is_lost_or_said_twice(text: str) -> None:
    found = sentences(text)
    assert 1 <= len(found) <= MOST
    kept = [line for line in text.splitlines() if any(c.isalnum() for c in line)]
    assert "".join("".join(found).split()) == "".join("".join(kept or [text]).split())


def test_lines_and_sentence_ends_cut_and_short_pieces_wait_for_the_next() -> None:
    text = (
        "# Hotels\n\nHotels in London may cost approx. 210 euros a night. Above it you need form FRM-TX-11. Why?\n"
        "- Breakfast is included in the limit of every city.\n\n| Rotterdam | 165 euros a night | 220 during fairs |\n---\n"
    )
    assert sentences(text) == [
        "# Hotels Hotels in London may cost approx. 210 euros a night.",
        "Above it you need form FRM-TX-11. Why? - Breakfast is included in the limit of every city.",
        "| Rotterdam | 165 euros a night | 220 during fairs |",
    ]
    assert sentences("  \n") == ["  \n"]
    assert len(sentences("One of so many lines that all say nothing.\n" * 3 * MOST)) == MOST


def test_the_lines_of_a_wrapped_paragraph_are_one_and_those_of_lists_tables_and_code_are_not() -> None:
    text = (
        "Hotels in London may cost approx. two hundred and ten euros a\nnight, and more while a fair is held. Ask before you book\n"
        "a room.\n\nThe porter of the night keeps these in the drawer below\n- keys of all the rooms that nobody has booked for today,\n"
        "  and of the lift\n- lamps\n\n"
        "Country and the limit that holds in it for a single night\nNetherlands and Belgium one hundred and sixty euros a night\n"
        "```\nsatchel versions list ~/documents/of/the/calibration.xlsx\nsatchel versions restore ~/documents/of/the/calibration\n```\n"
    )
    assert sentences(text) == [
        "Hotels in London may cost approx. two hundred and ten euros a night, and more while a fair is held.",
        "Ask before you book a room. The porter of the night keeps these in the drawer below",
        "- keys of all the rooms that nobody has booked for today, and of the lift",
        "- lamps Country and the limit that holds in it for a single night",
        "Netherlands and Belgium one hundred and sixty euros a night",
        "satchel versions list ~/documents/of/the/calibration.xlsx",
        "satchel versions restore ~/documents/of/the/calibration",
    ]


def test_half_precision_keeps_the_cosines() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(9, 384))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    assert best_sentence(rows[4], pack(rows)) == pytest.approx(1, abs=1e-3)
    assert best_sentence(rows[0], pack(rows[1:])) == pytest.approx((rows[1:] @ rows[0]).max(), abs=1e-3)
    assert best_sentence(rows[0], None) is None
    assert with_best_sentence(0.4, None, 0.5) == 0.4
    assert with_best_sentence(0.4, 0.8, 0.25) == pytest.approx(0.5)


@pytest.fixture
def settings(documents: Path, settings_for: Callable[..., Settings], store: Store) -> Settings:
    made = settings_for()
    oracle.run(store, made, oracle.REFRESH)
    return made


def with_retrieval(settings: Settings, retrieval: RetrievalSettings) -> Settings:
    return settings.model_copy(update={"retrieval": retrieval})


def packs(store: Store) -> list[bytes | None]:
    pointer = read_pointer(store.pointer)
    table = vectors.open_table(vectors.connect(store.lancedb), pointer.table, pointer.lance_version)
    assert table is not None
    return table.search().limit(1_000).to_arrow()[vectors.SENTENCES_COLUMN].to_pylist()


def test_the_best_sentence_decides_where_it_is_asked_to(store: Store, settings: Settings) -> None:
    passages = live_passages(store.warehouse)
    plain = oracle.PlainModel(install_base(store, settings).folder)
    asked = plain.vectors(QUERIES)
    best = [[(plain.vectors(sentences(p.text)) @ query).max() for p in passages] for query in asked]
    reader = Retriever.open(store.root, ALONE)
    for query, scores in zip(QUERIES, best, strict=True):
        hits = reader.search(query, k=5, retriever="base_hybrid")
        assert [hit.chunk_id for hit in hits] == [passages[i].chunk_id for i in np.argsort(scores)[::-1][:5]]
    # A passage without the words of the question keeps its place behind those that were scored.
    few = ALONE.model_copy(update={"candidates": 2})
    order = [h.chunk_id for h in Retriever.open(store.root, few).search(QUERIES[0], k=50, retriever="base_hybrid")]
    dense = [hit.chunk_id for hit in reader.search(QUERIES[0], k=50, retriever="base")]
    assert sorted(order[:2]) == sorted(dense[:2])
    assert order[2:] == dense[2:]


def test_readers_and_the_evaluation_rank_alike(store: Store, settings: Settings) -> None:
    base = PassageEncoder(install_base(store, settings).digest, BASE_PREFIX)
    judged = [JudgedQuery(str(n), q, (Evidence("travel.md", None, None, 1),), "u", {}) for n, q in enumerate(QUERIES)]
    for fusion in (settings.retrieval, ALONE, OFF):
        ran = ArmRunner(store, with_retrieval(settings, fusion)).run(Arm(BASE_HYBRID, base, True), judged)
        reader = Retriever.open(store.root, fusion)
        for query in judged:
            hits = reader.search(query.query, k=3, retriever="base_hybrid")
            assert [hit.chunk_id for hit in hits] == list(ran.best[query.query_id])


def test_without_them_nothing_is_encoded_or_kept_and_what_is_known_comes_back(
    documents: Path, settings_for: Callable[..., Settings], store: Store
) -> None:
    on = settings_for()
    off = with_retrieval(on, OFF)
    with oracle.watched() as work:
        oracle.run(store, off, oracle.REFRESH)
        passages = live_passages(store.warehouse)
        assert sorted(work.passages) == sorted({p.text for p in passages})
        assert packs(store) == [None] * len(passages)
        done = oracle.run(store, on, oracle.REFRESH)
        every = {sentence for passage in passages for sentence in sentences(passage.text)}
        new = every - {p.text for p in passages}
        assert sorted(work.passages) == sorted({p.text for p in passages} | new)
        assert done["base_index"].details["sentences_embedded"] == len(new)
        assert done["base_index"].details["embedded"] == 0
        assert all(packs(store))
        assert all(result.unchanged for result in oracle.run(store, on, oracle.REFRESH).values())
        before = len(work.passages)
        oracle.run(store, off, oracle.REFRESH)
        assert packs(store) == [None] * len(passages)
        oracle.run(store, on, oracle.REFRESH)
        assert all(packs(store))
        assert len(work.passages) == before


def test_a_recipe_that_was_judged_with_sentences_keeps_them(store: Store, settings: Settings) -> None:
    champion = decisions.champion(store, settings).encoder
    decisions.append(
        store, encoder=champion, recipe="hybrid", verdict=decisions.PROMOTED, reason="r", fusion=ALONE.model_dump()
    )
    serve.serve(store, settings)
    answers = [Retriever.open(store.root).search(query) for query in QUERIES]
    off = with_retrieval(settings, OFF)
    oracle.run(store, off, oracle.REFRESH)
    assert all(packs(store))
    assert [Retriever.open(store.root, OFF).search(query) for query in QUERIES] == answers
    assert all(result.unchanged for result in oracle.run(store, off, oracle.REFRESH).values())


def test_a_recipe_of_an_earlier_version_is_served_as_it_was_judged(store: Store, settings: Settings) -> None:
    champion = decisions.champion(store, settings).encoder
    unknown = {"sentence_weight", "expansion_weight", "neighbour_weight"}
    earlier = {name: value for name, value in RetrievalSettings().model_dump().items() if name not in unknown}
    decisions.append(store, encoder=champion, recipe="hybrid", verdict=decisions.PROMOTED, reason="r", fusion=earlier)
    serve.serve(store, settings)
    assert json.loads(store.pointer.read_text())["fusion"] == earlier
    served, without = Retriever.open(store.root), Retriever.open(store.root, judged_fusion(earlier))
    for query in QUERIES:
        assert served.search(query) == without.search(query, retriever="base_hybrid")


def test_a_table_of_an_earlier_version_is_written_anew_and_its_readers_keep_theirs(
    store: Store, settings: Settings
) -> None:
    before = read_pointer(store.pointer)
    table = vectors.open_table(vectors.connect(store.lancedb), before.table)
    assert table is not None
    table.drop_columns([vectors.SENTENCES_COLUMN])
    earlier = vectors.open_table(vectors.connect(store.lancedb), before.table, int(table.version))
    assert earlier is not None
    rows = earlier.count_rows()
    with oracle.watched() as work:
        oracle.run(store, settings, oracle.REFRESH)
    assert work.passages == []
    assert all(packs(store))
    assert len(packs(store)) == rows == earlier.count_rows()
