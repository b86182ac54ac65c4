"""The forgetting probe: entries that can be told apart, a broken model that is seen, and no cost the second time."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from acme_rag_pipeline.embedding.base_model import model_digest
from acme_rag_pipeline.embedding.encoder import Encoder, load_model
from acme_rag_pipeline.embedding.general_probe import probe_entries
from acme_rag_pipeline.evaluation.forgetting import Forgetting, general_probe
from acme_rag_pipeline.evaluation.intervals import Interval
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store


def words(text: str) -> set[str]:
    return {word for word in re.findall(r"[a-z]+", text.lower()) if len(word) > 3}


def test_probe_entries_are_distinct_and_not_copied_from_their_passages() -> None:
    entries = probe_entries()
    assert len(entries) >= 120
    assert len({query for query, _ in entries}) == len({passage for _, passage in entries}) == len(entries)
    assert all(30 <= len(passage.split()) <= 70 for _, passage in entries)
    shared = [len(words(query) & words(passage)) / max(1, len(words(query))) for query, passage in entries]
    assert sum(shared) / len(shared) < 0.25


@pytest.fixture
def damaged(store: Store, settings_for: Callable[..., Settings], tmp_path: Path) -> PassageEncoder:
    """The base with one transformer layer wiped: what a training that went wrong leaves."""
    import torch

    base = install_base(store, settings_for())
    model = load_model(base.folder, "cpu")
    with torch.no_grad():
        for weight in model[0].auto_model.encoder.layer[2].parameters():
            weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(str(tmp_path / "damaged"), create_model_card=False)
    digest = model_digest(tmp_path / "damaged")
    shutil.copytree(tmp_path / "damaged", models.model_folder(store, digest))
    return PassageEncoder(digest, BASE_PREFIX)


def test_a_damaged_model_forgets_and_a_second_look_encodes_nothing(
    store: Store, settings_for: Callable[..., Settings], damaged: PassageEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for()
    base = PassageEncoder(install_base(store, settings).digest, BASE_PREFIX)
    first = general_probe(store, settings, base, damaged)
    assert first.base_ndcg > 0.8
    assert first.candidate_ndcg < first.base_ndcg
    assert first.difference.high < 0
    assert "The candidate forgets" in first.sentence

    def encode(*_: Any) -> None:
        raise AssertionError("a text was encoded again")

    monkeypatch.setattr(Encoder, "_encode", encode)
    assert general_probe(store, settings, base, damaged) == first
    same = general_probe(store, settings, base, base)
    assert (same.difference.mean, same.outcome) == (0, "holds")
    # A query tower: its own query vectors, the base's passage vectors.
    tower = PassageEncoder(damaged.model_digest, BASE_PREFIX, base.model_digest)
    assert general_probe(store, settings, base, tower).candidate_ndcg not in (first.base_ndcg, first.candidate_ndcg)


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [
        (-0.05, -0.01, "forgets: the loss lies between 0.010 and 0.050"),
        (-0.02, 0.01, "No forgetting is shown; a loss above 0.020 can be ruled out"),
        (0.01, 0.03, "does not forget; it is even better there"),
    ],
)
def test_the_sentence_follows_the_interval(low: float, high: float, words: str) -> None:
    assert words in Forgetting(0.9, 0.9, Interval((low + high) / 2, low, high, 120, 120), 120).sentence
