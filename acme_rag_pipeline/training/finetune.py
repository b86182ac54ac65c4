"""Fine-tuning a sentence-transformers model on (query, passage) pairs: its layers, the query tower, or LoRA.

An own loop instead of `SentenceTransformerTrainer`: a passage is encoded once for all its queries in a batch (with three
questions a passage that is most of the work), texts are tokenised once and go through frozen layers once, the guide is asked
once at the start, batches follow the near-duplicate groups, and a run killed at any moment goes on from its checkpoint.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from acme_rag_pipeline.embedding.encoder import autocast
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import SettingsError
from acme_rag_pipeline.training import lora
from acme_rag_pipeline.training.batches import epoch_batches
from acme_rag_pipeline.training.checkpoint import Best, Curve, resume, save_checkpoint, trained_weights
from acme_rag_pipeline.training.frozen_layers import MOST_BYTES, frozen_layers
from acme_rag_pipeline.training.losses import distillation_loss, guided_softmax_loss
from acme_rag_pipeline.training.start_model import opened, trained_share
from acme_rag_pipeline.training.teacher import SharedWords, teacher_logits
from acme_rag_pipeline.training.tokens import Tokens, forward, tokenised
from acme_rag_pipeline.training.weights import query_weights
from acme_rag_pipeline.training.whitening import add_whitening, soft_whitening, whitened

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


@dataclass(frozen=True)
class TrainingRows:
    """What to train on.

    Attributes:
        queries: query texts.
        positives: for each query the number of its passage.
        passages: rendered passages, each once: the positives first, then mined negatives or the rest of the collection.
        groups: near-duplicate group of each passage.
        negatives: for each query the numbers of its hard negatives, possibly none.
        templates: of each query, whether the embedded generator wrote it; None: of none.
        guide_texts: the passages as the guide reads them; None: as they are rendered.
        frozen_passages: the base's unit vectors that the query tower is trained against, shape (passages, dimension);
            None where the passages are encoded by the model in training.
        unasked: rendered passages that no query belongs to; only the whitening reads them.
        answers: of each query the passages that its wording belongs to, empty if it is its own alone; None: all empty.
    """

    queries: Sequence[str]
    positives: Sequence[int]
    passages: Sequence[str]
    groups: Sequence[str]
    negatives: Sequence[Sequence[int]]
    templates: Sequence[bool] | None = None
    guide_texts: Sequence[str] | None = None
    frozen_passages: np.ndarray | None = None
    unasked: Sequence[str] = ()
    answers: Sequence[Collection[int]] | None = None

    @property
    def mostly_templates(self) -> bool:
        """Whether the embedded generator wrote more than half of the queries."""
        return sum(self.templates or ()) > len(self.queries) / 2


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
    work = _Work(model, rows, settings)
    trained = len(set(rows.positives))
    epochs = epochs_for(trained, settings)
    logger.info(
        "training on %d queries of %d passages, %d epoch(s), on %s, strategy %s, %s",
        len(rows.queries), trained, epochs, model.device, settings.strategy, trained_share(model),
    )  # fmt: skip
    plan = [work.batches(settings.seed + epoch) for epoch in range(epochs)]
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
            loss = work.loss(batch)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            value = float(loss.detach())
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


class _Work:
    """Tokens, guide, teacher and loss of one training run."""

    def __init__(self, model: SentenceTransformer, rows: TrainingRows, settings: TrainingSettings) -> None:
        import torch

        self.model, self.rows, self.settings = model, rows, settings
        self.lower = frozen_layers(model, settings, mostly_templates=rows.mostly_templates)
        self.queries = tokenised(model, rows.queries, of_queries=True)
        self.passages = tokenised(model, rows.passages) if rows.frozen_passages is None else []
        self.frozen = None if rows.frozen_passages is None else torch.from_numpy(rows.frozen_passages).to(model.device)
        tokens = sum(map(len, self.queries)) + sum(map(len, self.passages))
        self._remembers = self.lower is not None and self.lower.output_bytes(tokens) <= MOST_BYTES
        # The guide is the start model, asked here and not taken from the embedding cache: bf16 products differ in their
        # last bits with the shape of a batch, and which batches filled a cache is history. A mask must not depend on it.
        logger.info("the guide reads %d queries and %d passages", len(rows.queries), len(rows.passages))
        self.guide_queries = self._read(self.queries)
        held = self.frozen if self.frozen is not None else self._read(self.passages)
        plain = self.frozen is not None or rows.guide_texts is None
        self.guide_passages = held if plain else self._read(tokenised(model, rows.guide_texts or ()))
        if settings.whitening:
            self._whiten(held, settings.whitening)
        counts = query_weights(rows.templates or [False] * len(rows.queries), settings.written_share)
        self.weights = None if counts is None else torch.from_numpy(counts).to(model.device)
        self.words = SharedWords(rows.queries, rows.guide_texts or rows.passages) if settings.distilled_share else None
        self.queries_of: dict[int, list[int]] = {}
        for query, passage in enumerate(rows.positives):
            self.queries_of.setdefault(passage, []).append(query)
        numbers: dict[str, int] = {}
        self.group_numbers = torch.tensor([numbers.setdefault(group, len(numbers)) for group in rows.groups])

    def _whiten(self, held: torch.Tensor, exponent: float) -> None:
        """Put a soft whitening of the passages as they are held behind the model and in the guide's vectors."""
        import torch

        if self.rows.unasked:
            logger.info("the whitening reads %d more passages", len(self.rows.unasked))
            held = torch.cat([held, self._read(tokenised(self.model, self.rows.unasked))])
        matrix = soft_whitening(held.cpu().numpy(), exponent)
        if self.frozen is not None:
            # The passages keep their vectors, so the query's side does the work of both.
            matrix = matrix @ matrix
        add_whitening(self.model, matrix)
        self.guide_queries = torch.from_numpy(whitened(self.guide_queries.cpu().numpy(), matrix)).to(self.model.device)
        if self.frozen is None:
            passages = whitened(self.guide_passages.cpu().numpy(), matrix)
            self.guide_passages = torch.from_numpy(passages).to(self.model.device)

    def _read(self, texts: list[Tokens]) -> torch.Tensor:
        """The start model's unit vectors, shape (texts, dimension); the texts remember what the frozen layers gave."""
        import torch

        # Not inference_mode: a step computes gradients from what is remembered here.
        with torch.no_grad(), autocast(self.model.device, self.settings.precision):
            vectors = forward(self.model, texts, self.lower, remember=self._remembers)
        return torch.nn.functional.normalize(vectors.float(), dim=1)

    def batches(self, seed: int) -> list[list[int]]:
        """One epoch as lists of query numbers; all queries of a passage stand together."""
        passages = sorted(self.queries_of)
        if self.frozen is not None:
            lengths = [max(len(self.queries[q]) for q in self.queries_of[p]) for p in passages]
        else:
            lengths = [len(self.passages[p]) for p in passages]
        groups = [self.rows.groups[p] for p in passages]
        plan = epoch_batches(groups, lengths, self.settings.batch_size, seed)
        return [[query for p in batch for query in self.queries_of[passages[p]]] for batch in plan]

    def _answers(self, batch: list[int], own: list[int], shown: list[int]) -> torch.Tensor:
        """Whether a passage is an answer: one that nearly repeats the query's own, or that of another query of its wording."""
        import torch

        same = self.group_numbers[own][:, None] == self.group_numbers[shown][None, :]
        if self.rows.answers is not None:
            wanted = [self.rows.answers[query] for query in batch]
            same |= torch.tensor([[number in answers for number in shown] for answers in wanted])
        return same

    def loss(self, batch: list[int]) -> torch.Tensor:
        """The loss of some queries against the passages of the batch, or against all frozen ones."""
        import torch

        own = [self.rows.positives[query] for query in batch]
        with autocast(self.model.device, self.settings.precision):
            queries = forward(self.model, [self.queries[query] for query in batch], self.lower)
            if self.frozen is not None:
                shown = list(range(len(self.frozen)))
                passages = self.frozen
            else:
                shown = list(dict.fromkeys(own + [n for query in batch for n in self.rows.negatives[query]]))
                passages = forward(self.model, [self.passages[number] for number in shown], self.lower)
        column = {number: i for i, number in enumerate(shown)}
        positive = torch.tensor([column[number] for number in own], device=self.model.device)
        guide = self.guide_queries[batch] @ self.guide_passages[shown].T
        same = self._answers(batch, own, shown).to(guide.device)
        scores = queries.float() @ passages.float().T * self.settings.scale
        weights = None if self.weights is None else self.weights[batch]
        loss = guided_softmax_loss(
            scores,
            guide.masked_fill(same, float("inf")).scatter(1, positive[:, None], guide.gather(1, positive[:, None])),
            positive,
            margin=self.settings.guide_margin,
            symmetric=self.frozen is None,
            weights=weights,
        )
        if self.words is None:
            return loss
        words = torch.from_numpy(self.words.cosines(batch, shown)).to(guide.device)
        taught = distillation_loss(scores, teacher_logits(guide, words, same), weights)
        return torch.lerp(loss, taught, self.settings.distilled_share)


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
