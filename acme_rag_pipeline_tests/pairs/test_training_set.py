"""What is asked of a held-out passage is not trained on, whoever wrote it, and the check sees it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from acme_rag_pipeline.orchestration.checks import nothing_leaks
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.warehouse import records
from acme_rag_pipeline_tests.pairs.conftest import Run

SUBJECTS = ("parking", "laptops", "travel", "holidays", "training", "visitors", "catering", "printing", "badges")


def rows(store: Store, query: str) -> list[dict[str, Any]]:
    with store.warehouse.read() as connection:
        return records(connection, query)


def test_a_held_out_wording_is_not_trained_on(
    store: Store, settings_for: Callable[..., Settings], run_all: Run, tmp_path: Path
) -> None:
    folder = tmp_path / "company"
    folder.mkdir()
    for subject in SUBJECTS:
        text = f"# {subject.title()}\n\nThe desk for {subject} settles what you ask about {subject} within a week.\n"
        (folder / f"{subject}.md").write_text(text)
    lines = [
        {"query": wording, "doc_path": f"{subject}.md", "quote": f"The desk for {subject}"}
        for subject in SUBJECTS
        for wording in ("Who signs a late request?", f"Who settles {subject}?")
    ]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    given = {
        "documents": str(folder),
        "curated_pairs": str(pairs),
        "golden": "none",
        "evaluation": {"validation_share": 0.3, "test_share": 0.3},
    }
    settings = settings_for(**given)
    run_all(**given)
    asked = rows(store, "SELECT side, dropped_because FROM training_pairs WHERE query = 'Who signs a late request?'")
    assert {row["side"] for row in asked} >= {"train", "test"}
    trained = [row["dropped_because"] for row in asked if row["side"] == "train"]
    assert set(trained) == {"same wording as a held-out query"}
    assert [row for row in asked if row["side"] != "train" and row["dropped_because"] is None]
    own = rows(store, "SELECT dropped_because FROM training_pairs WHERE query LIKE 'Who settles%' AND side = 'train'")
    assert own
    assert not [row for row in own if row["dropped_because"]]
    assert nothing_leaks(store, settings).passed
    with store.warehouse.write() as connection:
        connection.execute("UPDATE training_pairs SET dropped_because = NULL WHERE query = 'Who signs a late request?'")
    assert not nothing_leaks(store, settings).passed
