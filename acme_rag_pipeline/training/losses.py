"""The training loss: symmetric in-batch softmax with false negatives masked by the base model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def guided_softmax_loss(
    queries: torch.Tensor,
    passages: torch.Tensor,
    guide_queries: torch.Tensor,
    guide_passages: torch.Tensor,
    *,
    scale: float,
    margin: float,
) -> torch.Tensor:
    """Multiple-negatives ranking in both directions, without the negatives that the guide takes for positives.

    MultipleNegativesRanking (Henderson et al. 2017, arXiv:1705.00652) with the masking of GISTEmbed (Solatorio 2024,
    arXiv:2402.16829) in the positive-aware form of NV-Retriever (arXiv:2407.15831): an in-batch passage that the base
    scores above `margin` x its positive does not count as a negative. The base's vectors come from the cache, so the
    guide costs one small matrix product instead of a second forward pass.

    Args:
        queries: unit vectors of the model in training, shape (batch, dimension).
        passages: likewise; the first `batch` rows are the positives, further rows are mined negatives.
        guide_queries, guide_passages: the base model's unit vectors of the same texts.
        scale: inverse temperature.
        margin: share of the positive's guide score above which a negative is masked.

    Returns:
        The mean loss, a scalar.
    """
    import torch

    batch = queries.shape[0]
    diagonal = torch.arange(batch, device=queries.device)
    scores = queries @ passages.T * scale
    with torch.no_grad():
        guide = guide_queries @ guide_passages.T
        positive = guide[diagonal, diagonal]
        masked = guide > margin * positive[:, None]
        masked[diagonal, diagonal] = False
        masked_back = guide[:, :batch] > margin * positive[None, :]
        masked_back[diagonal, diagonal] = False
    forward = torch.nn.functional.cross_entropy(scores.masked_fill(masked, float("-inf")), diagonal)
    backward = torch.nn.functional.cross_entropy(scores[:, :batch].masked_fill(masked_back, float("-inf")).T, diagonal)
    return (forward + backward) / 2
