"""What validation chooses: headings before the text, the exponent of the whitening, the share of the tuned weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.embedding.base_model import BaseModelFiles
from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import Encoder
from acme_rag_pipeline.pairs.heading_queries import HEADING_METHODS
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.store.passages import PassagePrefix
from acme_rag_pipeline.training.checkpoint import Curve
from acme_rag_pipeline.training.expansion_distillation import STRONG_BASE, draw_to_queries
from acme_rag_pipeline.training.finetune import interpolate, weights_of
from acme_rag_pipeline.training.loop import TrainingBrokeDown
from acme_rag_pipeline.training.rows import KeptPair, TrainingRows
from acme_rag_pipeline.training.validation import Validation

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

# How far from the base to the tuned weights, where nobody chose; and on past them, where questions that are unlike those of
# the training choose and the base is not strong already (docs/experiments/training.md).
SHARES = (0.5, 0.75, 1.0)
FURTHER_SHARES = (1.25, 1.5)
# Headings before the text must help by this much on validation: they cost tokens, a renamed section costs new vectors, and
# who wrote validation's questions has read the headings (docs/experiments/training.md).
PREFIX_GAIN = 0.03
# Exponents of the soft whitening that validation chooses from. It must help by about what a hundred questions can tell; with
# fewer than half of those it is the one that helped on eight of nine collections (docs/experiments/training.md).
WHITENINGS = (0.0, 0.1, 0.2)
WHITENING_GAIN = 0.02
WHITENING_QUESTIONS = 50
WHITENING_UNSEEN = 0.1
# Passages that somebody asked about gained .1 on the shipped documents (docs/experiments/training.md); what fifty to a
# hundred headings of others lose or gain by chance is not to decide about that.
DRAWN_MAY_LOSE = 0.02
# Share of the tuned weights, exponent of the whitening.
Choice = tuple[float, float]
UNCHANGED: Choice = (0.0, 0.0)
logger = logging.getLogger(__name__)


class Choices:
    """The choices of one training run, each by nDCG@10 on questions that are never trained on."""

    def __init__(
        self,
        training: TrainingSettings,
        base: BaseModelFiles,
        base_encoder: Encoder,
        cache: EmbeddingCache,
        validation: Validation,
    ) -> None:
        self.training = training
        self.base = base
        self.base_encoder = base_encoder
        self.cache = cache
        self.validation = validation
        self.query_only = training.strategy == "query_only"

    def prefix(self) -> PassagePrefix:
        """How passages are rendered: with headings where these help the base by `PREFIX_GAIN`, by questions of who saw none."""
        chosen = self.training.passage_prefix
        if self.query_only:
            # The passages keep the vectors that the base's index holds.
            return BASE_PREFIX
        if chosen != "auto":
            return chosen
        plain, headed = (
            self.validation.score_cached(self.base_encoder, prefix, self.cache, _without_headings)
            for prefix in ("none", "heading_path")
        )
        if plain is None or headed is None:
            return "none"
        logger.info(
            "validation nDCG@10 of the base: %.4f without headings, %.4f with headings before the text", plain, headed
        )
        return "heading_path" if headed - plain >= PREFIX_GAIN else "none"

    def whitening(self, prefix: PassagePrefix) -> float:
        """The exponent of the soft whitening, by the base's vectors and questions that are asked in other words."""
        chosen = self.training.whitening
        if chosen is not None:
            return chosen
        if sum(map(_of_other_words, self.validation.pairs)) < WHITENING_QUESTIONS:
            return WHITENING_UNSEEN
        scores = {
            exponent: self.validation.score_cached(
                self.base_encoder, prefix, self.cache, _of_other_words, exponent, query_side_only=self.query_only
            )
            or 0.0
            for exponent in WHITENINGS
        }
        tried = ", ".join(f"{exponent:g}: {score:.4f}" for exponent, score in scores.items())
        logger.info("validation nDCG@10 of the base by exponent of the whitening: %s", tried)
        return whitening_that_helps(scores)

    def share(
        self,
        model: SentenceTransformer,
        prefix: PassagePrefix,
        whitening: float,
        curve: Curve,
    ) -> tuple[Choice, list[dict[str, float]]]:
        """Set the model to the share of the tuned weights that validation likes best; the base itself always competes.

        Questions that are unlike those of the training choose the share, where there are enough; all of validation's say
        whether it beats the base (those that choose, where there are too few others). With too few of both the largest
        share that somebody asked for is taken, else the tuned weights as they are.
        """
        base, tuned = base_weights(self.base.folder), weights_of(model)
        if not self.validation.usable:
            taken = max(self.training.interpolation or (1.0,))
            interpolate(model, base, tuned, taken)
            return (taken, whitening), []
        choosing = "unlike_training" if self.validation.unlike_training else "ndcg@10"
        of_base = self.validation.score_cached(self.base_encoder, prefix, self.cache)
        goes_on = choosing == "unlike_training" and (of_base or 0.0) < STRONG_BASE
        shares = self.training.interpolation or (SHARES + FURTHER_SHARES if goes_on else SHARES)
        tried: list[dict[str, float]] = []

        def note(share: float, exponent: float, ndcg: float | None, unlike: float | None = None) -> None:
            tried.append({"share": share, "whitening": exponent, "ndcg@10": ndcg or 0.0})
            said = f"share {share:.2f} of the tuned weights: validation nDCG@10 {tried[-1]['ndcg@10']:.4f}"
            if unlike is not None:
                tried[-1]["unlike_training"] = unlike
                said += f", by people's questions and headings {unlike:.4f}"
            logger.info("%s", said)

        note(0.0, 0.0, of_base)
        for share in sorted({0.0, *shares} if whitening else shares):
            if share == 1.0 and curve.best_epoch is not None and choosing == "ndcg@10":
                # The best epoch ended with exactly these weights.
                note(share, whitening, curve.ndcg_of_best())
                continue
            interpolate(model, base, tuned, share)
            note(share, whitening, *self._scores(model, prefix))
        further = max(
            (row for row in tried if row["share"] > 0), key=lambda row: (row[choosing], row["share"]), default=None
        )
        best = max(
            (row for row in tried if row["share"] == 0 or row is further),
            key=lambda row: (row["ndcg@10"], row["share"]),
        )
        interpolate(model, base, tuned, best["share"])
        return (best["share"], best["whitening"]), tried

    def score(self, model: SentenceTransformer, prefix: PassagePrefix) -> float | None:
        """Validation nDCG@10 of the model in training; a query tower searches the base's vectors."""
        return self._scores(model, prefix)[0]

    def drawn_to_queries(
        self,
        model: SentenceTransformer,
        rows: TrainingRows,
        prefix: PassagePrefix,
        checkpoint: Path,
        tried: Sequence[Mapping[str, float]],
        share: float,
    ) -> dict[str, float | bool]:
        """Teach the tuned model what was asked about its passages, unless validation objects.

        It asks about passages that have no query in training and may fall behind the others. It objects where people's
        questions and authors' headings lose more than `DRAWN_MAY_LOSE`, and where by all questions the base is better.

        Args:
            model: becomes what is chosen.
            rows: that it was tuned on.
            prefix: how passages are rendered.
            checkpoint: file for the state of an unfinished run.
            tried: what `share` found; empty for a refit, which does as its twin did, and without enough validation.
            share: of the tuned weights that the model has.

        Returns:
            `seconds`, `kept`; where there are questions that judge, nDCG@10 of all of validation (`validation_before`,
            `validation_after`) and by people's questions and headings (`before`, `after`); `broke_down` where the loss was
            no number any more.
        """
        plain = weights_of(model)
        try:
            found: dict[str, float | bool] = {
                "seconds": draw_to_queries(model, rows, self.training, checkpoint).seconds
            }
        except TrainingBrokeDown as error:
            logger.warning("drawn to the queries of its passages: %s. The model of before is kept", error)
            model.load_state_dict(plain)
            return {"seconds": 0.0, "kept": False, "broke_down": True}
        row = next((row for row in tried if row["share"] == share), None)
        if row is None:
            return found | {"kept": True}
        ndcg, unlike = self._scores(model, prefix)
        found |= {"validation_before": row["ndcg@10"], "validation_after": ndcg or 0.0}
        kept = found["validation_after"] >= max((r["ndcg@10"] for r in tried if r["share"] == 0), default=0.0)
        said = (
            f"drawn to the queries of its passages: validation nDCG@10 {ndcg or 0.0:.4f}, before {row['ndcg@10']:.4f}"
        )
        if unlike is not None:
            found |= {"before": row["unlike_training"], "after": unlike}
            kept = kept and row["unlike_training"] - unlike <= DRAWN_MAY_LOSE
            said += f"; by people's questions and headings {unlike:.4f}, before {row['unlike_training']:.4f}"
        logger.info("%s", said)
        if not kept:
            model.load_state_dict(plain)
        return found | {"kept": kept}

    def _scores(self, model: SentenceTransformer, prefix: PassagePrefix) -> tuple[float | None, float | None]:
        held = None
        if self.query_only and self.validation.usable:
            rendered = [passage.rendered(prefix) for passage in self.validation.passages]
            held, _ = self.cache.passages(self.base_encoder, rendered)
        encoder = Encoder(Path(), "in training", self.training.precision, model)
        to_encode = [] if held is not None else [passage.rendered(prefix) for passage in self.validation.passages]
        with encoder.compiled(to_encode):
            return self.validation.scores(encoder, prefix, held)


def whitening_that_helps(scores: dict[float, float]) -> float:
    """The exponent to train with, by the base's validation nDCG@10 with each of `WHITENINGS`; of equal ones the smallest."""
    best = max(scores, key=lambda exponent: (scores[exponent], -exponent))
    return best if scores[best] - scores[0.0] >= WHITENING_GAIN else 0.0


def _of_other_words(pair: KeptPair) -> bool:
    """Whether a question is asked in words that are not taken from its passage's text.

    Whitening sharpens what words say, so questions made of the passage's own words always vote for more of it.
    """
    return not pair.is_template or pair.method in HEADING_METHODS


def _without_headings(pair: KeptPair) -> bool:
    """Whether who asked had no headings at hand: those made of them always vote for showing them to the encoder.

    So do an LLM's, whose prompt holds title and headings, while people do not know them (docs/experiments/training.md).
    """
    return pair.origin != "openai" and pair.method not in HEADING_METHODS


def base_weights(folder: Path) -> dict[str, Any]:
    """All weights of a saved model, on the CPU."""
    from acme_rag_pipeline.embedding.encoder import load_model

    return weights_of(load_model(folder, "cpu"))
