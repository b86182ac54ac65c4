"""The `training_set` stage: raw pairs filtered, de-duplicated, put on their side and given hard negatives.

Every raw pair gets a row; a pair that is not used keeps its reason.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from acme_rag_pipeline.pairs.figures import coverage, histogram, training_set_picture
from acme_rag_pipeline.pairs.funnel import Funnel
from acme_rag_pipeline.pairs.heading_queries import heading_queries
from acme_rag_pipeline.pairs.offline import GENERATOR_VERSION
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import judged_by
from acme_rag_pipeline.store.fingerprints import content_hash, fingerprint
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY
from acme_rag_pipeline.store.stages import StageResult, data_versions, overtaken, record, recorded, stored_detail
from acme_rag_pipeline.store.warehouse import reconcile

STAGE = "training_set"
CODE_VERSION = "11"
# What the answers cost is no business of the training set.
_FILTER_SETTINGS = {
    "round_trip_top_k",
    "llm_round_trip_top_k",
    "query_similarity",
    "golden_similarity",
    "hard_negatives",
    "negative_margin",
}


def build_training_set(store: Store, settings: Settings) -> StageResult:
    """Bring `training_pairs` to the raw pairs of today.

    Raises:
        UpstreamMissing: a stage it reads from has never run.
    """
    upstream = data_versions(
        store.warehouse, "chunks", "curated_pairs", "synthetic_pairs", "golden_queries", "base_index"
    )
    filters = settings.pairs.model_dump(include=_FILTER_SETTINGS)
    # Which units are held out: the rest of the evaluation's settings is no business of the training set.
    golden_decides = stored_detail(store.warehouse, "golden_queries", "decides")
    # Queries are made of headings by the embedded generator, also where an LLM wrote the pairs.
    made_from = fingerprint(STAGE, CODE_VERSION, GENERATOR_VERSION, upstream, filters, golden_decides)
    if (unchanged := recorded(store.warehouse, STAGE, made_from)) is not None:
        return unchanged
    with store.writer(STAGE):
        if overtaken(store.warehouse, upstream):
            return build_training_set(store, settings)
        funnel = Funnel(store, settings)
        rows = funnel.run()
        headings: list[dict[str, str]] = []
        if {row["origin"] for row in rows if row["dropped_because"] is None} & {"openai", "offline"} == {"openai"}:
            headings = funnel.far_from_golden(heading_queries(funnel.passages, settings.pairs.queries_per_chunk))
        data_version = content_hash(tuple(row.values()) for row in [*rows, *headings])
        with store.warehouse.write() as connection:
            counts = reconcile(connection, "training_pairs", "pair_id", rows)
            reconcile(connection, "heading_queries", "query_id", headings)
            details = _details(rows, funnel) | {"heading_queries": len(headings), "chunks_version": upstream["chunks"]}
            details[SETTINGS_KEY] = settings_key(settings)
            return record(connection, StageResult(STAGE, data_version, counts, details=details), made_from)


def settings_key(settings: Settings) -> str:
    """Hash of the settings and the code that decide the training set of given pairs."""
    return fingerprint(CODE_VERSION, GENERATOR_VERSION, settings.pairs.model_dump(include=_FILTER_SETTINGS))


def _details(rows: list[dict[str, Any]], funnel: Funnel) -> dict[str, Any]:
    kept = [row for row in rows if row["dropped_because"] is None]
    per_document = coverage([(p.doc_path, p.chunk_id) for p in funnel.passages], [row["chunk_id"] for row in kept])
    return {
        "raw": len(rows),
        "kept": len(kept),
        "sides": dict(sorted(Counter(row["side"] for row in kept).items())),
        "dropped": dict(Counter(r["dropped_because"] for r in rows if r["dropped_because"]).most_common()),
        "funnel": funnel.steps,
        "origins": dict(Counter(row["origin"] for row in kept).most_common()),
        "methods": dict(Counter(row["method"] for row in kept).most_common()),
        "styles": dict(Counter(row["style"] for row in kept).most_common()),
        "chunks_covered": len({row["chunk_id"] for row in kept}),
        "coverage": per_document.numbers(),
        "documents_without_pairs": per_document.without[:50],
        "mean_word_overlap": round(float(np.mean([row["overlap"] for row in kept])), 4) if kept else 0.0,
        "query_words": histogram("words", [(row["origin"], len(row["query"].split())) for row in kept]),
        "overlap": histogram("overlap", [(row["origin"], row["overlap"]) for row in kept]),
        "with_hard_negatives": sum(bool(row["negatives"]) for row in kept),
        judged_by.DETAIL: judged_by.GOLDEN_QUERIES if funnel.golden_decides else judged_by.HELD_OUT_UNITS,
        "picture": training_set_picture(rows, funnel.steps),
    }
