"""The whole pipeline over a small company, with the real model, DuckDB and LanceDB."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pytest
from click.testing import CliRunner

from acme_rag_pipeline import cli
from acme_rag_pipeline.definitions import build_definitions
from acme_rag_pipeline.orchestration.resources import Pipeline
from acme_rag_pipeline.retrieval.passage_encoder import newest_candidate
from acme_rag_pipeline.retrieval.retriever import RETRIEVERS, Retriever
from acme_rag_pipeline.store import vectors
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import read_pointer
from acme_rag_pipeline.store.warehouse import records
from acme_rag_pipeline_tests.conftest import LEAVE, TRAVEL, files_of, write_documents
from acme_rag_pipeline_tests.shallow_base import shallow_base

pytestmark = pytest.mark.slow
TUNING = {
    "training": {"epochs": 1, "minimum_pairs": 5, "batch_size": 8},
    "pairs": {"queries_per_chunk": 2},
    "serving": {"reader_grace_seconds": 0},
}


class Company:
    """A folder of documents with its store, and the jobs over them."""

    def __init__(self, root: Path, **given: Any) -> None:
        self.documents = root / "documents"
        self.pipeline = Pipeline(
            documents=str(self.documents), store=str(root / "store"), tuning=TUNING | given.pop("tuning", {}), **given
        )
        self.store = Store(root / "store", wait_seconds=10)

    def run(self, job: str) -> dg.ExecuteInProcessResult:
        definitions = build_definitions(self.pipeline)
        with dg.DagsterInstance.ephemeral() as instance:
            return definitions.resolve_job_def(job).execute_in_process(instance=instance, raise_on_error=False)

    def search(self, text: str, **given: Any) -> list[dict[str, Any]]:
        return [hit.as_dict() for hit in Retriever.open(self.store.root).search(text, **given)]

    def rows(self, query: str) -> list[dict[str, Any]]:
        with self.store.warehouse.read() as connection:
            return records(connection, query)


def metadata(result: dg.ExecuteInProcessResult, asset: str) -> dict[str, Any]:
    events = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in events[0].metadata.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Company:
    """Everything, once, from nothing."""
    root = tmp_path_factory.mktemp("company")
    write_documents(root / "documents")
    company = Company(root)
    assert company.run("retrain").success
    return company


@pytest.fixture
def company(built: Company, tmp_path: Path) -> Company:
    """A copy of the built company that a test may change."""
    shutil.copytree(built.documents.parent, tmp_path / "company", symlinks=True)
    return Company(tmp_path / "company")


def test_three_documents_are_enough_for_everything_but_a_verdict(built: Company) -> None:
    verdicts = [row["verdict"] for row in built.rows("SELECT verdict FROM promotions ORDER BY decision")]
    assert verdicts == ["bootstrap", "kept: cannot tell"]
    promoted = read_pointer(built.store.pointer)
    assert promoted.recipe == "dense"
    assert (built.store.root / promoted.model_dir / "model.safetensors").is_file()
    assert built.rows("SELECT count(*) AS n FROM training_pairs WHERE dropped_because IS NULL")[0]["n"] > 5
    reports = list((built.store.root / "reports").glob("*.html"))
    assert reports
    page = reports[0].read_text(encoding="utf-8")
    for part in ("chunks have a kept pair", "words of the query", "share of its words in the passage"):
        assert part in page
    assert not re.search(r"<script|<link|@import|src=[\"'](?!data:)|url\((?!data:)", page)


def test_every_retriever_answers_with_exact_spans(built: Company) -> None:
    texts = {row["doc_path"]: row["text"] for row in built.rows("SELECT doc_path, text FROM documents")}
    for name in RETRIEVERS:
        hits = built.search("may I work from another country", k=3, retriever=name)
        assert hits, name
        assert hits[0]["doc_path"] == "remote.txt", name
        for hit in hits:
            assert texts[hit["doc_path"]][hit["start"] : hit["end"]] == hit["text"]


def test_the_second_run_changes_no_byte(built: Company) -> None:
    before = files_of(built.store)
    result = built.run("retrain")
    assert result.success
    assert files_of(built.store) == before
    for asset in ("base_index", "fine_tuned_index", "served_index"):
        assert metadata(result, asset)["embedded"] == 0
        assert metadata(result, asset)["removed"] == 0
    assert metadata(result, "synthetic_pairs")["asked"] == 0


def test_vectors_are_those_of_the_plain_model(built: Company) -> None:
    from sentence_transformers import SentenceTransformer

    promoted = read_pointer(built.store.pointer)
    table = vectors.open_table(vectors.connect(built.store.lancedb), promoted.table, promoted.lance_version)
    assert table is not None
    rows = table.search().limit(1000).to_arrow().to_pylist()
    chunks = {row["chunk_id"]: row for row in built.rows("SELECT * FROM chunks")}
    assert {row["id"] for row in rows} == chunks.keys()
    assert len(rows) == len(chunks)
    plain = SentenceTransformer(str(built.store.root / promoted.model_dir), device="cpu")
    encoded = plain.encode([row["text"] for row in rows], normalize_embeddings=True)
    assert (np.sum(encoded * np.array([row["vector"] for row in rows]), axis=1) >= 0.9999).all()


def test_an_edit_is_served_after_a_refresh_and_deleted_text_is_gone(company: Company) -> None:
    edited = TRAVEL.replace("Book trains and flights in Wayfare.", "Book a zeppelin in the Aeronautics portal.")
    (company.documents / "travel.md").write_text(edited, encoding="utf-8")
    (company.documents / "hr/leave.md").unlink()
    result = company.run("refresh")
    assert result.success
    assert metadata(result, "served_index")["embedded"] <= 2
    assert "zeppelin" in company.search("zeppelin", k=1)[0]["text"]
    for name in RETRIEVERS:
        found = company.search("sabbatical Evergreen Mend days", k=50, retriever=name)
        assert all(hit["doc_path"] != "hr/leave.md" for hit in found), name
    assert company.rows("SELECT status, text FROM documents WHERE doc_path = 'hr/leave.md'") == [
        {"status": "deleted", "text": None}
    ]


def test_a_moved_section_costs_no_encoding(company: Company) -> None:
    # Sections long enough to be chunks of their own.
    title, *sections = [part.strip() for part in LEAVE.split("\n## ")]
    sections = [f"{section} {section.split(chr(10), 1)[1]}" for section in sections]
    before, after = ("\n\n## ".join([title, sections[0], *rest]) for rest in (sections[1:], sections[:0:-1]))
    assert before != after
    (company.documents / "long.md").write_text(before, encoding="utf-8")
    result = company.run("refresh")
    assert metadata(result, "base_index")["embedded"] >= 3
    (company.documents / "long.md").write_text(after, encoding="utf-8")
    result = company.run("refresh")
    assert result.success
    assert metadata(result, "chunks")["changed"] >= 2
    assert metadata(result, "served_index")["embedded"] + metadata(result, "base_index")["embedded"] == 0


def test_an_edit_and_a_revert_end_in_the_same_rows(company: Company) -> None:
    query = "SELECT * EXCLUDE (mtime_ns, scanned_at_ns) FROM documents ORDER BY doc_path"
    before = [company.rows(query), company.rows("SELECT * FROM chunks ORDER BY chunk_id")]
    (company.documents / "travel.md").write_text("# Travel\n\nNothing any more.", encoding="utf-8")
    assert company.run("refresh").success
    (company.documents / "travel.md").write_text(TRAVEL, encoding="utf-8")
    result = company.run("refresh")
    assert [company.rows(query), company.rows("SELECT * FROM chunks ORDER BY chunk_id")] == before
    assert metadata(result, "served_index")["embedded"] == 0


def test_a_broken_file_is_reported_and_stops_nobody(company: Company) -> None:
    (company.documents / "broken.pdf").write_bytes(b"%PDF-1.7 not really")
    (company.documents / "latin.md").write_bytes("Käse".encode("latin-1"))
    result = company.run("refresh")
    assert result.success
    reasons = company.rows("SELECT doc_path, reason FROM documents WHERE status = 'unreadable' ORDER BY doc_path")
    assert [row["doc_path"] for row in reasons] == ["broken.pdf", "latin.md"]
    assert all(row["reason"] for row in reasons)


def test_an_empty_folder_never_wipes_the_store(company: Company) -> None:
    before = files_of(company.store)
    shutil.rmtree(company.documents)
    company.documents.mkdir()
    result = company.run("refresh")
    assert not result.success
    assert files_of(company.store) == before
    assert company.search("FLEX days", k=1)


def test_the_gate_fails_for_a_kept_champion(built: Company) -> None:
    assert not built.run("gate").success


def test_a_rollback_is_recorded_and_not_undone_by_the_next_run(company: Company) -> None:
    settings = company.pipeline.settings()
    from acme_rag_pipeline.serving import decisions, serve

    candidate = newest_candidate(company.store)
    assert candidate is not None
    base = decisions.champion(company.store, settings)
    decisions.append(
        company.store, encoder=candidate, recipe="hybrid", verdict="promoted", reason="by hand", candidate_key="x"
    )
    serve.serve(company.store, settings)
    assert read_pointer(company.store.pointer).model_digest == candidate.model_digest
    (company.documents / "travel.md").unlink()
    serve.rollback(company.store, settings)
    # The documents stage has not run: what was known then is served, by the model from before.
    pointer = read_pointer(company.store.pointer)
    assert (pointer.model_digest, pointer.recipe) == (base.model_digest, "dense")
    assert company.run("retrain").success
    assert read_pointer(company.store.pointer).model_digest == base.model_digest
    assert all(hit["doc_path"] != "travel.md" for hit in company.search("hotel limits in London", k=20))


def test_an_llm_that_is_down_is_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_documents(tmp_path / "documents")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
    company = Company(tmp_path, generator="openai", base_model=str(shallow_base()))
    result = company.run("retrain")
    assert result.success
    assert metadata(result, "synthetic_pairs")["unanswered"] > 0
    assert company.search("FLEX days", k=1)[0]["doc_path"] == "hr/leave.md"


def test_refresh_alone_on_an_empty_store_gives_a_working_search(tmp_path: Path) -> None:
    write_documents(tmp_path / "documents")
    company = Company(tmp_path)
    assert company.run("refresh").success
    assert [row["verdict"] for row in company.rows("SELECT verdict FROM promotions")] == ["bootstrap"]
    assert company.search("sabbatical", k=1)[0]["doc_path"] == "hr/leave.md"


def test_the_command_line_over_a_built_store(built: Company, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*arguments: str) -> Any:
        given = ["--store", str(built.store.root), "--documents", str(built.documents), *arguments]
        return CliRunner().invoke(cli.main, given)

    found = json.loads(run("search", "hotel in London", "-k", "2", "--json").output)["hits"]
    assert {"doc_path", "start", "end", "score", "chunk_id", "text", "heading"} <= found[0].keys()
    queries = tmp_path / "queries.jsonl"
    queries.write_text('{"query_id": "a", "query": "FLEX days"}\n{"query_id": "b", "query": ""}\n', encoding="utf-8")
    assert run("search", "--queries", str(queries), "--out", str(tmp_path / "run.jsonl")).exit_code == 0
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["query_id"] for line in lines] == ["a", "b"]
    assert lines[0]["hits"]
    assert lines[1]["hits"] == []
    assert run("compare", "FLEX days").exit_code == 0
    answered = json.loads(run("ask", "How many FLEX days do I get?", "--json").output)
    assert answered["answer"] is None
    assert answered["sources"][0]["number"] == 1
    monkeypatch.setenv("ACME_RAG_GENERATOR", "offline")
    forbidden = json.loads(run("ask", "How many FLEX days do I get?", "--json").output)
    assert forbidden["note"].startswith("ACME_RAG_GENERATOR=offline keeps every text on this machine")
    status = json.loads(run("status", "--json").output)
    assert status["up_to_date"] is True
    assert status["promoted"]["recipe"] == "dense"
    assert run("rollback").exit_code == 1
    assert run("search").exit_code == 2
    assert run("search", "x", "--retriever", "magic").exit_code == 2
    assert CliRunner().invoke(cli.main, ["--store", str(tmp_path / "none"), "search", "x"]).exit_code == 1
