"""With which settings, base model and code the served index was made, and whether they are those of today."""

from __future__ import annotations

import json

from acme_rag_pipeline.chunking import chunks
from acme_rag_pipeline.documents import ingest
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.passage_encoder import base_at_hand
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import differing, noted_keys
from acme_rag_pipeline.store.stages import stored_detail

# Its name among the details of `served_index`.
MADE_WITH = "made_with"


def made_with(store: Store) -> dict[str, str]:
    """The hashes that the stages noted which the served index is made from now."""
    noted = noted_keys(store.warehouse)
    return {stage: noted[stage] for stage in (ingest.STAGE, chunks.STAGE, index.BASE_STAGE) if stage in noted}


def changed_since_refresh(store: Store, settings: Settings) -> dict[str, str]:
    """The stages that the next refresh does again because a setting, the base model or the code is another one.

    What is served may stay the same: a base model that was never promoted is the base of the next candidate. Loads and
    downloads no model.

    Returns:
        For each of them the hash of today.

    Raises:
        SettingsError: there is no such base model.
    """
    known = json.loads(stored_detail(store.warehouse, "served_index", MADE_WITH) or "{}")
    if not known:
        # Nothing is served, or by an earlier version, which noted nothing.
        return {}
    base = base_at_hand(store, settings)
    if base is None:
        return {index.BASE_STAGE: settings.base_model}
    today = {
        ingest.STAGE: ingest.settings_key(),
        chunks.STAGE: chunks.settings_key(settings, base),
        index.BASE_STAGE: index.settings_key(base.digest),
    }
    return {stage: today[stage] for stage in differing(known, today)}
