"""Fine-tuning a sentence-transformers model on (query, passage) pairs: its layers, the query tower, or LoRA.

An own loop instead of `SentenceTransformerTrainer`: a passage is encoded once for all its queries in a batch (with three
questions a passage that is most of the work), texts are tokenised once and go through frozen layers once, the guide is asked
once at the start, batches follow the near-duplicate groups, and a run killed at any moment goes on from its checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.training import lora
from acme_rag_pipeline.training.checkpoint import Best, Curve, resume, save_checkpoint, trained_weights
from acme_rag_pipeline.training.objective import Objective
from acme_rag_pipeline.training.rows import TrainingRows
from acme_rag_pipeline.training.start_model import opened, trained_share

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

CHECKPOINT_SECONDS = 60.0
LOG_SECONDS = 10.0
PASSAGES_SHOWN = 3600
MOST_EPOCHS = 8
# Epochs without a better validation nDCG@10 after which training ends.
PATIENCE = 2
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
        device: where to train; default CUDA when there is one, else CPU.
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
    plan = [objective.batches(settings.seed + epoch) for epoch in range(epochs)]
    steps = sum(len(batches) for batches in plan)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=settings.rate, weight_decay=0.01
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _linear_with_warmup(steps, settings.warmup_share))
    curve, done, best = Curve(), 0, None
    if checkpoint.exists():
        done, curve, best = resume(checkpoint, model, optimizer, scheduler)
        logger.info("resumed after %d of %d steps", done, steps)
    curve.trained = trained_share(model)
    spent_before = curve.seconds
    started = last_log = last_save = time.monotonic()
    pairs_seen, step = 0, 0
    for epoch, batches in enumerate(plan[:end_after]):
        if best is not None and epoch - best.epoch >= PATIENCE:
            logger.info("validation has not improved since epoch %d: training ends", best.epoch)
            break
        model.train()
        for batch in batches:
            step += 1
            if step <= done:
                continue
            loss = objective.backward(batch)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            value = float(loss)
            if not (math.isfinite(value) and math.isfinite(float(norm))):
                raise SettingsError(
                    f"training broke down at step {step} of {steps}: the loss is {value:g}, its gradient {float(norm):g}. "
                    "Lower ACME_RAG_TRAINING__LEARNING_RATE or ACME_RAG_TRAINING__SCALE; no model was put in place"
                )
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            pairs_seen += len(batch)
            now = time.monotonic()
            curve.steps.append({"step": step, "epoch": step / steps * epochs, "loss": value})
            if now - last_log > LOG_SECONDS:
                last_log = now
                rate = pairs_seen / (now - started)
                left = (steps - step) * (now - started) / (step - done)
                logger.info("step %d of %d, loss %.3f, %.1f pairs/s, about %.0f s left", step, steps, value, rate, left)
            if now - last_save > CHECKPOINT_SECONDS:
                curve.seconds = spent_before + now - started
                save_checkpoint(checkpoint, step, model, optimizer, scheduler, curve, best)
                last_save = time.monotonic()
        # A run that was killed while it validated has trained the epoch and not judged it.
        judged = {row["epoch"] for row in curve.epochs}
        if step > done or (step == done and epoch + 1 not in judged):
            model.eval()
            ndcg = validate(model)
            if ndcg is not None:
                curve.epochs.append({"epoch": epoch + 1, "ndcg@10": ndcg})
                logger.info("epoch %d of %d: validation nDCG@10 %.4f", epoch + 1, epochs, ndcg)
                if best is None or ndcg > best.ndcg:
                    best = Best(epoch + 1, ndcg, trained_weights(model))
            curve.seconds = spent_before + time.monotonic() - started
            save_checkpoint(checkpoint, step, model, optimizer, scheduler, curve, best)
            last_save = time.monotonic()
    model.eval()
    if best is not None:
        best.put_into(model)
        curve.best_epoch = best.epoch
    if settings.strategy == "lora":
        lora.merge(model)
    seconds = time.monotonic() - started
    curve.seconds = spent_before + seconds
    curve.pairs_per_second = pairs_seen / seconds if pairs_seen else curve.pairs_per_second
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


def _linear_with_warmup(steps: int, warmup_share: float) -> Callable[[int], float]:
    warmup = max(1, math.ceil(steps * warmup_share))
    return lambda step: min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))
