"""The training losses: in-batch softmax in both directions with masked false negatives, and agreement with a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def guided_softmax_loss(
    scores: torch.Tensor,
    guide: torch.Tensor,
    positive: torch.Tensor,
    *,
    margin: float,
    symmetric: bool = True,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiple-negatives ranking without the negatives that the guide takes for positives.

    MultipleNegativesRanking (Henderson et al. 2017, arXiv:1705.00652) with the masking of GISTEmbed (Solatorio 2024,
    arXiv:2402.16829) in the positive-aware form of NV-Retriever (arXiv:2407.15831): a passage that the base scores above
    `margin` x the query's own passage does not count as its negative. The base's vectors are computed once a run, so
    the guide costs one small matrix product a step instead of a second forward pass. Several queries may share a passage: in the
    second direction, from a passage to its query among all queries, they are not each other's negatives.

    Args:
        scores: scaled cosines of the model in training, shape (queries, passages).
        guide: cosines of the base model, same shape; -inf never masks, +inf always does.
        positive: column of each query's passage, shape (queries,).
        margin: share of the positive's guide score above which a negative is masked.
        symmetric: also ask for the query, given the passage.
        weights: how much each query counts, shape (queries,); None: all the same.

    Returns:
        The weighted mean loss, a scalar.
    """
    import torch

    rows = torch.arange(scores.shape[0], device=scores.device)
    with torch.no_grad():
        limit = margin * guide[rows, positive]
        masked = guide > limit[:, None]
        masked[rows, positive] = False
    forward = torch.nn.functional.cross_entropy(scores.masked_fill(masked, float("-inf")), positive, reduction="none")
    if not symmetric:
        return _mean(forward, weights)
    with torch.no_grad():
        masked_back = (limit[:, None] < guide[:, positive].T) | (positive[:, None] == positive[None, :])
        masked_back[rows, rows] = False
    back = scores[:, positive].T.masked_fill(masked_back, float("-inf"))
    backward = torch.nn.functional.cross_entropy(back, rows, reduction="none")
    return _mean((forward + backward) / 2, weights)


def distillation_loss(scores: torch.Tensor, teacher: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Kullback-Leibler divergence of the model's softmax from the teacher's (Hinton et al. 2015, arXiv:1503.02531).

    Args:
        scores: scaled cosines of the model in training, shape (queries, passages).
        teacher: logits, same shape.
        weights: how much each query counts, shape (queries,); None: all the same.

    Returns:
        The weighted mean over the queries, a scalar.
    """
    import torch

    of_column = torch.nn.functional.kl_div(
        torch.log_softmax(scores, dim=1), torch.log_softmax(teacher, dim=1), reduction="none", log_target=True
    )
    return _mean(of_column.sum(dim=1), weights)


def _mean(of_query: torch.Tensor, weights: torch.Tensor | None) -> torch.Tensor:
    return of_query.mean() if weights is None else (of_query * weights).sum() / weights.sum()
