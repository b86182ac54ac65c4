"""`acme-rag status` where there is nothing to show yet, or nothing to compare with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from acme_rag_pipeline.cli import main
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.serving.serve import serve
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import Promoted, write_pointer
from acme_rag_pipeline_tests.increments import oracle


def status(store: Store, documents: Path, *options: str) -> str:
    called = CliRunner().invoke(main, ["--store", str(store.root), "--documents", str(documents), "status", *options])
    assert called.exit_code == 0, called.exception
    return called.stdout


def test_of_a_store_that_was_never_built_it_says_how_to_build_it(store: Store, documents: Path) -> None:
    assert "make materialize" in status(store, documents)
    assert json.loads(status(store, documents, "--json"))["promoted"] is None


def test_of_a_copy_for_readers_it_says_what_is_served(store: Store, documents: Path) -> None:
    write_pointer(store.pointer, Promoted("d" * 64, "models/d", "passages_d", 1, "dense", "2026-11-28T00:27:13", "why"))
    said = status(store, documents)
    assert f"promoted   {'d' * 12}, dense" in said
    assert "behind" not in said


def test_what_is_gone_or_has_changed_is_counted_and_not_called_up_to_date(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    assert "served     up to date" in status(store, documents)
    (documents / "travel.md").unlink()
    (documents / "new.md").write_text("# New\n\nNothing was known of this.\n")
    (documents / "hr/leave.md").write_text("# Leave\n\nThere is none.\n")
    assert "behind the documents (1 new, 1 changed, 1 deleted): run `refresh`" in status(store, documents)
    assert json.loads(status(store, documents, "--json"))["documents_changed"] == {"new": 1, "changed": 1, "deleted": 1}
    oracle.run(store, settings_for(), oracle.REFRESH)
    for folder, said in ((store.lancedb, "the table passages_"), (store.models, "the model folder models/")):
        shutil.move(folder, store.root / "away")
        answer = status(store, documents)
        assert "up to date" not in answer
        assert said in answer
        assert json.loads(status(store, documents, "--json"))["up_to_date"] is False
        shutil.move(store.root / "away", folder)
    assert "served     up to date" in status(store, documents)


def test_an_index_over_chunks_of_earlier_documents_is_not_up_to_date(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    (documents / "travel.md").unlink()
    # A refresh that was killed after its first stage, and then a rollback, or a retrain that came first.
    ingest_documents(store, settings_for())
    serve(store, settings_for())
    assert "behind the documents: run `refresh`" in status(store, documents)
    oracle.run(store, settings_for(), oracle.REFRESH)
    assert "served     up to date" in status(store, documents)


def test_a_record_of_an_earlier_version_is_brought_up_to_date_without_work(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    oracle.run(store, settings_for(), oracle.REFRESH)
    with store.warehouse.write() as connection:
        connection.execute(
            'UPDATE stages SET summary = json_merge_patch(summary, \'{"details": {"sources": "in another way"}}\') '
            "WHERE stage = 'served_index'"
        )
    assert "up to date" not in status(store, documents)
    assert serve(store, settings_for()).unchanged
    assert "served     up to date" in status(store, documents)


@pytest.mark.parametrize("options", [["evaluate"], ["rollback"], ["pairs", "estimate"], ["pairs", "export"]])
def test_a_store_that_is_not_there_is_said_and_not_made(tmp_path: Path, documents: Path, options: list[str]) -> None:
    typed = tmp_path / "typo"
    called = CliRunner().invoke(main, ["--store", str(typed), "--documents", str(documents), *options])
    assert called.exit_code == 1
    assert str(typed) in called.output
    assert not typed.exists()


def test_an_empty_store_is_the_default(documents: Path, tmp_path: Path) -> None:
    called = CliRunner().invoke(main, ["--store", "", "--documents", str(documents), "status", "--json"])
    assert json.loads(called.stdout)["store"] == str(tmp_path / "data/store")


@pytest.mark.parametrize("promoted", [True, False])
def test_a_missing_documents_folder_is_said_and_not_called_a_lag(
    store: Store, documents: Path, settings_for: Callable[..., Settings], promoted: bool
) -> None:
    ingest_documents(store, settings_for())
    if promoted:
        write_pointer(
            store.pointer, Promoted("d" * 64, "models/d", "passages_d", 1, "dense", "2026-11-28T00:27:13", "why")
        )
    said = status(store, documents.parent / "unmounted")
    assert "ACME_RAG_DOCUMENTS" in said
    assert "run `refresh`" not in said
    assert promoted == ("nothing is served" not in said)


def test_why_a_document_cannot_be_read_is_said_at_any_time(
    store: Store, documents: Path, settings_for: Callable[..., Settings]
) -> None:
    for number in range(7):
        (documents / f"scan-{number}.pdf").write_bytes(b"no pdf")
    oracle.run(store, settings_for(), oracle.REFRESH)
    answer = status(store, documents)
    assert answer.count("unreadable scan-") == 5
    assert "and 2 more" in answer
    listed = json.loads(status(store, documents, "--json"))["unreadable"]
    assert [row["doc_path"] for row in listed] == [f"scan-{n}.pdf" for n in range(7)]
    assert all(row["reason"] for row in listed)
