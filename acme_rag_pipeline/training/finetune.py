"""Fine-tuning a sentence-transformers model on (query, passage) pairs: its layers, the query tower, or LoRA.

An own loop instead of `SentenceTransformerTrainer`: a passage is encoded once for all its queries in a batch (with three
questions a passage that is most of the work), texts are tokenised once and go through frozen layers once, the guide is asked
once at the start, batches follow the near-duplicate groups, and a run killed at any moment goes on from its checkpoint.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.training import lora
from acme_rag_pipeline.training.checkpoint import Curve
from acme_rag_pipeline.training.loop import Schedule, train
from acme_rag_pipeline.training.objective import Objective
from acme_rag_pipeline.training.rows import TrainingRows
from acme_rag_pipeline.training.start_model import opened, trained_share

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

PASSAGES_SHOWN = 3600
MOST_EPOCHS = 8
logger = logging.getLogger(__name__)


def epochs_for(passages: int, settings: TrainingSettings) -> int:
    """The number of epochs: the chosen one, or enough to show about `PASSAGES_SHOWN` passages.

    A few hundred passages need several turns to move the weights at all, and an epoch over thousands is what a retrain
    costs.
    """
    return settings.epochs or min(MOST_EPOCHS, max(1, round(PASSAGES_SHOWN / max(1, passages))))


def finetune(
    start: Path,
    rows: TrainingRows,
    settings: TrainingSettings,
    checkpoint: Path,
    validate: Callable[[SentenceTransformer], float | None],
    device: str | None = None,
    end_after: int | None = None,
) -> tuple[SentenceTransformer, Curve]:
    """Train by the chosen strategy; word embeddings stay as they are.

    With validation the model ends with the weights of its best epoch by nDCG@10 (the loss may fall while retrieval
    falls), and training stops early after `PATIENCE` epochs without a better one.

    Args:
        start: directory of the start weights.
        rows: queries of at least two passages.
        settings: strategy, epochs, whitening (None: none), learning rate and so on; the seed decides the order and the
            dropout, if any.
        checkpoint: file for the state of an unfinished run; removed at the end by the caller that keeps the result.
        validate: nDCG@10 of the model on the validation queries, or None without any; called after every epoch.
        device: where to train; default CUDA where there is one, else the CPU.
        end_after: epoch to end with, for a refit by the recipe of a twin; the learning rate falls as it did there.

    Returns:
        The tuned model (in eval mode, a plain one again after LoRA) and the curve.

    Raises:
        SettingsError: strategy `lora` without the package that it needs, more frozen layers than the model has, or a loss
            that is no number any more, before it reaches a weight.
    """
    import torch

    torch.manual_seed(settings.seed)
    model = opened(start, settings, device)
    objective = Objective(model, rows, settings)
    trained = len(set(rows.positives))
    epochs = epochs_for(trained, settings)
    logger.info(
        "training on %d queries of %d passages, %d epoch(s), on %s, strategy %s, %s",
        len(rows.queries), trained, epochs, model.device, settings.strategy, trained_share(model),
    )  # fmt: skip
    curve = train(
        objective,
        Schedule(epochs, settings.rate, settings.warmup_share, settings.seed, end_after),
        checkpoint,
        validate,
    )
    if settings.strategy == "lora":
        lora.merge(model)
    return model, curve


def interpolate(
    model: SentenceTransformer, base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], share: float
) -> None:
    """Set the weights to (1 - share) x base + share x tuned.

    Below 1 that is WiSE-FT (Wortsman et al. 2022, arXiv:2109.01903), above 1 it goes on past the tuned weights, as task
    arithmetic scales a task vector (Ilharco et al. 2023, arXiv:2212.04089). A whitening, which the base does not have, stays
    whole.
    """
    import torch

    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if name in base and weight.is_floating_point():
                weight.copy_(torch.lerp(base[name].to(weight), tuned[name].to(weight), share))


def weights_of(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """A copy of all weights on the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}
