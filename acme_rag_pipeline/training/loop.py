"""The loop of a training run: steps, validation after each epoch, and a checkpoint from which a killed run goes on."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.training.checkpoint import Best, Curve, resume, save_checkpoint, trained_weights
from acme_rag_pipeline.training.memory import NotEnoughMemory
from acme_rag_pipeline.training.progress import LOG_SECONDS
from acme_rag_pipeline.training.start_model import trained_share

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# Between two checkpoints inside an epoch; longer where the last one took more than a twentieth of it.
CHECKPOINT_SECONDS = 60.0
TIMES_A_CHECKPOINT = 20.0
# Epochs without a better validation nDCG@10 after which training ends.
PATIENCE = 2
logger = logging.getLogger(__name__)


class TrainingBrokeDown(SettingsError):
    """A loss or a gradient that is no number any more; it reached no weight."""


class Trainable(Protocol):
    """A model with what it is trained for."""

    model: SentenceTransformer

    def batches(self, seed: int) -> list[list[int]]:
        """One epoch as lists of query numbers."""

    def backward(self, batch: list[int]) -> torch.Tensor:
        """Add the gradient of a batch to the weights; the loss is returned without one."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: planned ones; the learning rate falls to 0 over them.
        rate: peak learning rate.
        warmup_share: of the steps.
        seed: of the order.
        end_after: epoch to end with, although more are planned; None: the last.
    """

    epochs: int
    rate: float
    warmup_share: float
    seed: int
    end_after: int | None = None


def train(
    objective: Trainable,
    schedule: Schedule,
    checkpoint: Path,
    validate: Callable[[SentenceTransformer], float | None],
) -> Curve:
    """Train in place; the model ends in eval mode, with the weights of its best epoch where there is validation.

    Args:
        objective: model and loss.
        schedule: epochs and learning rate.
        checkpoint: file for the state of an unfinished run; removed by the caller that keeps the result.
        validate: nDCG@10 of the model on the validation queries, or None without any; called after every epoch.

    Raises:
        TrainingBrokeDown: a loss that is no number any more, before it reaches a weight.
        NotEnoughMemory: a batch does not go into the memory of the device.
    """
    import torch

    model = objective.model
    plan = [objective.batches(schedule.seed + epoch) for epoch in range(schedule.epochs)]
    # The learning rate falls over all that is planned, also where the training ends before.
    steps = sum(map(len, plan))
    to_do = sum(map(len, plan[: schedule.end_after]))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=schedule.rate, weight_decay=0.01
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _linear_with_warmup(steps, schedule.warmup_share))
    curve, done, best = Curve(), 0, None
    if checkpoint.exists():
        done, curve, best = resume(checkpoint, model, optimizer, scheduler)
        logger.info("resumed after %d of %d steps", done, to_do)
    curve.trained = trained_share(model)
    spent_before = curve.earlier_seconds = curve.seconds
    started = last_log = last_save = time.monotonic()
    pairs_seen, step, validating, saving = 0, 0, 0.0, 0.0
    for epoch, batches in enumerate(plan[: schedule.end_after]):
        if best is not None and epoch - best.epoch >= PATIENCE:
            logger.info("validation has not improved since epoch %d: training ends", best.epoch)
            break
        model.train()
        for batch in batches:
            step += 1
            if step <= done:
                continue
            try:
                loss = objective.backward(batch)
            except torch.OutOfMemoryError as error:
                raise NotEnoughMemory(
                    f"training ran out of memory on {model.device}: set ACME_RAG_TRAINING__GRADIENT_CACHE=true if it is not, "
                    "or a smaller ACME_RAG_TRAINING__BATCH_SIZE, or train on the CPU with CUDA_VISIBLE_DEVICES= in the environment"
                ) from error
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            value = float(loss)
            if not (math.isfinite(value) and math.isfinite(float(norm))):
                raise TrainingBrokeDown(
                    f"training broke down at step {step} of {to_do}: the loss is {value:g}, its gradient {float(norm):g}. "
                    "Lower ACME_RAG_TRAINING__LEARNING_RATE or ACME_RAG_TRAINING__SCALE; no model was put in place"
                )
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            pairs_seen += len(batch)
            now = time.monotonic()
            curve.steps.append({"step": step, "epoch": step / steps * schedule.epochs, "loss": value})
            if now - last_log > LOG_SECONDS:
                last_log = now
                training = now - started - validating
                rate, left = pairs_seen / training, (to_do - step) * training / (step - done)
                logger.info("step %d of %d, loss %.3f, %.1f pairs/s, about %.0f s left", step, to_do, value, rate, left)
            if now - last_save > max(CHECKPOINT_SECONDS, TIMES_A_CHECKPOINT * saving):
                curve.seconds = spent_before + now - started
                save_checkpoint(checkpoint, step, model, optimizer, scheduler, curve, best)
                last_save = time.monotonic()
                saving = last_save - now
        # A run that was killed while it validated has trained the epoch and not judged it.
        judged = {row["epoch"] for row in curve.epochs}
        if step > done or (step == done and epoch + 1 not in judged):
            model.eval()
            before = time.monotonic()
            ndcg = validate(model)
            now = time.monotonic()
            validating += now - before
            if ndcg is not None:
                curve.epochs.append({"epoch": epoch + 1, "ndcg@10": ndcg})
                logger.info("epoch %d of %d: validation nDCG@10 %.4f", epoch + 1, schedule.epochs, ndcg)
                if best is None or ndcg > best.ndcg:
                    best = Best(epoch + 1, ndcg, trained_weights(model))
            curve.seconds = spent_before + now - started
            save_checkpoint(checkpoint, step, model, optimizer, scheduler, curve, best)
            last_save = time.monotonic()
            saving = last_save - now
    model.eval()
    if best is not None:
        best.put_into(model)
        curve.best_epoch = best.epoch
    seconds = time.monotonic() - started
    curve.seconds = spent_before + seconds
    curve.pairs_per_second = pairs_seen / (seconds - validating) if pairs_seen else curve.pairs_per_second
    return curve


def _linear_with_warmup(steps: int, warmup_share: float) -> Callable[[int], float]:
    warmup = max(1, math.ceil(steps * warmup_share))
    return lambda step: min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))
