"""`acme-rag status` where there is nothing to show yet, or nothing to compare with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from acme_rag_pipeline.cli import main
from acme_rag_pipeline.documents.ingest import ingest_documents
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import Promoted, write_pointer


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
