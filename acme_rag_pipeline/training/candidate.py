"""The `fine_tuned_model` stage: the candidate of today's training set, trained only if enough of it is new."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from acme_rag_pipeline.embedding.base_model import BaseModelFiles, has_transformer
from acme_rag_pipeline.retrieval.passage_encoder import install_base
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.judged_by import golden_queries_decide
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY, noted_keys, remember_keys, retrained_keys
from acme_rag_pipeline.store.passages import live_passages
from acme_rag_pipeline.store.retrained_files import remember_files, resolved_files, retrained_files
from acme_rag_pipeline.store.stages import StageResult, data_versions, record, recorded
from acme_rag_pipeline.store.warehouse import records
from acme_rag_pipeline.training.candidate_run import (
    REFIT_SIDES,
    STAGE,
    TWIN_SIDES,
    CandidateRun,
    checkpoint_folder,
    draws_to_queries,
    whitens_all,
)
from acme_rag_pipeline.training.due import (
    change_since_training,
    forget_trained_pairs,
    keys_before_training,
    remember_chunks,
    retrain_due,
)
from acme_rag_pipeline.training.rows import (
    heading_pairs,
    kept_pairs,
    mined_negatives,
    of_sides,
    rows_fingerprint,
    unasked_passages,
)
from acme_rag_pipeline.training.validation import Validation

CODE_VERSION = "20"
# What the training of a candidate cost.
_COSTS = {"seconds", "pairs_per_second"}
logger = logging.getLogger(__name__)

# The stages behind the training note theirs after it.
_AFTERWARDS = ("fine_tuned_index", "evaluation_report")


def train_candidate(store: Store, settings: Settings) -> StageResult:
    """Train the candidate, or say why none was trained.

    Raises:
        UpstreamMissing: `training_set` has never run.
    """
    upstream = data_versions(store.warehouse, "chunks", "training_set")
    files = resolved_files(store.warehouse)
    base = install_base(store, settings)
    # A stage of an earlier version noted no key, and ran in this retrain, as far as anybody knows with the settings of today.
    noted = {stage: key for stage, key in noted_keys(store.warehouse).items() if stage not in _AFTERWARDS}
    keys = keys_before_training(settings, base) | noted | {STAGE: settings_key(settings, base)}
    passages = live_passages(store.warehouse)
    pairs = kept_pairs(store.warehouse, passages)
    golden_decides = golden_queries_decide(store.warehouse)
    trainable = of_sides(pairs, REFIT_SIDES)
    # All that a run may read: whether it reads mined negatives is known when the base has been judged.
    negatives = mined_negatives(trainable, settings.training.model_copy(update={"expansion_epochs": 0}))
    recipe = _recipe(settings)
    # What chooses the mined negatives, where there are any, and what a batch must not take for one.
    mining = [settings.pairs.hard_negatives, settings.pairs.negative_margin] if negatives else []
    alike = settings.chunking.near_duplicate_similarity
    config_key = fingerprint(CODE_VERSION, base.digest, recipe, mining, alike, golden_decides)
    draws = draws_to_queries(settings, pairs, passages)
    # A query tower is trained against every passage.
    reads_all = whitens_all(settings.training) or settings.training.strategy == "query_only"
    unasked = unasked_passages(passages, trainable, REFIT_SIDES) if reads_all else []
    headings = heading_pairs(store.warehouse, passages)
    validation = Validation(of_sides(pairs, ("validation",)), passages, headings)
    chosen_by = [(p.query, p.passage.headings(), p.passage.rendered("none")) for p in headings]
    training_key = fingerprint(
        config_key, draws, rows_fingerprint(pairs, negatives, unasked), sorted(chosen_by), validation.searched()
    )
    made_from = fingerprint(STAGE, training_key, settings.automation.retrain_changed_share)
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None and models.all_whole(
        store, unchanged.details
    ):
        dealt_with = files == retrained_files(store.warehouse) and keys == retrained_keys(store.warehouse)
        if change_since_training(store).changed_share or not dealt_with:
            # Chunks without a pair came or went, a file says the same in other words, or a setting made no other training set.
            with store.writer(STAGE), store.warehouse.write() as connection:
                remember_chunks(connection, passages, upstream["chunks"])
                remember_files(connection, files)
                remember_keys(connection, keys)
        if _checkpoints(store) and store.idle("training"):
            with store.writer(STAGE, lock="training"):
                _drop_checkpoints(store)
        # What it cost is that of the training, not of this look.
        said = {"outcome"} if unchanged.details.get("model_digest") else set()
        details = {name: value for name, value in unchanged.details.items() if name not in _COSTS | said}
        return replace(unchanged, details=details | {"trained": False})
    # A refresh may go on while a model trains; only a second training has to wait.
    with store.writer(STAGE, lock="training"):
        if len(trainable) < settings.training.minimum_pairs:
            details = _nothing_trained(
                f"{len(trainable)} training pairs are fewer than {settings.training.minimum_pairs}: no candidate was trained"
            )
        elif not has_transformer(base.folder):
            details = _nothing_trained(f"{base.name} has no transformer to train: no candidate was trained")
        elif not golden_decides and len(of_sides(pairs, TWIN_SIDES)) < min(2, len(trainable)):
            # Without a twin the candidate would be judged on the very pairs that it was trained on.
            details = _nothing_trained(
                f"{len(of_sides(pairs, TWIN_SIDES))} of {len(trainable)} training pairs lie outside the test units, too few "
                "for a twin to be judged there: no candidate was trained"
            )
        elif (known := _trained_before(store, training_key)) is not None:
            details = known | {"outcome": "this training set was trained before: the same candidate", "trained": False}
        else:
            due = retrain_due(store, trainable, config_key, settings.automation, draws=draws)
            if due.candidate is not None:
                details = due.candidate | {"outcome": due.reason, "trained": False}
            else:
                logger.info("training: %s", due.reason)
                details = CandidateRun(
                    store, settings, base, passages, pairs, validation, golden_decides, training_key, config_key
                ).train()
                details |= {"outcome": f"{details['outcome']}; {due.reason}"}
        # Today's training set is dealt with: what a killed run left of another one has no use any more.
        _drop_checkpoints(store)
        with store.writer(STAGE), store.warehouse.write() as connection:
            forget_trained_pairs(store, connection, {training_key, details.get("training_key")})
            remember_chunks(connection, passages, upstream["chunks"])
            remember_files(connection, files)
            remember_keys(connection, keys)
            identity = [details.get(n) for n in ("model_digest", "passage_prefix", "passage_digest", "twin_digest")]
            of_today = {"training_set": upstream["training_set"], SETTINGS_KEY: keys[STAGE]}
            result = StageResult(STAGE, fingerprint(identity), details=details | of_today)
            done = record(connection, result, made_from)
            # The candidate's cost stays stored for its report; a run that did not train it does not show it as its own.
            told = {n: v for n, v in done.details.items() if details["trained"] or n not in _COSTS}
            return replace(done, details=told)


def settings_key(settings: Settings, base: BaseModelFiles) -> str:
    """Hash of the base model, the settings and the code that decide the candidate of a given training set."""
    return fingerprint(CODE_VERSION, base.digest, _recipe(settings), settings.chunking.near_duplicate_similarity)


def _recipe(settings: Settings) -> dict[str, Any]:
    # How much memory there is changes no more than the last bits of a gradient.
    return settings.training.model_dump(mode="json", exclude={"gradient_cache"})


def _trained_before(store: Store, training_key: str) -> dict[str, Any] | None:
    with store.warehouse.read() as connection:
        rows = records(connection, "SELECT manifest FROM models WHERE training_key = ?", [training_key])
    known = json.loads(rows[0]["manifest"]) if rows else None
    return known if known and models.all_whole(store, known) else None


def _checkpoints(store: Store) -> list[Path]:
    """Checkpoints, and those that a kill left half-written."""
    folder = checkpoint_folder(store)
    return sorted([*folder.glob("*.pt"), *folder.glob("*.tmp")])


def _drop_checkpoints(store: Store) -> None:
    for checkpoint in _checkpoints(store):
        checkpoint.unlink(missing_ok=True)


def _nothing_trained(outcome: str) -> dict[str, Any]:
    return {"model_digest": None, "passage_prefix": "none", "twin_digest": None, "outcome": outcome, "trained": False}
