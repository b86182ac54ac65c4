"""Full fine-tuning of a sentence-transformers model on (query, passage) pairs.

An own loop instead of `SentenceTransformerTrainer`: texts are tokenised once, the guide's scores come from the
embedding cache, batches follow the near-duplicate groups, and a run killed at any moment goes on from its checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from acme_rag_pipeline.embedding.encoder import autocast, load_model
from acme_rag_pipeline.settings import TrainingSettings
from acme_rag_pipeline.training.batches import epoch_batches
from acme_rag_pipeline.training.losses import guided_softmax_loss

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

CHECKPOINT_SECONDS = 60.0
LOG_SECONDS = 10.0
PAIRS_SHOWN = 2500
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingRows:
    """The pairs to train on, row by row.

    Attributes:
        queries: query texts.
        passages: rendered positives.
        groups: near-duplicate group of each positive.
        negatives: rendered mined negatives of each row, possibly none.
        guide_queries, guide_passages: the base's unit vectors, shape (rows, dimension).
        guide_negatives: the base's vectors of the negatives, one list of vectors a row.
    """

    queries: Sequence[str]
    passages: Sequence[str]
    groups: Sequence[str]
    negatives: Sequence[Sequence[str]]
    guide_queries: np.ndarray
    guide_passages: np.ndarray
    guide_negatives: Sequence[Sequence[np.ndarray]]


def epochs_for(pairs: int, settings: TrainingSettings) -> int:
    """The number of epochs: the chosen one, or enough to show about `PAIRS_SHOWN` pairs.

    A few hundred pairs need several passes to move the weights at all; thousands of machine-written ones are better
    seen once than twice, and an epoch is what a retrain costs.
    """
    return settings.epochs or min(4, max(1, round(PAIRS_SHOWN / max(1, pairs))))


@dataclass
class Curve:
    """What training looked like: for the log, the report and the UI."""

    steps: list[dict[str, float]] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    seconds: float = 0.0
    pairs_per_second: float = 0.0


def finetune(
    start: Path,
    rows: TrainingRows,
    settings: TrainingSettings,
    checkpoint: Path,
    validate: Callable[[SentenceTransformer], float | None],
    device: str | None = None,
) -> tuple[SentenceTransformer, Curve]:
    """Train all layers above the word embeddings.

    Args:
        start: directory of the start weights.
        rows: at least two.
        settings: epochs, learning rate and so on; the seed decides the order and the dropout.
        checkpoint: file for the state of an unfinished run; removed at the end by the caller that keeps the result.
        validate: nDCG@10 of the model on the validation queries, or None without any; called after every epoch.
        device: where to train; default CUDA when there is one, else CPU.

    Returns:
        The tuned model (in eval mode) and the curve.
    """
    import torch

    torch.manual_seed(settings.seed)
    model = load_model(start, device)
    frozen = _freeze_word_embeddings(model)
    epochs = epochs_for(len(rows.queries), settings)
    logger.info("training %d pairs, %d epoch(s), on %s, %s", len(rows.queries), epochs, model.device, frozen)
    token_rows = [_tokenise(model, texts) for texts in (rows.queries, rows.passages)]
    negative_tokens = [_tokenise(model, row[: settings.train_hard_negatives]) for row in rows.negatives]
    lengths = [len(row["input_ids"]) for row in token_rows[1]]
    plan = [epoch_batches(rows.groups, lengths, settings.batch_size, settings.seed + epoch) for epoch in range(epochs)]
    steps = sum(len(batches) for batches in plan)
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=settings.learning_rate, weight_decay=0.01
    )
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, _linear_with_warmup(steps, settings.warmup_share))
    curve, done = Curve(), 0
    if checkpoint.exists():
        done, curve = _resume(checkpoint, model, optimizer, scheduler)
        logger.info("resumed after %d of %d steps", done, steps)
    guides = [torch.from_numpy(a).to(model.device) for a in (rows.guide_queries, rows.guide_passages)]
    started = last_log = last_save = time.monotonic()
    pairs_seen, step = 0, 0
    for epoch, batches in enumerate(plan):
        model.train()
        for batch in batches:
            step += 1
            if step <= done:
                continue
            loss = _batch_loss(model, batch, token_rows, negative_tokens, guides, rows.guide_negatives, settings)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
            pairs_seen += len(batch)
            now = time.monotonic()
            value = float(loss.detach())
            curve.steps.append({"step": step, "epoch": step / steps * epochs, "loss": value})
            if now - last_log > LOG_SECONDS:
                last_log = now
                rate = pairs_seen / (now - started)
                left = (steps - step) * (now - started) / (step - done)
                logger.info("step %d of %d, loss %.3f, %.1f pairs/s, about %.0f s left", step, steps, value, rate, left)
            if now - last_save > CHECKPOINT_SECONDS:
                _save_checkpoint(checkpoint, step, model, optimizer, scheduler, curve)
                last_save = time.monotonic()
        if step > done:
            model.eval()
            ndcg = validate(model)
            if ndcg is not None:
                curve.epochs.append({"epoch": epoch + 1, "ndcg@10": ndcg})
                logger.info("epoch %d of %d: validation nDCG@10 %.4f", epoch + 1, epochs, ndcg)
            _save_checkpoint(checkpoint, step, model, optimizer, scheduler, curve)
            last_save = time.monotonic()
    model.eval()
    seconds = time.monotonic() - started
    curve.seconds += seconds
    curve.pairs_per_second = pairs_seen / seconds if pairs_seen else curve.pairs_per_second
    return model, curve


def interpolate(
    model: SentenceTransformer, base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], share: float
) -> None:
    """Set the weights to (1 - share) x base + share x tuned (WiSE-FT, Wortsman et al. 2022, arXiv:2109.01903)."""
    import torch

    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if weight.is_floating_point():
                weight.copy_(torch.lerp(base[name].to(weight), tuned[name].to(weight), share))


def weights_of(model: SentenceTransformer) -> dict[str, torch.Tensor]:
    """A copy of all weights on the CPU."""
    return {name: weight.detach().cpu().clone() for name, weight in model.state_dict().items()}


def _batch_loss(
    model: SentenceTransformer,
    batch: list[int],
    token_rows: list[list[dict[str, Any]]],
    negative_tokens: list[list[dict[str, Any]]],
    guides: list[torch.Tensor],
    guide_negatives: Sequence[Sequence[np.ndarray]],
    settings: TrainingSettings,
) -> torch.Tensor:
    import torch

    used = [(i, k) for i in batch for k in range(min(len(negative_tokens[i]), settings.train_hard_negatives))]
    with autocast(model.device, settings.precision):
        queries = _forward(model, [token_rows[0][i] for i in batch])
        passages = _forward(model, [token_rows[1][i] for i in batch] + [negative_tokens[i][k] for i, k in used])
    guide_passages = guides[1][batch]
    if used:
        extra = np.stack([guide_negatives[i][k] for i, k in used])
        guide_passages = torch.cat([guide_passages, torch.from_numpy(extra).to(model.device)])
    return guided_softmax_loss(
        queries.float(),
        passages.float(),
        guides[0][batch],
        guide_passages,
        scale=settings.scale,
        margin=settings.guide_margin,
    )


def _forward(model: SentenceTransformer, rows: list[dict[str, Any]]) -> torch.Tensor:
    features = model.tokenizer.pad(rows, return_tensors="pt").to(model.device)
    return model(dict(features))["sentence_embedding"]


def _tokenise(model: SentenceTransformer, texts: Sequence[str]) -> list[dict[str, Any]]:
    if not texts:
        return []
    encoded = model.tokenizer(list(texts), truncation=True, max_length=model.max_seq_length, padding=False)
    return [{name: encoded[name][i] for name in encoded} for i in range(len(texts))]


def _freeze_word_embeddings(model: SentenceTransformer) -> str:
    from torch import nn

    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in model.parameters())
    return f"{trained / 1e6:.1f} of {everything / 1e6:.1f} million weights"


def _linear_with_warmup(steps: int, warmup_share: float) -> Callable[[int], float]:
    warmup = max(1, math.ceil(steps * warmup_share))
    return lambda step: min((step + 1) / warmup, max(0.0, (steps - step) / max(1, steps - warmup)))


def _save_checkpoint(checkpoint: Path, step: int, model: Any, optimizer: Any, scheduler: Any, curve: Curve) -> None:
    import torch

    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    temporary = checkpoint.with_suffix(".tmp")
    torch.save(
        {
            "step": step,
            "weights": {n: p.detach().cpu() for n, p in model.named_parameters() if p.requires_grad},
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "rng": torch.get_rng_state(),
            "curve": {"steps": curve.steps, "epochs": curve.epochs},
        },
        temporary,
    )
    temporary.replace(checkpoint)


def _resume(checkpoint: Path, model: Any, optimizer: Any, scheduler: Any) -> tuple[int, Curve]:
    import torch

    try:
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception as error:
        logger.warning("the checkpoint %s cannot be read (%s): training starts again", checkpoint.name, error)
        return 0, Curve()
    model.load_state_dict(saved["weights"], strict=False)
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    torch.set_rng_state(saved["rng"])
    return int(saved["step"]), Curve(saved["curve"]["steps"], saved["curve"]["epochs"])
