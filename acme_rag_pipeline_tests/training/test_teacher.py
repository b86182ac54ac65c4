"""The teacher knows shared words, and a model that agrees with it has nothing to learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from acme_rag_pipeline.training.losses import distillation_loss
from acme_rag_pipeline.training.teacher import SharedWords, teacher_logits

PASSAGES = [
    "The sabbatical lasts six weeks after six years.",
    "The form FRM-IM-07 is for work abroad.",
    "The canteen opens at noon.",
    "§§§",
]


def test_rare_shared_words_count_and_common_ones_hardly() -> None:
    words = SharedWords(["Which form is FRM-IM-07?", "the the the", "Sabbaticál weeks", ""], PASSAGES)
    found = words.cosines([0, 1, 2, 3], [0, 1, 2, 3])
    assert found.shape == (4, 4)
    assert found.dtype == np.float32
    assert found.min() >= 0
    assert found.max() <= 1.0001
    assert found[0].argmax() == 1
    assert found[2].argmax() == 0
    assert found[2, 0] > found[1, 0] > 0
    assert not found[3].any()
    assert not found[:, 3].any()


def test_some_rows_and_columns_are_those_of_the_whole() -> None:
    words = SharedWords(["work abroad", "noon canteen"], PASSAGES)
    whole = words.cosines([0, 1], [0, 1, 2, 3])
    assert np.array_equal(words.cosines([1], [3, 2]), whole[1:, [3, 2]])


def test_passages_without_a_word_teach_nothing_and_break_nothing() -> None:
    assert not SharedWords(["what?"], ["...", "§"]).cosines([0], [0, 1]).any()


def test_the_teacher_prefers_the_answer_to_a_passage_that_is_as_similar() -> None:
    guide = torch.tensor([[0.6, 0.6, 0.6]])
    words = torch.tensor([[0.0, 0.0, 0.5]])
    found = teacher_logits(guide, words, torch.tensor([[True, False, False]]))[0]
    assert found.argmax() == 0
    assert found[2] > found[1]


def test_agreement_costs_nothing_and_disagreement_is_pulled_to_the_teacher() -> None:
    teacher = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
    assert distillation_loss(teacher + 5, teacher).item() == pytest.approx(0, abs=1e-6)
    scores = torch.zeros(2, 3, requires_grad=True)
    loss = distillation_loss(scores, teacher)
    loss.backward()
    assert loss.item() > 0
    assert scores.grad is not None
    assert (scores.grad[0].argmin(), scores.grad[1].argmin()) == (0, 1)
