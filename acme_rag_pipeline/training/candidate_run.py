"""One training run: the candidate and, where held-out units decide, its measured twin."""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acme_rag_pipeline.embedding.base_model import BaseModelFiles, functional_files, model_digest
from acme_rag_pipeline.pairs.wording import query_key
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, embedding_cache, encoder_for
from acme_rag_pipeline.setting_groups import TrainingSettings
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.fingerprints import normalised, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import LivePassage, PassagePrefix
from acme_rag_pipeline.store.warehouse import insert
from acme_rag_pipeline.training.checkpoint import Curve
from acme_rag_pipeline.training.choices import UNCHANGED, Choice, Choices, base_weights
from acme_rag_pipeline.training.expansion_distillation import STRONG_BASE, with_expansion
from acme_rag_pipeline.training.finetune import epochs_for, finetune, interpolate, weights_of
from acme_rag_pipeline.training.model_card import model_files
from acme_rag_pipeline.training.rows import (
    KeptPair,
    mined_negatives,
    mostly_templates,
    of_sides,
    searchable_passages,
    training_rows,
    unasked_passages,
)
from acme_rag_pipeline.training.validation import Validation

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer

STAGE = "fine_tuned_model"
# A twin is measured on what it never saw; what is served knows everything but the questions of validation.
TWIN_SIDES = ("train",)
REFIT_SIDES = ("train", "test")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Trained:
    """One trained model, in the store."""

    digest: str
    share: float
    whitening: float
    interpolation: list[dict[str, float]]
    curve: Curve
    epochs: int
    drawn: dict[str, float | bool] | None = None


