"""Document expansion learnt by the model itself: it puts a passage where the queries that were written for it would move it.

In an index a passage's vector can be moved towards its queries (`retrieval/expansion.py`), which needs the queries and a second
vector. Here the model is its own teacher (self-distillation; doc2query, Nogueira et al. 2019, arXiv:1904.08375, is the
teacher's knowledge): what it gives for a passage's text is drawn to the moved vector, what it gives for a query stays where it
is. Every passage has a target of its own, so a batch needs no negatives and can be small.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from acme_rag_pipeline.embedding.encoder import autocast
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.store.passages import LivePassage
from acme_rag_pipeline.training.batches import query_batches
from acme_rag_pipeline.training.checkpoint import Curve
from acme_rag_pipeline.training.frozen_layers import frozen_layers
from acme_rag_pipeline.training.gradient_cache import batch_needs_cache, cached_backward
from acme_rag_pipeline.training.loop import Schedule, train
from acme_rag_pipeline.training.rows import KeptPair, TrainingRows, mostly_templates
from acme_rag_pipeline.training.tokens import forward, tokenised, unit_vectors

if TYPE_CHECKING:
    import torch
    from sentence_transformers import SentenceTransformer

# nDCG@10 of the base on validation from which nothing is drawn, nor taken past the tuned weights: collections with .537 and
# .705 gained by it, one with .848 lost (docs/experiments/training.md).
STRONG_BASE = 0.8
# Of the live passages. Who asks about a few only hides the others (docs/evaluation.md).
ASKED_SHARE = 0.5
# Those of the measurements in docs/experiments/training.md; few other values were tried. From about 1,700 passages on the
# epochs are as many as show so many passages: six took twice as long as the pairs and all choices with 1,585.
EPOCHS = 6
FEWEST_EPOCHS = 2
SHOWN_PASSAGES = 10_000
LEARNING_RATE = 2e-4
PASSAGES_A_BATCH = 8
LOSS_SCALE = 20.0
logger = logging.getLogger(__name__)


def with_expansion(
    settings: TrainingSettings,
    pairs: Sequence[KeptPair],
    passages: Sequence[LivePassage],
    base_ndcg: float | None = None,
) -> TrainingSettings:
    """The settings with `expansion_epochs` decided: none where there is nothing to learn, templates repeat their passage.

    Args:
        settings: None where the default counts, `EPOCHS` or less if people or an LLM asked about `ASKED_SHARE` of the
            passages and the base is weaker than `STRONG_BASE`.
        pairs: all that passed the filters.
        passages: all live ones.
        base_ndcg: nDCG@10 of the base on validation; None where nobody judged it.
    """
    epochs = settings.expansion_epochs
    if settings.strategy != "full" or mostly_templates(pairs):
        epochs = 0
    elif epochs is None:
        asked = {pair.passage.chunk_id for pair in pairs if not pair.is_template}
        affordable = max(FEWEST_EPOCHS, min(EPOCHS, round(SHOWN_PASSAGES / max(1, len(asked)))))
        weak = base_ndcg is None or base_ndcg < STRONG_BASE
        epochs = affordable if weak and len(asked) >= ASKED_SHARE * len(passages) else 0
    return settings.model_copy(update={"expansion_epochs": epochs})


def draw_to_queries(
    model: SentenceTransformer, rows: TrainingRows, settings: TrainingSettings, checkpoint: Path
) -> Curve:
    """Train a tuned model further, in place, until it holds what was asked about its passages.

    The lower half of a BERT-like model's layers stays as it is, unless the settings say how many.

    Args:
        model: as its pairs tuned it; word embeddings stay.
        rows: what it was tuned on. Passages that only the embedded generator asked about have no target.
        settings: `with_expansion`: epochs, seed, precision.
        checkpoint: file for the state of an unfinished run; removed by the caller that keeps the result.
    """
    objective = ExpansionDistillation(model, rows, settings)
    logger.info(
        "drawing %d passages to the queries that were written for them, %d epoch(s)",
        len(objective.queries_of), settings.expansion_epochs,
    )  # fmt: skip
    schedule = Schedule(settings.expansion_epochs or 0, LEARNING_RATE, settings.warmup_share, settings.seed)
    return train(objective, schedule, checkpoint, lambda _: None)


def moved_vectors(passages: np.ndarray, queries: np.ndarray, positives: Sequence[int]) -> dict[int, np.ndarray]:
    """Where their queries move the passages: own vector, plus the mean of its queries, less the mean of all queries.

    Args:
        passages: unit vectors, shape (passages, dimension).
        queries: unit vectors, shape (queries, dimension).
        positives: for each query the number of its passage.

    Returns:
        A unit vector for each passage that has a query, by its number.
    """
    if not len(queries):
        return {}
    common = queries.mean(axis=0)
    asked: dict[int, list[int]] = {}
    for query, passage in enumerate(positives):
        asked.setdefault(passage, []).append(query)
    moved = {passage: passages[passage] + queries[own].mean(axis=0) - common for passage, own in asked.items()}
    return {passage: vector / max(float(np.linalg.norm(vector)), 1e-12) for passage, vector in moved.items()}


class ExpansionDistillation:
    """Passages drawn to the vectors that their queries move them to, queries kept where they are.

    Args:
        model: already tuned; its vectors of today make the targets.
        rows: queries and passages.
        settings: precision, and how many layers stay.
    """

    def __init__(self, model: SentenceTransformer, rows: TrainingRows, settings: TrainingSettings) -> None:
        import torch

        self.model, self.settings = model, settings
        self.lower = frozen_layers(model, settings, mostly_templates=True)
        written = [q for q in range(len(rows.queries)) if rows.templates is None or not rows.templates[q]]
        positives = [rows.positives[query] for query in written]
        asked = sorted(set(positives))
        self.queries = dict(
            zip(written, tokenised(model, [rows.queries[q] for q in written], of_queries=True), strict=True)
        )
        self.passages = dict(zip(asked, tokenised(model, [rows.passages[p] for p in asked]), strict=True))
        self.passage_of = dict(zip(written, positives, strict=True))
        self.queries_of: dict[int, list[int]] = {}
        for query, passage in self.passage_of.items():
            self.queries_of.setdefault(passage, []).append(query)
        texts = [*self.queries.values(), *self.passages.values()]
        remember = self.lower is not None and self.lower.may_keep(sum(map(len, texts)))
        model.eval()
        queries, passages = (
            unit_vectors(model, list(of_kind.values()), self.lower, settings.precision, remember=remember)
            for of_kind in (self.queries, self.passages)
        )
        self.kept = dict(zip(written, queries, strict=True))
        self.cached = self._needs_cache() if settings.gradient_cache is None else settings.gradient_cache
        row = {passage: number for number, passage in enumerate(asked)}
        moved = moved_vectors(passages.cpu().numpy(), queries.cpu().numpy(), [row[passage] for passage in positives])
        self.targets = {p: torch.from_numpy(moved[row[p]]).to(model.device) for p in asked}

    def batches(self, seed: int) -> list[list[int]]:
        """One epoch as lists of query numbers; all queries of a passage stand together."""
        lengths = {passage: len(tokens) for passage, tokens in self.passages.items()}
        return query_batches(self.queries_of, None, lengths, PASSAGES_A_BATCH, seed)

    def backward(self, batch: list[int]) -> torch.Tensor:
        """Add the gradient of the mean distances to the weights: 1 - cosine of passages to targets, and of queries."""
        import torch

        shown = list(dict.fromkeys(self.passage_of[query] for query in batch))
        targets = [[self.kept[query] for query in batch], [self.targets[passage] for passage in shown]]
        texts = [[self.queries[query] for query in batch], [self.passages[passage] for passage in shown]]

        def loss_of(vectors: list[torch.Tensor]) -> torch.Tensor:
            loss = torch.zeros((), device=self.model.device)
            for found, wanted in zip(reversed(vectors), reversed(targets), strict=True):
                cosines = torch.nn.functional.cosine_similarity(found.float(), torch.stack(wanted), dim=1)
                loss = loss + LOSS_SCALE * (1 - cosines).mean()
            return loss

        if self.cached:
            return cached_backward(self.model, self.lower, self.settings.precision, texts, loss_of)
        with autocast(self.model.device, self.settings.precision):
            vectors = [forward(self.model, of_kind, self.lower) for of_kind in texts]
        loss = loss_of(vectors)
        loss.backward()
        return loss.detach()

    def _needs_cache(self) -> bool:
        """Whether the longest batch that may come would take too much memory."""
        rows = [[self.passages[p], *(self.queries[q] for q in queries)] for p, queries in self.queries_of.items()]
        rows.sort(key=lambda row: -sum(map(len, row)))
        longest = [text for row in rows[:PASSAGES_A_BATCH] for text in row]
        return batch_needs_cache(self.model, self.lower, self.settings.precision, longest)
