"""A candidate that held-out units decide about: a twin chooses, a refit follows, and the card tells both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline_tests.training.test_strategies import trained

pytestmark = pytest.mark.slow

SUBJECTS = (
    "parking", "laptops", "travel", "holidays", "training", "visitors", "catering", "printing",
    "badges", "insurance", "pensions", "sabbaticals", "phones", "furniture", "safety", "couriers",
)  # fmt: skip


def write_documents(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    subjects = [f"{subject} in {office}" for subject in SUBJECTS for office in ("Lisbon", "Oslo", "Graz")]
    for number, subject in enumerate(subjects):
        sections = "\n\n".join(
            f"## {part} of {subject}\n\nThe {part} of {subject} is the business of desk {number}-{part}. Whoever asks "
            f"for {subject} writes to that desk before noon, and the {part} is settled within {number + 2} days."
            for part in ("request", "approval", "budget", "return")
        )
        (folder / f"{subject}.md").write_text(f"# {subject.title()}\n\n{sections}\n", encoding="utf-8")


def test_a_refit_takes_its_share_from_the_twin_and_its_card_shows_the_choice(
    store: Store, settings_for: Callable[..., Settings], tmp_path: Path
) -> None:
    write_documents(tmp_path / "company")
    settings = settings_for(
        documents=str(tmp_path / "company"),
        curated_pairs="none",
        golden="none",
        training={"epochs": 1, "minimum_pairs": 5, "batch_size": 8, "interpolation": (0.5,)},
        evaluation={"validation_share": 0.4, "test_share": 0.3},
    )
    done = trained(store, settings)
    assert done.details["twin_digest"]
    tried = done.details["interpolation"]
    assert [row["share"] for row in tried] == [0.0, 0.5]
    cards = {}
    for digest in {done.details["model_digest"], done.details["twin_digest"]}:
        folder = models.model_folder(store, digest)
        about = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        cards[about["kind"]] = (about["share"], about["interpolation"])
        assert "Validation nDCG@10 by share" in (folder / "README.md").read_text(encoding="utf-8")
    assert cards == {"twin": (done.details["share"], tried), "served": (done.details["share"], tried)}
    candidate = index.newest_candidate(store)
    assert candidate is not None
    assert candidate.model_digest == done.details["model_digest"]