class CandidateRun:
    """One training run: the candidate and, where held-out units decide, its measured twin."""

    def __init__(
        self,
        store: Store,
        settings: Settings,
        base: BaseModelFiles,
        passages: Sequence[LivePassage],
        pairs: Sequence[KeptPair],
        validation: Validation,
        golden_decides: bool,
        training_key: str,
        config_key: str,
    ) -> None:
        self.started = time.monotonic()
        self.store = store
        self.base = base
        self.passages = passages
        self.pairs = pairs
        self.golden_decides = golden_decides
        self.training_key = training_key
        self.config_key = config_key
        self.query_only = settings.training.strategy == "query_only"
        self.cache = embedding_cache(store)
        self.base_encoder = encoder_for(store, base.digest, settings)
        self.validation = validation
        known = self.validation.score_cached(self.base_encoder, BASE_PREFIX, self.cache)
        training = with_expansion(settings.training, pairs, passages, known)
        self.settings = settings.model_copy(update={"training": training})
        self.draws = draws_to_queries(settings, pairs, passages)
        self.strong_base = known is not None and known >= STRONG_BASE
        # Decided once: a twin of other layers than its refit's would stand for nothing.
        self.mostly_templates = mostly_templates(of_sides(pairs, REFIT_SIDES))
        self.negatives = mined_negatives(of_sides(pairs, REFIT_SIDES), training)
        self.choices = Choices(training, base, self.base_encoder, self.cache, self.validation)

    def train(self) -> dict[str, Any]:
        """Train, choose the weights on validation, put the model in place. Returns the stage's details."""
        # Models that earlier stages opened hold one another and would stay while this one needs the memory.
        gc.collect()
        prefix = self.choices.prefix()
        whitening = self.choices.whitening(prefix)
        everything = of_sides(self.pairs, REFIT_SIDES)
        train_side = of_sides(self.pairs, TWIN_SIDES)
        twin: _Trained | None = None
        if not self.golden_decides and len(train_side) < len(everything):
            twin = self._train_one("twin", TWIN_SIDES, prefix, whitening)
        served = self._train_one("served", REFIT_SIDES, prefix, whitening, twin)
        # What a candidate costs is all of it: tokens, teacher and choices on validation too, and the loops of runs that were killed.
        earlier = served.curve.earlier_seconds + (twin.curve.earlier_seconds if twin else 0)
        seconds = time.monotonic() - self.started + earlier
        details = {
            "model_digest": served.digest,
            "passage_prefix": prefix,
            "passage_digest": self._passage_digest(served.digest),
            "twin_digest": twin.digest if twin else None,
            "training_key": self.training_key,
            "config_key": self.config_key,
            "outcome": self._sentence(served, twin, seconds),
            "trained": True,
            "weights_trained": served.curve.trained,
            "pairs": len(everything),
            "hard_negatives": self.negatives,
            "validation_queries": len(self.validation.pairs),
            "unlike_training_queries": len(self.validation.unlike_training),
            "share": served.share,
            "whitening": served.whitening,
            "interpolation": served.interpolation,
            "curve": asdict((twin or served).curve),
            "seconds": round(seconds, 1),
            "pairs_per_second": round(served.curve.pairs_per_second, 2),
            "seen_sides": list(REFIT_SIDES),
            "draws": self.draws,
            "model_files": {
                digest: models.file_sizes(folder, functional_files(folder))
                for digest in filter(None, [served.digest, twin.digest if twin else None])
                if (folder := models.model_folder(self.store, digest))
            },
            "strong_base": self.strong_base,
        } | ({"drawn_to_queries": (twin or served).drawn} if (twin or served).drawn else {})
        with self.store.writer(STAGE), self.store.warehouse.write() as connection:
            rows = [
                {
                    "model_digest": served.digest,
                    "kind": "candidate",
                    "training_key": self.training_key,
                    "twin_digest": twin.digest if twin else None,
                    "passage_prefix": prefix,
                    "manifest": json.dumps(details),
                    "created_at": datetime.now(UTC),
                }
            ]
            insert(connection, "models", rows)
            # With the model and not with the stage's end: a run that ends between the two must not forget them.
            trained = [
                {
                    "training_key": self.training_key,
                    "pair_id": pair.pair_id,
                    "side": pair.passage.side,
                    "text_hash": sha256_text(normalised(pair.passage.text)),
                    "query_key": query_key(pair.query),
                    "named_negatives": sorted(pair.named_negatives),
                }
                for pair in everything
            ]
            insert(connection, "trained_pairs", trained)
        return details

    def _train_one(
        self,
        role: str,
        sides: Sequence[str],
        prefix: PassagePrefix,
        whitening: float,
        twin: _Trained | None = None,
    ) -> _Trained:
        """Train one model and put it in place.

        A refit knows every document, so validation has nothing honest to say about it: its epochs, with the learning rate that
        falls over them, its whitening, and its share of the tuned weights are those of its twin.
        """
        if twin is not None and twin.digest == self.base.digest:
            return dataclasses.replace(twin, curve=Curve())
        training = self.settings.training.model_copy(update={"whitening": whitening})
        if twin is not None:
            training = training.model_copy(update={"epochs": twin.epochs})
        pairs = of_sides(self.pairs, sides)
        rows = training_rows(
            pairs,
            prefix,
            self.base_encoder,
            self.cache,
            self.negatives,
            searchable_passages(self.passages, sides) if self.query_only else None,
            unasked_passages(self.passages, pairs, sides) if whitens_all(training) else (),
            mostly=self.mostly_templates,
        )

        def validate(model: SentenceTransformer) -> float | None:
            return self.choices.score(model, prefix) if twin is None else None

        drawing = "-then-queries" if training.expansion_epochs else ""
        checkpoint = self._checkpoint(f"{role}-{prefix}-{whitening:g}{drawing}")
        end_after = twin.curve.best_epoch if twin else None
        if twin is not None and twin.share == 0:
            # Whitened, but not tuned.
            end_after = 0
        epochs = epochs_for(len(set(rows.positives)), training)
        model, curve = finetune(self.base.folder, rows, training, checkpoint, validate, end_after=end_after)
        if twin is None:
            choice, tried = self.choices.share(model, prefix, whitening, curve)
        else:
            choice, tried = (twin.share, twin.whitening), twin.interpolation
        if choice == UNCHANGED:
            return _Trained(self.base.digest, *UNCHANGED, tried, curve, epochs)
        chosen, whitened = choice
        if twin is not None and chosen != 1:
            interpolate(model, base_weights(self.base.folder), weights_of(model), chosen)
        drawn = twin.drawn if twin else None
        if chosen and training.expansion_epochs and (twin is None or (drawn and drawn["kept"])):
            at = self._checkpoint(f"{role}-queries-{prefix}-{whitened:g}-{chosen:g}")
            drawn = self.choices.drawn_to_queries(model, rows, prefix, at, [] if twin else tried, chosen)
            curve.seconds += drawn["seconds"]
        shown = curve.best_epoch or (epochs if end_after is None else end_after) if chosen else 0
        digest = self._install(model, role, pairs, prefix, choice, tried, curve, shown, drawn)
        return _Trained(digest, *choice, tried, curve, epochs, drawn)

    def _passage_digest(self, digest: str) -> str | None:
        return self.base.digest if self.query_only and digest != self.base.digest else None

    def _checkpoint(self, run: str) -> Path:
        return checkpoint_folder(self.store) / f"{self.training_key[:16]}-{run}.pt"

    def _install(
        self,
        model: SentenceTransformer,
        role: str,
        pairs: Sequence[KeptPair],
        prefix: PassagePrefix,
        choice: Choice,
        tried: list[dict[str, float]],
        curve: Curve,
        epochs: int,
        drawn: dict[str, float | bool] | None,
    ) -> str:
        saved = self.store.work / f"saved-{self.training_key[:16]}-{role}"
        shutil.rmtree(saved, ignore_errors=True)
        model.save_pretrained(str(saved), create_model_card=False, safe_serialization=True)
        digest = model_digest(saved)
        about = {
            "model_digest": digest,
            "kind": role,
            "base_model": self.base.name,
            "base_digest": self.base.digest,
            "licence": self.base.licence,
            "training_key": self.training_key,
            "settings": self.settings.training.model_dump(mode="json"),
            "learning_rate": self.settings.training.rate,
            "hard_negatives": self.negatives,
            "trained": curve.trained,
            "passage_digest": self._passage_digest(digest),
            "passage_prefix": prefix,
            "pairs": len(pairs),
            "passages": len({pair.passage.chunk_id for pair in pairs}),
            "origins": dict(Counter(pair.origin for pair in pairs).most_common()),
            "share": choice[0],
            "whitening": choice[1],
            "interpolation": tried,
            "epochs_trained": epochs,
            "epochs": curve.epochs,
        } | ({"drawn_to_queries": drawn} if drawn else {})
        extra = model_files(about, self.base.folder)
        models.install(self.store, digest, saved, functional_files(saved), extra)
        shutil.rmtree(saved, ignore_errors=True)
        return digest

    def _sentence(self, served: _Trained, twin: _Trained | None, seconds: float) -> str:
        if served.digest == self.base.digest:
            return "validation prefers the base's own weights: the candidate is the base"
        if served.share == 0:
            return "validation prefers the base's own weights, behind a whitening: the candidate is not tuned otherwise"
        how = f"trained in {seconds:.0f} s"
        return f"{how}, with a twin that never saw the test units" if twin else how


def whitens_all(training: TrainingSettings) -> bool:
    """Whether a whitening of other passages than those of the pairs may be wanted; a query tower knows all of them."""
    return training.strategy != "query_only" and training.whitening != 0


def draws_to_queries(settings: Settings, pairs: Sequence[KeptPair], passages: Sequence[LivePassage]) -> bool:
    """Whether passages are drawn to their queries, if the base is not strong; for how many epochs makes no other recipe."""
    return bool(with_expansion(settings.training, pairs, passages).expansion_epochs)


def checkpoint_folder(store: Store) -> Path:
    return store.work / "training"
