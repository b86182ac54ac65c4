"""Asset checks and previews: what is shown beside a verdict is what the store holds about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import dagster as dg
import pytest

from acme_rag_pipeline.chunking.chunks import split_documents
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.evaluation.golden import resolve_golden_queries
from acme_rag_pipeline.orchestration import checks
from acme_rag_pipeline.orchestration.presentation import metadata_of
from acme_rag_pipeline.orchestration.resources import Pipeline, _sentence
from acme_rag_pipeline.pairs.curated import resolve_curated_pairs
from acme_rag_pipeline.pairs.synthetic import write_pairs
from acme_rag_pipeline.retrieval.passage_encoder import PassageEncoder
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.status import store_status
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.stages import StageResult, record, stage_seconds
from acme_rag_pipeline_tests.documents.test_parsers import pdf
from acme_rag_pipeline_tests.llm_server import Act, ScriptedLLM, completion, ok

Make = Callable[..., Settings]


def only(asset: str, store: Store, settings: Settings) -> dg.AssetCheckResult:
    (result,) = checks.results(asset, store, settings)
    return result


def golden(folder: Path, queries: str, qrels: str) -> str:
    folder.mkdir()
    (folder / "queries.jsonl").write_text(queries, encoding="utf-8")
    (folder / "qrels.jsonl").write_text(qrels, encoding="utf-8")
    return str(folder)


def test_more_unreadable_files_than_the_table_shows_are_all_counted(
    store: Store, documents: Path, settings_for: Make
) -> None:
    for number in range(checks.SHOWN + 5):
        (documents / f"{number}.bin").write_bytes(b"\0")
    ingest_documents(store, settings_for())
    found = only("documents", store, settings_for())
    assert not found.passed
    assert found.metadata["unreadable"].value == checks.SHOWN + 5
    assert len(found.metadata["reasons"].records) == checks.SHOWN


def test_a_file_of_which_a_part_is_missing_is_warned_of(
    store: Store, documents: Path, settings_for: Make, caplog: pytest.LogCaptureFixture
) -> None:
    (documents / "contract.pdf").write_bytes(pdf(["Contract"], None, None))
    for warned in (1, 0):
        caplog.clear()
        assert ingest_documents(store, settings_for()).details["incomplete"] == 1
        assert len(caplog.records) == warned
    found = only("documents", store, settings_for())
    assert not found.passed
    assert (found.metadata["unreadable"].value, found.metadata["incomplete"].value) == (0, 1)
    assert "2 of 3 pages have no text layer" in str(found.metadata["missing"].records[0])
    known = store_status(store, settings_for())
    assert known["counts"]["incomplete_documents"] == 1
    assert known["incomplete"][0]["doc_path"] == "contract.pdf"


def test_a_document_without_a_passage_is_warned_of(store: Store, documents: Path, settings_for: Make) -> None:
    (documents / "stub.md").write_text("---\ntitle: Soon\n---\n", encoding="utf-8")
    for stage in (ingest_documents, split_documents):
        stage(store, settings_for())
    exact, found = checks.results("chunks", store, settings_for())
    assert exact.passed
    assert not found.passed
    assert found.metadata["without_a_passage"].value == 1
    assert "stub.md" in str(found.metadata["documents"].records[0])


def test_more_lost_queries_than_the_table_shows_are_all_counted(
    store: Store, documents: Path, settings_for: Make, tmp_path: Path
) -> None:
    ids = range(checks.SHOWN + 5)
    folder = golden(
        tmp_path / "golden",
        "".join(f'{{"query_id": "{n}", "query": "what is rule {n}"}}\n' for n in ids),
        "".join(f'{{"query_id": "{n}", "doc_path": "gone.md"}}\n' for n in ids),
    )
    settings = settings_for(golden=folder)
    for stage in (ingest_documents, split_documents, resolve_golden_queries):
        stage(store, settings)
    assert only("golden_queries", store, settings).metadata["unresolved"].value == checks.SHOWN + 5


def test_more_unusable_and_ambiguous_lines_than_a_stage_lists_are_all_counted(
    store: Store, documents: Path, settings_for: Make, tmp_path: Path
) -> None:
    ids, pairs = range(205), tmp_path / "pairs.jsonl"
    said_twice = "Ask your manager for approval of it."
    about = [
        f"## {name}\n\n{f'This desk settles what people ask about {name}. ' * 30}{said_twice}\n" for name in ("A", "B")
    ]
    (documents / "twice.md").write_text("# Handbook\n\n" + "\n".join(about), encoding="utf-8")
    ambiguous = "".join(f'{{"query": "rule {n}", "doc_path": "twice.md", "quote": "{said_twice}"}}\n' for n in ids)
    wanted = (
        '"query": "Evergreen %s", "doc_path": "hr/leave.md", "quote": "Evergreen is a paid sabbatical of six weeks"'
    )
    lost = "".join(f'{{{wanted % n}, "negative": "found nowhere {n}"}}\n' for n in ids)
    pairs.write_text(ambiguous + lost + "no JSON\n" * len(ids), encoding="utf-8")
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden/queries.jsonl").write_text("no JSON\n" * len(ids), encoding="utf-8")
    (tmp_path / "golden/qrels.jsonl").write_text("", encoding="utf-8")
    settings = settings_for(curated_pairs=str(pairs), golden=str(tmp_path / "golden"))
    for stage in (ingest_documents, split_documents, resolve_curated_pairs, resolve_golden_queries):
        stage(store, settings)
    found = only("curated_pairs", store, settings).metadata
    assert found["unusable_lines"].value == len(ids)
    assert found["lost_negatives"].value == len(ids)
    assert found["ambiguous_quotes"].value == len(ids)
    assert only("golden_queries", store, settings).metadata["unusable_lines"].value == len(ids)


def test_a_check_without_anything_to_list_shows_no_table(store: Store, documents: Path, settings_for: Make) -> None:
    for stage in (ingest_documents, split_documents, resolve_curated_pairs, resolve_golden_queries):
        stage(store, settings_for(curated_pairs="none", golden="none"))
    for asset in ("documents", "curated_pairs", "golden_queries"):
        found = only(asset, store, settings_for())
        assert found.passed
        assert all(entry.value == 0 for entry in found.metadata.values())


@pytest.mark.parametrize(("with_question", "passed"), [(2, False), (3, False), (4, True)])
def test_an_llm_that_finds_nothing_to_ask_about_half_of_the_passages_is_warned_of(
    store: Store,
    documents: Path,
    settings_for: Make,
    monkeypatch: pytest.MonkeyPatch,
    with_question: int,
    passed: bool,
) -> None:
    def act(number: int, body: dict[str, Any]) -> Act:
        return ok(f"question {number}?") if number < with_question else completion('{"queries": []}')

    with ScriptedLLM(act) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        settings = settings_for(generator="openai")
        for stage in (ingest_documents, split_documents, write_pairs):
            stage(store, settings)
    found = only("synthetic_pairs", store, settings)
    assert found.passed == passed
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert found.metadata["unanswered"].value == 0
    assert found.metadata["llm_answers"].value == 6
    assert found.metadata["llm_answers_without_a_question"].value == 6 - with_question
    assert passed == (found.description is None)
    assert passed or ("ACME_RAG_LLM" in found.description and "ask-again --empty" in found.description)


@pytest.mark.parametrize("line", ["no JSON", '{"query_id": "b"}'])
def test_a_line_of_the_golden_files_that_cannot_be_used_is_warned_of(
    store: Store, documents: Path, settings_for: Make, tmp_path: Path, line: str
) -> None:
    asked = '{"query_id": "a", "query": "how many FLEX days"}\n'
    folder = golden(tmp_path / "golden", f"{asked}{line}\n", '{"query_id": "a", "doc_path": "hr/leave.md"}\n')
    settings = settings_for(golden=folder)
    for stage in (ingest_documents, split_documents, resolve_golden_queries):
        stage(store, settings)
    found = only("golden_queries", store, settings)
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert found.metadata["unusable_lines"].value == 1


def test_an_evaluation_without_a_judged_question_does_not_show_the_numbers_of_the_one_before(store: Store) -> None:
    def shown(evaluation_id: str) -> Any:
        result = StageResult("evaluation_report", "v", details={"evaluation_id": evaluation_id})
        with store.warehouse.write() as connection:
            record(connection, result, evaluation_id)
        return metadata_of(store, result)["preview"]

    with store.warehouse.write() as connection:
        connection.execute(
            "INSERT INTO evaluations BY NAME SELECT 'before' AS evaluation_id, 'd' AS model_digest, 'base' AS arm, "
            "'golden' AS query_set, 'ndcg@10' AS metric, 0.5 AS value, 0.4 AS low, 0.6 AS high, 9 AS queries, 3 AS units, "
            "now() AS evaluated_at, 'base/golden/ndcg@10' AS row_key"
        )
    assert [row.data["value"] for row in shown("before").records] == [0.5]
    assert shown("today") == "no rows"


def test_the_table_of_the_shares_shows_the_numbers_that_chose_although_the_base_has_none(store: Store) -> None:
    tried = [
        {"share": 0.0, "whitening": 0.0, "ndcg@10": 0.5},
        {"share": 1.5, "whitening": 0.0, "ndcg@10": 0.6, "unlike_training": 0.4},
    ]
    shown = metadata_of(store, StageResult("fine_tuned_model", "v", details={"interpolation": tried}))["interpolation"]
    assert [row.data["unlike_training"] for row in shown.records] == ["", "0.4"]


def test_a_run_with_nothing_to_do_shows_less_since_dagster_keeps_it_for_good(
    store: Store, documents: Path, settings_for: Make
) -> None:
    for number in range(30):
        (documents / f"{number}.md").write_text(f"# {'A long title ' * 12}{number}\n\nText.", encoding="utf-8")
    first, again = (metadata_of(store, ingest_documents(store, settings_for())) for _ in range(2))
    assert (len(first["preview"].records), len(again["preview"].records)) == (24, 3)
    longest = [max(len(row.data["title"]) for row in shown["preview"].records) for shown in (first, again)]
    assert longest[0] > 100 > longest[1]
    picture = StageResult("training_set", "v", details={"picture": "iVBORw0KGgo="})
    assert "iVBORw0KGgo=" in metadata_of(store, picture)["picture"].value
    assert "iVBORw0KGgo=" not in metadata_of(store, replace(picture, unchanged=True))["picture"]


def test_rows_are_counted_where_there_are_rows_an_empty_table_has_none(store: Store, settings_for: Make) -> None:
    empty = metadata_of(store, StageResult("curated_pairs", "v"))
    assert (empty["dagster/row_count"], empty["added"]) == (0, 0)
    for stage in ("fine_tuned_model", "evaluation_report", "promoted_retriever"):
        assert (
            not {"added", "changed", "removed", "reused", "dagster/row_count"}
            & metadata_of(store, StageResult(stage, "v")).keys()
        )
    for details, said in (
        ({"outcome": "trained in 41 s"}, "promoted_retriever: trained in 41 s"),
        ({"verdict": "kept: not better", "reason": "why"}, "promoted_retriever: kept: not better: why"),
    ):
        assert _sentence(StageResult("promoted_retriever", "v", details=details)) == said
    assert "0 added, 0 changed" in _sentence(StageResult("chunks", "v"))


def test_a_preview_of_decisions_is_short_and_for_people_first(store: Store, settings_for: Make) -> None:
    base = PassageEncoder("d" * 64, "none")
    decisions.append(store, encoder=base, recipe="dense", verdict="kept: not better", reason="because " * 50)
    (row,) = metadata_of(store, StageResult("promoted_retriever", "v"))["preview"].records
    assert list(row.data) == ["decided_at", "verdict", "reason", "recipe", "model_digest"]
    assert row.data["model_digest"] == "d" * 12
    assert len(row.data["reason"]) == 120


def test_what_only_the_next_look_reads_is_not_shown(store: Store, documents: Path, settings_for: Make) -> None:
    assert "settings_key" not in metadata_of(store, ingest_documents(store, settings_for()))


def test_what_a_check_warns_of_stands_in_the_log_too(
    store: Store, documents: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = golden(
        tmp_path / "golden", '{"query_id": "1", "query": "q"}\n', '{"query_id": "1", "doc_path": "gone.md"}\n'
    )
    pipeline = Pipeline(documents=str(documents), store=str(store.root), golden=folder)
    for stage in (ingest_documents, split_documents, resolve_golden_queries):
        pipeline.materialize(dg.build_asset_context(), stage)
    warned = [line for line in capfd.readouterr().err.splitlines() if "WARNING" in line]
    assert len(warned) == 1
    assert warned[0].endswith("check golden_queries_resolve: unresolved 1")


def test_a_run_shows_its_own_seconds_and_one_with_nothing_to_do_shows_none(store: Store, documents: Path) -> None:
    pipeline = Pipeline(documents=str(documents), store=str(store.root))
    first, again = (pipeline.materialize(dg.build_asset_context(), ingest_documents) for _ in range(2))
    assert first.metadata is not None
    assert again.metadata is not None
    assert stage_seconds(store.warehouse) == {"documents": first.metadata["wall_seconds"]}
    assert "wall_seconds" not in again.metadata
    assert first.data_version == again.data_version


def test_a_defect_stands_in_the_log_as_an_error(
    store: Store, documents: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pipeline = Pipeline(documents=str(documents), store=str(store.root))
    pipeline.materialize(dg.build_asset_context(), ingest_documents)

    def split_and_spoil(store: Store, settings: Settings) -> StageResult:
        result = split_documents(store, settings)
        with store.warehouse.write() as connection:
            connection.execute("UPDATE chunks SET start_char = start_char + 1")
        return result

    pipeline.materialize(dg.build_asset_context(), split_and_spoil)
    said = [line for line in capfd.readouterr().err.splitlines() if "spans_are_exact" in line]
    assert len(said) == 1
    assert " ERROR " in said[0]
