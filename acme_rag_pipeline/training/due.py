"""How much of the collection changed since the newest candidate was considered: what a schedule decides by."""

from __future__ import annotations

from dataclasses import dataclass

from acme_rag_pipeline.store.layout import Store


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
