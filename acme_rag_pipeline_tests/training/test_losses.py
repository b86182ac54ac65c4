"""The loss equals MultipleNegativesRanking where nothing is masked, and ignores what the guide takes for a positive."""

from __future__ import annotations

import pytest
import torch

from acme_rag_pipeline.training.losses import guided_softmax_loss


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0])), dim=-1)


def test_without_masks_it_is_the_symmetric_softmax() -> None:
    queries, passages = unit(5, 8), unit(6, 8)[:5]
    guide = torch.eye(5)
    loss = guided_softmax_loss(queries, passages, guide, guide, scale=20, margin=0.95)
    scores = queries @ passages.T * 20
    rows = torch.arange(5)
    expected = (torch.nn.functional.cross_entropy(scores, rows) + torch.nn.functional.cross_entropy(scores.T, rows)) / 2
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_false_negative_has_no_gradient() -> None:
    queries, passages = unit(3, 8), unit(4, 8)[:3].requires_grad_()
    guide_queries, guide_passages = torch.eye(3), torch.eye(3)
    guide_passages[1] = torch.tensor([0.99, 0.1, 0.0])
    loss = guided_softmax_loss(queries[:1], passages, guide_queries[:1], guide_passages, scale=20, margin=0.95)
    loss.backward()
    assert passages.grad is not None
    assert passages.grad[1].abs().sum() == 0
    assert passages.grad[2].abs().sum() > 0


def test_mined_negatives_raise_the_loss_and_are_no_target_of_the_way_back() -> None:
    queries, passages = unit(4, 8), unit(6, 8)
    guide = torch.eye(6)
    alone = guided_softmax_loss(queries, passages[:4], guide[:4], guide[:4], scale=20, margin=0.95)
    more = guided_softmax_loss(queries, passages, guide[:4], guide, scale=20, margin=0.95)
    assert more > alone
