"""A tuned model that learns what was asked about its passages: where they go, what stays, and who may object."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.training import choices, loop
from acme_rag_pipeline.training.expansion_distillation import (
    EPOCHS,
    ExpansionDistillation,
    draw_to_queries,
    moved_vectors,
    with_expansion,
)
from acme_rag_pipeline.training.finetune import weights_of
from acme_rag_pipeline.training.rows import KeptPair, TrainingRows
from acme_rag_pipeline.training.start_model import opened
from acme_rag_pipeline_tests.llm_server import ScriptedLLM, in_other_words
from acme_rag_pipeline_tests.shallow_base import shallow_base
from acme_rag_pipeline_tests.training.test_candidate import tuned, write_documents
from acme_rag_pipeline_tests.training.test_strategies import build_up_to_training_set, trained

pytestmark = pytest.mark.slow
COUNT = 20
TOPICS = ("parking", "laptop", "canteen", "badge", "visa")
PASSAGES = [f"Rule {i}: whoever needs the {TOPICS[i % 5]} of floor {i} hands in form {i * 13}." for i in range(COUNT)]
QUERIES = [
    *(f"where do I leave my things on level {i}, {TOPICS[i % 5]}?" for i in range(COUNT)),
    *(f"paper for the {i}th storey" for i in range(COUNT)),
]
POSITIVES = [*range(COUNT), *range(COUNT)]
SETTINGS = TrainingSettings(expansion_epochs=6, precision="fp32")


def rows_of(templates: list[bool] | None = None) -> TrainingRows:
    groups = [str(i) for i in range(COUNT)]
    return TrainingRows(QUERIES, POSITIVES, PASSAGES, groups, [[] for _ in QUERIES], templates)


def start() -> SentenceTransformer:
    torch.manual_seed(0)
    return opened(shallow_base(), SETTINGS, "cpu")


def vectors(model: SentenceTransformer, texts: list[str]) -> np.ndarray:
    return np.asarray(model.encode(texts, normalize_embeddings=True))


def test_a_passage_goes_to_where_its_queries_move_it_and_the_queries_stay(tmp_path: Path) -> None:
    model = start()
    before, asked = vectors(model, PASSAGES), vectors(model, QUERIES)
    lower = {n: w.clone() for n, w in model.named_parameters() if ".layer.0." in n or "embeddings" in n}
    moved = moved_vectors(before, asked, POSITIVES)
    targets = np.stack([moved[i] for i in range(COUNT)])
    draw_to_queries(model, rows_of(), SETTINGS, tmp_path / "c.pt")
    distance = 1 - np.sum(vectors(model, PASSAGES) * targets, axis=1).mean()
    assert distance < 0.5 * (1 - np.sum(before * targets, axis=1).mean())
    assert np.sum(vectors(model, QUERIES) * asked, axis=1).mean() > 0.97
    now = dict(model.named_parameters())
    assert lower
    assert all(torch.equal(now[name], weight) for name, weight in lower.items())


def test_a_gradient_in_parts_is_that_of_the_whole_batch() -> None:
    gradients = []
    for cached in (False, True):
        objective = ExpansionDistillation(start(), rows_of(), SETTINGS.model_copy(update={"gradient_cache": cached}))
        loss = objective.backward(objective.batches(0)[0])
        found = {n: w.grad.clone() for n, w in objective.model.named_parameters() if w.grad is not None}
        gradients.append((loss.item(), found))
    assert gradients[1][0] == pytest.approx(gradients[0][0], rel=1e-5)
    assert gradients[0][1].keys() == gradients[1][1].keys() != set()
    for name, gradient in gradients[0][1].items():
        torch.testing.assert_close(
            gradients[1][1][name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1)
        )


def test_passages_that_only_templates_ask_about_have_no_target() -> None:
    templates = [number % COUNT < 5 for number in range(len(QUERIES))]
    objective = ExpansionDistillation(start(), rows_of(templates), SETTINGS)
    assert sorted(objective.targets) == list(range(5, COUNT))
    assert {query for batch in objective.batches(0) for query in batch} == {
        q for q in range(len(QUERIES)) if q % COUNT >= 5
    }


@pytest.mark.parametrize(
    ("written", "templates", "given", "epochs"),
    [
        (5, 0, {}, EPOCHS),
        (5, 5, {}, EPOCHS),
        (4, 0, {}, 0),
        (5, 6, {}, 0),
        (4, 0, {"expansion_epochs": 3}, 3),
        (5, 6, {"expansion_epochs": 3}, 0),
        (9, 0, {"expansion_epochs": 0}, 0),
        (9, 0, {"strategy": "query_only", "expansion_epochs": 3}, 0),
        (9, 0, {"strategy": "lora"}, 0),
    ],
)
def test_passages_are_drawn_to_queries_where_people_or_an_llm_asked_about_half_of_them(
    written: int, templates: int, given: dict[str, Any], epochs: int
) -> None:
    passages = [
        LivePassage(f"{n}", f"{n}.md", 0, 9, f"{n}", (), f"text {n}", f"{n}", f"{n}.md", "train") for n in range(10)
    ]
    pairs = [KeptPair(f"w{n}", f"query {n}", passages[n], "openai", "llm", ()) for n in range(written)]
    pairs += [KeptPair(f"t{n}", f"words {n}", passages[9 - n], "offline", "keyphrase", ()) for n in range(templates)]
    assert with_expansion(TrainingSettings(**given), pairs, passages).expansion_epochs == epochs
    strong = with_expansion(TrainingSettings(**given), pairs, passages, 0.81).expansion_epochs
    assert strong == (epochs if "expansion_epochs" in given else 0), (
        "a strong base is left as it is, unless somebody asks"
    )
    assert with_expansion(TrainingSettings(**given), pairs, passages, 0.79).expansion_epochs == epochs


@pytest.mark.parametrize(("asked", "epochs"), [(1600, 6), (3300, 3), (30_000, 2)])
def test_more_passages_are_drawn_for_fewer_epochs(asked: int, epochs: int) -> None:
    passages = [LivePassage(f"{n}", "a.md", 0, 9, "a", (), "text", f"{n}", "a.md", "train") for n in range(asked)]
    pairs = [KeptPair(p.chunk_id, "query", p, "openai", "llm", ()) for p in passages]
    assert with_expansion(TrainingSettings(), pairs, passages).expansion_epochs == epochs


def test_vectors_move_by_what_tells_their_queries_from_all_queries() -> None:
    queries = np.eye(4, dtype=np.float32)[[0, 1, 1]]
    passages = np.eye(4, dtype=np.float32)[[2, 2, 3]]
    moved = moved_vectors(passages, queries, [0, 1, 1])
    assert moved.keys() == {0, 1}, "nobody asked about the last"
    # The mean of all is a third of the first and two thirds of the second axis.
    np.testing.assert_allclose(moved[0], np.array([2, -2, 3, 0]) / 17**0.5, rtol=1e-5)
    np.testing.assert_allclose(moved[1], np.array([-1, 1, 3, 0]) / 11**0.5, rtol=1e-5)
    assert moved_vectors(passages, queries[:0], []) == {}


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    whole = start()
    draw_to_queries(whole, rows_of(), SETTINGS, tmp_path / "a.pt")
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "TIMES_A_CHECKPOINT", 0.0)
    backward, left = ExpansionDistillation.backward, iter(range(7))

    def dying(objective: ExpansionDistillation, batch: list[int]) -> torch.Tensor:
        if next(left, None) is None:
            raise Killed
        return backward(objective, batch)

    with monkeypatch.context() as patched:
        patched.setattr(ExpansionDistillation, "backward", dying)
        with pytest.raises(Killed):
            draw_to_queries(start(), rows_of(), SETTINGS, tmp_path / "b.pt")
    resumed = start()
    draw_to_queries(resumed, rows_of(), SETTINGS, tmp_path / "b.pt")
    expected = weights_of(whole)
    for name, weight in weights_of(resumed).items():
        assert torch.equal(weight, expected[name]), name


@pytest.mark.parametrize(("fall", "kept"), [(0.015, True), (0.1, False)], ids=["headings agree", "headings object"])
def test_headings_may_object_and_a_refit_does_as_its_twin(
    store: Store,
    settings_for: Callable[..., Settings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fall: float,
    kept: bool,
) -> None:
    def share(_: Any, model: object, prefix: object, whitening: float, curve: object) -> Any:
        tried = {"share": 1.0, "whitening": whitening, "ndcg@10": 0.9, "unlike_training": 0.5}
        return (1.0, whitening), [tried]

    write_documents(tmp_path / "company")
    with ScriptedLLM(in_other_words) as server:
        same = {"epochs": 1, "frozen_layers": 1, "train_hard_negatives": 0}
        settings = tuned(settings_for, tmp_path / "company", **same, expansion_epochs=1)
        settings = settings.model_copy(update={"generator": "openai", "openai_base_url": server.url})
        build_up_to_training_set(store, settings)
    monkeypatch.setattr(choices.Choices, "share", share)
    monkeypatch.setattr(choices.Choices, "_scores", lambda *_: (0.9, 0.5 - fall))
    drawn: list[str] = []
    real = draw_to_queries

    def watched(model: SentenceTransformer, rows: TrainingRows, training: TrainingSettings, at: Path) -> Any:
        drawn.append(at.stem)
        return real(model, rows, training, at)

    monkeypatch.setattr(choices, "draw_to_queries", watched)
    done = trained(store, settings)
    said = done.details["drawn_to_queries"]
    assert said["before"] - said["after"] == pytest.approx(fall)
    assert said["kept"] is kept
    assert [name.split("-")[1] for name in drawn] == (["twin", "served"] if kept else ["twin"])
    without = trained(
        store, settings.model_copy(update={"training": settings.training.model_copy(update={"expansion_epochs": 0})})
    )
    alike = done.details["model_digest"] == without.details["model_digest"]
    assert alike is not kept, "what headings object to leaves no trace in the weights"
    folder = models.model_folder(store, done.details["model_digest"])
    assert (folder / "model.safetensors").exists()
    card = (folder / "README.md").read_text()
    assert ("drawn to the queries of its passages | yes" in card) is kept
