"""The tables of the hybrid arms that know the queries which were written for passages."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from acme_rag_pipeline.retrieval.index import arm_entry, delete_gone_rows, holds, reconcile_index, sentences_wanted
from acme_rag_pipeline.retrieval.passage_encoder import BASE_PREFIX, PassageEncoder, install_base, newest_candidate
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.arms_file import forget_arm, known_arms, remember_arm
from acme_rag_pipeline.store.lance_files import newest_version
from acme_rag_pipeline.store.layout import Store

EXPANDED_ARMS = ("base_hybrid", "fine_tuned_hybrid")
logger = logging.getLogger(__name__)


def index_expanded_arms(
    store: Store, settings: Settings, queries: Mapping[str, Sequence[str]]
) -> dict[str, dict[str, Any]]:
    """Give the arms `base_hybrid` and `fine_tuned_hybrid` tables that know the queries, or take them away without any.

    Args:
        store, settings: as everywhere.
        queries: that were written for passages, by chunk id.

    Returns:
        By arm its entry in `arms.json`, and the newest version of its table: what `expanded_arms_hold` compares.
    """
    candidate = newest_candidate(store)
    base = PassageEncoder(install_base(store, settings).digest, BASE_PREFIX)
    with_sentences = sentences_wanted(store, settings)
    made: dict[str, dict[str, Any]] = {}
    for arm, which in ((EXPANDED_ARMS[0], base), (EXPANDED_ARMS[1], candidate)):
        if not queries or which is None:
            forget_arm(store, arm)
            continue
        try:
            done = reconcile_index(store, settings, which, with_sentences=with_sentences, queries=queries)
        except models.ModelDamaged as error:
            if which == base:
                raise
            logger.warning("`search --retriever %s` does not know the passages' queries: %s", arm, error)
            forget_arm(store, arm)
            with store.writer(arm):
                delete_gone_rows(store, which.expanded_table)
            made[arm] = {"damaged": str(error)}  # no finished table holds that: the next run looks again
            continue
        entry = arm_entry(which, done.version, which.expanded_table)
        remember_arm(store, arm, entry)
        made[arm] = entry | {"newest_version": newest_version(store.lancedb, which.expanded_table)}
    return made


def expanded_arms_hold(store: Store, made: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether the arms that know the queries are those that a finished run made, and their tables too, with all files.

    A run that was killed may have brought a table to other queries, which are no longer those of today.

    Args:
        made: by `index_expanded_arms`.
    """
    arms = known_arms(store)
    there = {arm: arms[arm] for arm in EXPANDED_ARMS if arm in arms}
    return there.keys() == made.keys() and all(
        entry | {"newest_version": made[arm]["newest_version"]} == made[arm] and holds(store, made[arm])
        for arm, entry in there.items()
    )
