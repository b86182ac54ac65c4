"""Who judges the candidate that learns from the training set of today, as `training_set` left it for the stages behind it."""

from __future__ import annotations

from acme_rag_pipeline.store.stages import stored_detail
from acme_rag_pipeline.store.warehouse import Warehouse

DETAIL = "judged_by"
GOLDEN_QUERIES, HELD_OUT_UNITS = "golden queries", "held-out units"


def golden_queries_decide(warehouse: Warehouse) -> bool:
    """Whether golden queries judge it, so that the test side is trained on; else held-out units do."""
    return stored_detail(warehouse, "training_set", DETAIL) == GOLDEN_QUERIES
