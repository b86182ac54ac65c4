"""Whether a retrain is due: how much changed since the newest candidate, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from acme_rag_pipeline.setting_groups import AutomationSettings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.warehouse import records


@dataclass(frozen=True)
class ChangeSinceTraining:
    """Chunks of today against those of the last retrain.

    Attributes:
        changed_share: chunks added or removed, as a share of all in either; 1.0 when nothing was ever trained.
    """

    chunks: int
    added: int
    removed: int
    changed_share: float


@dataclass(frozen=True)
class RetrainDue:
    """The answer for one training set.

    Attributes:
        candidate: stage details of the candidate that may stay; None when a new one must be trained.
        reason: why, in words.
    """

    candidate: dict[str, Any] | None
    reason: str


def change_since_training(store: Store) -> ChangeSinceTraining:
    """Compare the live chunks with those the last retrain saw."""
    with store.warehouse.read() as connection:
        total, trained, common = connection.execute(
            "SELECT (SELECT count(*) FROM chunks), (SELECT count(*) FROM trained_chunks), "
            "(SELECT count(*) FROM chunks JOIN trained_chunks USING (chunk_id))"
        ).fetchall()[0]
    union = total + trained - common
    share = (union - common) / union if union and trained else 1.0
    return ChangeSinceTraining(total, total - common, trained - common, share)


def retrain_due(store: Store, pair_ids: Collection[str], config_key: str, automation: AutomationSettings) -> RetrainDue:
    """Decide whether the newest candidate may stay although its training set is not that of today.

    Changes add up: the pairs of today are compared with those that the candidate was trained on, not with those of the
    run before. A candidate that was trained on what is held out today never stays.

    Args:
        store: where the newest candidate and its pairs are recorded.
        pair_ids: the pairs of today that would be trained on.
        config_key: fingerprint of base model, settings and code.
        automation: holds the threshold.
    """
    with store.warehouse.read() as connection:
        rows = records(connection, "SELECT summary FROM stages WHERE stage = 'fine_tuned_model'")
        newest = json.loads(rows[0]["summary"])["details"] if rows else {}
        key = newest.get("training_key")
        trained = {
            row[0]
            for row in connection.execute("SELECT pair_id FROM trained_pairs WHERE training_key = ?", [key]).fetchall()
        }
        held_out = connection.execute(
            "SELECT count(*) FROM trained_pairs JOIN training_pairs USING (pair_id) WHERE training_key = ? AND "
            "(side = 'validation' OR dropped_because = 'near a golden query' "
            "OR starts_with(dropped_because, 'passage nearly repeats'))",
            [key],
        ).fetchall()[0][0]
    if not trained:
        return RetrainDue(None, "trained because there was no candidate yet")
    if newest.get("config_key") != config_key:
        return RetrainDue(None, "trained because the base model, a setting or the code changed")
    digests = [newest["model_digest"], newest["twin_digest"]]
    if not all(models.model_folder(store, digest).exists() for digest in digests if digest):
        return RetrainDue(None, "trained because the newest candidate's directory is gone")
    if held_out:
        return RetrainDue(None, f"trained because {held_out} pairs of the newest candidate are held out today")
    today = set(pair_ids)
    new, gone, union = len(today - trained), len(trained - today), len(today | trained)
    share = (new + gone) / union
    change = f"{share:.1%} of the training pairs changed ({new} new, {gone} gone)"
    if share >= automation.retrain_changed_share:
        return RetrainDue(None, f"trained because {change}")
    limit = f"{automation.retrain_changed_share:.1%} (ACME_RAG_AUTOMATION__RETRAIN_CHANGED_SHARE)"
    return RetrainDue(newest, f"the newest candidate stays: {change}, fewer than {limit}")
