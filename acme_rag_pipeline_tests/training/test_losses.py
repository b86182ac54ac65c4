"""The loss equals MultipleNegativesRanking where nothing is masked, and ignores what the guide takes for a positive."""

from __future__ import annotations

import pytest
import torch

from acme_rag_pipeline.training.losses import distillation_loss, guided_softmax_loss


def unit(*shape: int) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(shape[0])), dim=-1)


def loss_of(queries: torch.Tensor, passages: torch.Tensor, guide: torch.Tensor, positive: list[int]) -> torch.Tensor:
    return guided_softmax_loss(queries @ passages.T * 20, guide, torch.tensor(positive), margin=0.95)


def test_without_masks_it_is_the_symmetric_softmax() -> None:
    queries, passages = unit(5, 8), unit(6, 8)[:5]
    scores, rows = queries @ passages.T * 20, torch.arange(5)
    expected = (torch.nn.functional.cross_entropy(scores, rows) + torch.nn.functional.cross_entropy(scores.T, rows)) / 2
    assert loss_of(queries, passages, torch.eye(5), [0, 1, 2, 3, 4]).item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_false_negative_has_no_gradient() -> None:
    queries, passages = unit(3, 8), unit(4, 8)[:3].requires_grad_()
    guide = torch.tensor([[1.0, 0.99, 0.1]])
    loss_of(queries[:1], passages, guide, [0]).backward()
    assert passages.grad is not None
    assert passages.grad[1].abs().sum() == 0
    assert passages.grad[2].abs().sum() > 0


def test_mined_negatives_raise_the_loss_and_are_no_target_of_the_way_back() -> None:
    queries, passages = unit(4, 8), unit(6, 8)
    alone = loss_of(queries, passages[:4], torch.eye(6)[:4, :4], [0, 1, 2, 3])
    assert loss_of(queries, passages, torch.eye(6)[:4], [0, 1, 2, 3]) > alone


def test_queries_of_one_passage_are_not_each_others_negatives() -> None:
    passages, queries = unit(2, 8), unit(3, 8)
    guide = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    together = loss_of(queries, passages, guide, [0, 0, 1])
    scores = queries @ passages.T * 20
    forward = torch.nn.functional.cross_entropy(scores, torch.tensor([0, 0, 1]))
    back = [
        torch.logsumexp(scores[[0, 2], 0], 0) - scores[0, 0],
        torch.logsumexp(scores[[1, 2], 0], 0) - scores[1, 0],
        torch.logsumexp(scores[:, 1], 0) - scores[2, 1],
    ]
    assert together.item() == pytest.approx(((forward + sum(back) / 3) / 2).item(), rel=1e-5)


def test_a_query_of_weight_two_counts_like_two() -> None:
    queries, passages = unit(3, 8), unit(4, 8)[:3]
    scores, guide, weights = queries @ passages.T * 20, torch.eye(3), torch.tensor([2.0, 1.0, 1.0])
    single = [
        guided_softmax_loss(scores, guide, torch.arange(3), margin=0.95, weights=torch.eye(3)[i]) for i in range(3)
    ]
    weighed = guided_softmax_loss(scores, guide, torch.arange(3), margin=0.95, weights=weights)
    assert weighed.item() == pytest.approx((2 * single[0] + single[1] + single[2]).item() / 4, rel=1e-5)
    same = guided_softmax_loss(scores, guide, torch.arange(3), margin=0.95, weights=torch.full((3,), 7.0))
    assert same.item() == pytest.approx(loss_of(queries, passages, guide, [0, 1, 2]).item(), rel=1e-5)


def test_agreement_with_the_teacher_is_weighed_alike() -> None:
    scores, teacher = unit(3, 8), unit(4, 8)[:3]
    single = [distillation_loss(scores[[i]], teacher[[i]]) for i in range(3)]
    weighed = distillation_loss(scores, teacher, torch.tensor([2.0, 1.0, 1.0]))
    assert weighed.item() == pytest.approx((2 * single[0] + single[1] + single[2]).item() / 4, rel=1e-5)
    assert distillation_loss(scores, teacher).item() == pytest.approx((sum(single) / 3).item(), rel=1e-5)
