"""Texts on their way through a model in training: which go together, what a full card does, and what the log says."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from sentence_transformers import SentenceTransformer

from acme_rag_pipeline.embedding.encoder import load_model
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.training import progress
from acme_rag_pipeline.training.memory import NotEnoughMemory
from acme_rag_pipeline.training.objective import Objective
from acme_rag_pipeline.training.rows import TrainingRows
from acme_rag_pipeline.training.tokens import FEWEST_ROWS, FORWARD_TOKENS, Tokens, parts, tokenised, unit_vectors
from acme_rag_pipeline_tests.shallow_base import shallow_base

TEXTS = [f"Rule {i}: team {i % 7} asks for form {i * 13}." + " Then it waits." * (i % 9) for i in range(40)]


@pytest.fixture
def model() -> SentenceTransformer:
    return load_model(shallow_base(), "cpu").eval()


def of_lengths(*lengths: int) -> list[Tokens]:
    return [Tokens({"input_ids": [0] * length}) for length in lengths]


@pytest.mark.parametrize(
    ("length", "together"),
    [(4, 512), (FORWARD_TOKENS // 512, 512), (FORWARD_TOKENS // 64, 64), (FORWARD_TOKENS, FEWEST_ROWS)],
)
def test_long_texts_go_through_the_model_in_smaller_parts(length: int, together: int) -> None:
    chosen = parts(of_lengths(*[length] * 600), 512, FORWARD_TOKENS)
    assert max(map(len, chosen)) == together
    assert sorted(n for numbers in chosen for n in numbers) == list(range(600))


def test_the_longest_text_of_a_part_says_how_many_stand_in_it() -> None:
    assert parts(of_lengths(9, 1, 5, 1), 3) == [[1, 3, 2], [0]]
    texts = of_lengths(*[8] * 100, *[FORWARD_TOKENS // 32] * 40)
    chosen = parts(texts, 512, FORWARD_TOKENS)
    assert [len(numbers) for numbers in chosen] == [100, 32, 8]


def test_a_part_that_the_memory_does_not_hold_is_divided(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = tokenised(model, TEXTS)
    whole = unit_vectors(model, texts, None, "fp32")
    real, tried, fits = model.forward, [], 3

    def forward(features: dict[str, torch.Tensor], **named: Any) -> Any:
        tried.append(len(features["input_ids"]))
        if tried[-1] > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(features, **named)

    monkeypatch.setattr(model, "forward", forward)
    assert torch.allclose(unit_vectors(model, texts, None, "fp32"), whole, atol=1e-5)
    assert max(tried) > fits
    fits = 0
    with pytest.raises(NotEnoughMemory, match=r"ran out of memory on cpu .* CUDA_VISIBLE_DEVICES= in the environment"):
        unit_vectors(model, texts, None, "fp32")
    assert tried[-1] == 1


def test_the_guide_s_and_the_whitening_s_passes_say_how_far_they_are(
    model: SentenceTransformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unasked = [f"{text} Nobody asked." for text in TEXTS[:20]]
    rows = TrainingRows(TEXTS, range(40), TEXTS, [str(i) for i in range(40)], [[]] * 40, unasked=unasked)
    settings = TrainingSettings(precision="fp32", whitening=0.2, gradient_cache=False)
    caplog.set_level(logging.INFO)
    Objective(model, rows, settings)
    assert "texts/s" not in caplog.text, "nothing took long"
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    Objective(load_model(shallow_base(), "cpu"), rows, settings)
    said = [line.split(",")[0] for line in caplog.messages if "texts/s" in line and line.endswith(" s left")]
    of_guide = [f"read {done} of 40 texts" for done in (16, 32, 40)]
    assert said == [*of_guide, *of_guide, "read 16 of 20 texts", "read 20 of 20 texts"]
