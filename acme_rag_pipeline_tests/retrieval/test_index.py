"""The index stages follow the model, not the table alone: query towers of one base share its table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.embedding import encoder
from acme_rag_pipeline.retrieval import Retriever, index
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder, install_base
from acme_rag_pipeline.retrieval.retriever import ArmMissing
from acme_rag_pipeline.retrieval.sentences import sentences
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.serving.serve import serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models, vectors
from acme_rag_pipeline.store.arms_file import arms_file, known_arms
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import PassagePrefix, live_passages
from acme_rag_pipeline.store.stages import StageResult, record
from acme_rag_pipeline_tests.conftest import LEAVE
from acme_rag_pipeline_tests.increments import oracle


def test_a_new_query_tower_over_the_base_s_table_is_the_arm_from_then_on(
    store: Store, settings_for: Callable[..., Settings], documents: Path
) -> None:
    settings = settings_for()
    for stage in (ingest_documents, split_documents, index.index_base):
        stage(store, settings)
    base = install_base(store, settings).digest
    for tower in ("1" * 64, "2" * 64):
        shutil.copytree(models.model_folder(store, base), models.model_folder(store, tower))
        details = {"model_digest": tower, "passage_prefix": "none", "passage_digest": base}
        with store.warehouse.write() as connection:
            record(connection, StageResult("fine_tuned_model", tower, details=details), tower)
        done = index.index_candidate(store, settings)
        assert (done.details["model_digest"], done.details["embedded"]) == (tower, 0)
        assert known_arms(store)["fine_tuned"]["model_digest"] == tower
    arms_file(store).unlink()
    assert index.index_candidate(store, settings).unchanged
    assert known_arms(store)["fine_tuned"]["model_digest"] == "2" * 64


def test_an_arm_answers_from_its_finished_version_while_a_run_writes_the_next(
    store: Store, settings_for: Callable[..., Settings], documents: Path
) -> None:
    settings = settings_for()
    for stage in (ingest_documents, split_documents, index.index_base, serve):
        stage(store, settings)
    retriever = Retriever.open(store.root)
    before = {arm: retriever.search("hotel limit in Rotterdam", retriever=arm) for arm in ("base", "base_hybrid")}
    arm = known_arms(store)["base"]
    table = vectors.open_table(vectors.connect(store.lancedb), arm["table"])
    assert table is not None
    table.delete("doc_id = 'travel.md'")
    assert {arm: retriever.search("hotel limit in Rotterdam", retriever=arm) for arm in before} == before
    index.index_base(store, settings)
    assert known_arms(store)["base"]["lance_version"] > arm["lance_version"]
    assert [hit.chunk_id for hit in retriever.search("hotel limit in Rotterdam", retriever="base")] == [
        hit.chunk_id for hit in before["base"]
    ]


def test_a_candidate_that_is_gone_is_no_arm(
    store: Store, settings_for: Callable[..., Settings], documents: Path
) -> None:
    settings = settings_for()
    for stage in (ingest_documents, split_documents, index.index_base):
        stage(store, settings)
    oracle.adopt_headed_candidate(store, settings)
    index.index_candidate(store, settings)
    assert set(known_arms(store)) == {"base", "fine_tuned"}
    with store.warehouse.write() as connection:
        record(connection, StageResult("fine_tuned_model", "none", details={"model_digest": None}), "none")
    index.index_candidate(store, settings)
    assert set(known_arms(store)) == {"base"}


def test_another_version_of_the_encoding_code_writes_every_live_vector_anew(
    store: Store, settings_for: Callable[..., Settings], documents: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for()
    oracle.run(store, settings, oracle.REFRESH)
    base = install_base(store, settings).digest
    # A champion that is neither the base's table nor the newest candidate's.
    headed = PassageEncoder(base, "heading_path")
    decisions.append(store, encoder=headed, recipe="dense", verdict=decisions.PROMOTED, reason="by hand")
    oracle.run(store, settings, oracle.REFRESH)
    passages = live_passages(store.warehouse)
    # Passages with and without headings, and sentences.
    inputs = {p.rendered(prefix) for p in passages for prefix in get_args(PassagePrefix)}
    inputs |= {sentence for passage in passages for sentence in sentences(passage.text)}
    monkeypatch.setattr(encoder, "ENCODER_VERSION", "of tomorrow")
    with oracle.watched() as work:
        results = oracle.run(store, settings, oracle.REFRESH)
    assert {name for name, result in results.items() if not result.unchanged} == {"base_index", "served_index"}
    assert sorted(work.passages) == sorted(inputs)
    assert all(result.unchanged for result in oracle.run(store, settings, oracle.REFRESH).values())


def test_equal_passages_of_several_documents_come_in_one_order_whatever_the_history(
    store: Store, documents: Path, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    names = [f"hr/copy-{number}.md" for number in range(7)]
    for name in reversed(names):
        (documents / name).write_text(LEAVE, encoding="utf-8")
        if name in names[4:]:
            oracle.run(store, settings_for(), oracle.REFRESH)
    oracle.run(store, settings_for(), oracle.REFRESH)
    fresh = Store(tmp_path / "fresh", wait_seconds=10)
    oracle.run(fresh, settings_for(store=str(fresh.root)), oracle.REFRESH)
    for retriever in ("base", "base_hybrid", "bm25"):
        for k in (1, 3, 8, 10):
            ranked = [
                [hit.chunk_id for hit in Retriever.open(of.root).search("sabbatical of six weeks", k, retriever)]
                for of in (store, fresh)
            ]
            assert ranked[0] == ranked[1], (retriever, k)
    found = Retriever.open(store.root).search("sabbatical of six weeks", 8, "base")
    assert [hit.doc_path for hit in found] == [*names, "hr/leave.md"]


def test_a_header_row_leads_every_passage_of_its_table_and_an_edit_of_it_rewrites_them(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    settings, file = settings_for(), documents / "rates.md"

    def write(column: str) -> list[str]:
        rows = "".join(f"| Town{number} | {number * 7} |\n" for number in range(60))
        file.write_text(f"# Rates\n\n| Town | {column} |\n|---|---|\n{rows}", encoding="utf-8")
        oracle.run(store, settings, oracle.REFRESH)
        return [p.chunk_id for p in live_passages(store.warehouse) if p.doc_path == file.name]

    before = write("Kayak fee")
    hits = Retriever.open(store.root).search("kayak fee in Town57", 3, "bm25")
    assert "Town57" in hits[0].text
    assert "Kayak" not in hits[0].text, "the text stays that of the document"
    with oracle.watched() as work:
        after = write("Parking quota")
    assert len(before) > 2
    assert before[1:] == after[1:]
    assert len([text for text in work.passages if text.startswith("| Town | Parking quota |\n")]) == len(after) - 1
    wanted = {p.chunk_id: p.rendered("heading_path") for p in live_passages(store.warehouse)}
    for live in oracle.live_tables(store).values():
        assert {row["id"]: row["search_text"] for row in live.rows(store).values()} == wanted
    assert not any("Kayak" in text for text in wanted.values())


@pytest.mark.parametrize(
    "content", ['["base"]', '{"base": 7}', '{"base": {"table": "t"}}', '{"base": {"table": ["t"]}}']
)
def test_an_arms_file_of_another_shape_names_no_arm_and_the_next_run_mends_it(
    store: Store, settings_for: Callable[..., Settings], documents: Path, content: str
) -> None:
    settings = settings_for()
    for stage in (ingest_documents, split_documents, index.index_base, serve):
        stage(store, settings)
    whole = arms_file(store).read_text()
    arms_file(store).write_text(content)
    retriever = Retriever.open(store.root)
    assert retriever.search("hotel limit in Rotterdam"), "readers of what is promoted need no arms"
    with pytest.raises(ArmMissing, match="materialise it first"):
        retriever.search("hotel limit in Rotterdam", retriever="base")
    index.index_base(store, settings)
    assert arms_file(store).read_text() == whole
