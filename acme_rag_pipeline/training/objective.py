"""The objective of a training run: which queries and passages stand in a batch, its loss and its gradient."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from acme_rag_pipeline.embedding.encoder import autocast
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.training.batches import query_batches
from acme_rag_pipeline.training.frozen_layers import frozen_layers
from acme_rag_pipeline.training.gradient_cache import batch_needs_cache, cached_backward
from acme_rag_pipeline.training.losses import distillation_loss, guided_softmax_loss
from acme_rag_pipeline.training.rows import TrainingRows
from acme_rag_pipeline.training.teacher import SharedWords, teacher_logits
from acme_rag_pipeline.training.tokens import Tokens, forward, tokenised, unit_vectors
from acme_rag_pipeline.training.weights import query_weights
from acme_rag_pipeline.training.whitening import add_whitening, soft_whitening, whitened

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

logger = logging.getLogger(__name__)


class Objective:
    """Batches, guide, teacher and loss of one training run.

    Args:
        model: ready to train.
        rows: what to train on.
        settings: of the loss, the batches and the precision.

    Attributes:
        cached: whether a batch's gradient is computed in parts.

    Raises:
        SettingsError: more frozen layers than the model has.
    """

    def __init__(self, model: SentenceTransformer, rows: TrainingRows, settings: TrainingSettings) -> None:
        import torch

        self.model, self.rows, self.settings = model, rows, settings
        self.lower = frozen_layers(model, settings, mostly_templates=rows.mostly_templates)
        self.queries = tokenised(model, rows.queries, of_queries=True)
        self.passages = tokenised(model, rows.passages) if rows.frozen_passages is None else []
        self.frozen = None if rows.frozen_passages is None else torch.from_numpy(rows.frozen_passages).to(model.device)
        tokens = sum(map(len, self.queries)) + sum(map(len, self.passages))
        self._remembers = self.lower is not None and self.lower.may_keep(tokens)
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
        self.cached = self._needs_cache() if settings.gradient_cache is None else settings.gradient_cache
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
        return unit_vectors(self.model, texts, self.lower, self.settings.precision, remember=self._remembers)

    def _needs_cache(self) -> bool:
        """Whether the longest batch that may come would take too much memory."""
        asked = [[self.queries[query] for query in queries] for queries in self.queries_of.values()]
        held = (
            [[] for _ in asked]
            if self.frozen is not None
            else [
                [self.passages[n] for n in {passage, *(n for query in queries for n in self.rows.negatives[query])}]
                for passage, queries in self.queries_of.items()
            ]
        )
        rows = sorted(
            (queries + passages for queries, passages in zip(asked, held, strict=True)),
            key=lambda row: -sum(map(len, row)),
        )
        longest = [text for row in rows[: self.settings.batch_size] for text in row]
        return batch_needs_cache(self.model, self.lower, self.settings.precision, longest)

    def batches(self, seed: int) -> list[list[int]]:
        """One epoch as lists of query numbers; all queries of a passage stand together."""
        if self.frozen is not None:
            lengths = {p: max(len(self.queries[q]) for q in queries) for p, queries in self.queries_of.items()}
        else:
            lengths = {p: len(self.passages[p]) for p in self.queries_of}
        # Frozen passages are all shown in every step, so those of a batch are nothing to each other.
        groups = self.rows.groups if self.frozen is None else None
        return query_batches(self.queries_of, groups, lengths, self.settings.batch_size, seed)

    def _answers(self, batch: list[int], own: list[int], column: dict[int, int]) -> torch.Tensor:
        """Whether a passage is an answer: one that nearly repeats the query's own, or that of another query of its wording."""
        same = self.group_numbers[own][:, None] == self.group_numbers[list(column)][None, :]
        if self.rows.answers is not None:
            for row, query in enumerate(batch):
                same[row, [column[number] for number in self.rows.answers[query] if number in column]] = True
        return same

    def loss(self, batch: list[int]) -> torch.Tensor:
        """The loss of some queries against the passages of the batch, or against all frozen ones."""
        shown, texts = self._texts(batch)
        with autocast(self.model.device, self.settings.precision):
            vectors = [forward(self.model, of_kind, self.lower) for of_kind in texts]
        return self._loss(batch, shown, vectors)

    def backward(self, batch: list[int]) -> torch.Tensor:
        """Add the gradient of that loss to the weights; the loss is returned without one."""
        if not self.cached:
            loss = self.loss(batch)
            loss.backward()
            return loss.detach()
        shown, texts = self._texts(batch)
        return cached_backward(
            self.model, self.lower, self.settings.precision, texts, lambda vectors: self._loss(batch, shown, vectors)
        )

    def _texts(self, batch: list[int]) -> tuple[list[int], list[list[Tokens]]]:
        """The passages of a batch, and what the model in training encodes for it: its queries, and passages that are not frozen."""
        queries = [self.queries[query] for query in batch]
        if self.frozen is not None:
            return list(range(len(self.frozen))), [queries]
        own = [self.rows.positives[query] for query in batch]
        shown = list(dict.fromkeys(own + [n for query in batch for n in self.rows.negatives[query]]))
        return shown, [queries, [self.passages[number] for number in shown]]

    def _loss(self, batch: list[int], shown: list[int], vectors: list[torch.Tensor]) -> torch.Tensor:
        import torch

        queries, passages = vectors[0], vectors[1] if self.frozen is None else self.frozen
        own = [self.rows.positives[query] for query in batch]
        column = {number: i for i, number in enumerate(shown)}
        positive = torch.tensor([column[number] for number in own], device=self.model.device)
        compared = self.guide_passages[shown] if self.frozen is None else self.guide_passages
        guide = self.guide_queries[batch] @ compared.T
        same = self._answers(batch, own, column).to(guide.device)
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
