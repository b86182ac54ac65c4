"""Whether settings, base model and code are those of the last retrain: asked by who decides when the next one runs."""

from __future__ import annotations

from acme_rag_pipeline.evaluation import evaluate, golden
from acme_rag_pipeline.retrieval.passage_encoder import base_at_hand
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import differing, noted_keys
from acme_rag_pipeline.training import candidate
from acme_rag_pipeline.training.due import keys_before_training, other_settings

CHANGED = "a setting, the base model or the code changed since the last retrain"


def changed_since_retrain(store: Store, settings: Settings) -> list[str]:
    """The stages that the next retrain does again because of that. Loads and downloads no model.

    Raises:
        SettingsError: there is no such base model, or a file that a setting names cannot be read.
    """
    base = base_at_hand(store, settings)
    if base is None:
        # A model of the hub that nobody has used here yet is another one.
        return [candidate.STAGE]
    today = keys_before_training(settings, base) | {
        golden.STAGE: golden.settings_key(settings),
        candidate.STAGE: candidate.settings_key(settings, base),
    }
    # What is compared is no matter of the training: the comparison notes itself with what it was made.
    compared = {evaluate.STAGE: evaluate.settings_key(settings)}
    return [*other_settings(store, today), *differing(noted_keys(store.warehouse), compared)]
