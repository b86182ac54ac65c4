"""Gradient caching: the gradient of the whole batch, and when a batch needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.training import gradient_cache, memory
from acme_rag_pipeline.training.objective import Objective
from acme_rag_pipeline.training.rows import TrainingRows
from acme_rag_pipeline.training.start_model import opened
from acme_rag_pipeline_tests.shallow_base import shallow_base

# More than one part of 16 texts, of different lengths.
COUNT = 40
PASSAGES = [
    f"Rule {i}: a colleague in team {i % 5} asks for form {i * 13}." + " Then wait." * (i % 9) for i in range(COUNT)
]
QUERIES = [f"which form for team {i % 5} under rule {i}" for i in range(COUNT)]


@pytest.fixture(scope="module")
def base() -> Path:
    return shallow_base()


def work_of(base: Path, *, cached: bool | None, frozen_passages: bool = False, **recipe: Any) -> Objective:
    settings = TrainingSettings(precision="fp32", gradient_cache=cached, **recipe)
    frozen = torch.nn.functional.normalize(torch.randn(COUNT, 384, generator=torch.manual_seed(3)), dim=1).numpy()
    rows = TrainingRows(
        QUERIES,
        range(COUNT),
        PASSAGES,
        [str(i) for i in range(COUNT)],
        [[(i + 7) % COUNT] for i in range(COUNT)],
        frozen_passages=frozen if frozen_passages else None,
    )
    torch.manual_seed(0)
    return Objective(opened(base, settings, "cpu"), rows, settings)


@pytest.mark.parametrize(
    ("recipe", "frozen_passages"),
    [({}, False), ({"frozen_layers": 1}, False), ({"dropout": 0.3}, False), ({}, True)],
    ids=["all layers", "half frozen", "dropout", "query tower"],
)
def test_the_gradient_in_parts_is_that_of_the_whole_batch(
    base: Path, recipe: dict[str, Any], frozen_passages: bool
) -> None:
    found = []
    for cached in (False, True):
        work = work_of(base, cached=cached, frozen_passages=frozen_passages, **recipe)
        work.model.train()
        torch.manual_seed(1)
        loss = work.backward(list(range(24)))
        gradients = {name: w.grad.clone() for name, w in work.model.named_parameters() if w.grad is not None}
        found.append((loss.item(), gradients, torch.rand(1).item()))
    (whole_loss, whole, whole_random), (loss, gradients, random) = found
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    assert random == whole_random, "the step after it draws the same dropout"
    assert gradients.keys() == whole.keys() != set()
    for name, gradient in whole.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max() + 1))


def test_what_a_text_holds_is_measured(base: Path) -> None:
    work = work_of(base, cached=False)
    by_length = sorted(work.passages, key=len)
    short, long = (gradient_cache.held_bytes(work.model, None, "fp32", text) for text in (by_length[0], by_length[-1]))
    # At least each layer's inputs of its six linear maps, in float32: 4 x 384 + 2 x 1536 values a token.
    assert long > 2 * len(by_length[-1]) * (4 * 384 + 1536) * 4
    assert 0 < short < long
    half = work_of(base, cached=False, frozen_layers=1)
    assert gradient_cache.held_bytes(half.model, half.lower, "fp32", by_length[-1]) < 0.6 * long
    assert all(weight.grad is None for weight in work.model.parameters())


def test_a_batch_is_computed_in_parts_where_it_would_fill_the_memory(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cached(bytes_: int) -> bool:
        monkeypatch.setattr(gradient_cache, "memory_bytes", lambda _: bytes_)
        return work_of(base, cached=None).cached

    assert not cached(64 * 2**30)
    assert cached(2**27)


def test_a_container_has_no_more_memory_than_it_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    limit, none, broken = tmp_path / "limit", tmp_path / "none", tmp_path / "broken"
    limit.write_text("1073741824\n")
    none.write_text("max\n")
    broken.write_bytes(b"\xff\xfe")
    device = torch.device("cpu")
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", (none, broken, tmp_path / "missing"))
    whole = memory.memory_bytes(device)
    assert whole is not None
    assert whole > 2**30
    monkeypatch.setattr(memory, "CONTAINER_LIMITS", (none, limit))
    assert memory.memory_bytes(device) == 2**30


def test_a_model_that_does_not_train_holds_nothing(base: Path) -> None:
    work = work_of(base, cached=False)
    work.model.requires_grad_(False)
    assert gradient_cache.held_bytes(work.model, None, "fp32", work.passages[0]) == 0


def test_whether_the_memory_is_measured_changes_no_dropout(base: Path) -> None:
    draws = []
    for cached in (None, True):
        work = work_of(base, cached=cached, strategy="lora")
        assert cached or not work.cached
        draws.append(torch.rand(3).tolist())
    assert draws[0] == draws[1]
