"""The index stages: one LanceDB table per passage encoder, reconciled with the chunks of today."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from acme_rag_pipeline.embedding.cache import EmbeddingCache
from acme_rag_pipeline.embedding.encoder import ENCODER_VERSION, Encoder, versioned
from acme_rag_pipeline.embedding.general_probe import probe_entries
from acme_rag_pipeline.retrieval.expansion import expanded_text, expansion_key, packed_shifts
from acme_rag_pipeline.retrieval.fusion import judged_fusion
from acme_rag_pipeline.retrieval.passage_encoder import (
    BASE_PREFIX,
    PassageEncoder,
    embedding_cache,
    encoder_for,
    install_base,
    newest_candidate,
)
from acme_rag_pipeline.retrieval.sentences import SENTENCES_VERSION, packed_sentences
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models, vectors
from acme_rag_pipeline.store.arms_file import forget_arm, known_arms, remember_arm
from acme_rag_pipeline.store.fingerprints import fingerprint, sha256_text
from acme_rag_pipeline.store.lance_files import lost_files, newest_version
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.made_with import SETTINGS_KEY, note_key
from acme_rag_pipeline.store.passages import LivePassage, live_passages
from acme_rag_pipeline.store.promotion import NothingPromoted, PointerDamaged, read_pointer
from acme_rag_pipeline.store.stages import (
    StageResult,
    data_versions,
    overtaken,
    record,
    recorded,
    stored_detail,
    stored_details,
)
from acme_rag_pipeline.store.table_clean_up import delete_gone
from acme_rag_pipeline.store.unreadable_table import TableUnreadable, reading
from acme_rag_pipeline.store.warehouse import Counts

BASE_STAGE = "base_index"
FINE_TUNED_STAGE = "fine_tuned_index"
CODE_VERSION = "3"
# With those of what its rows are made of.
VERSIONS = f"{CODE_VERSION}, encoder {ENCODER_VERSION}, sentences {SENTENCES_VERSION}"
logger = logging.getLogger(__name__)


def sentences_wanted(store: Store, settings: Settings, fusion: Mapping[str, Any] | None = None) -> bool:
    """Whether tables hold the vectors of sentences: the settings weigh them, or the recipe that is served does.

    Args:
        store, settings: as everywhere.
        fusion: of the recipe that is served next; None: what the pointer says.
    """
    if fusion is None:
        try:
            fusion = read_pointer(store.pointer).fusion
            judged_fusion(fusion or {})
        except (NothingPromoted, PointerDamaged, TypeError, ValueError):
            # `served_index`, which writes the pointer anew, runs after this.
            fusion = None
    return settings.retrieval.sentence_weight > 0 or bool(fusion and judged_fusion(fusion).sentence_weight > 0)


def reconcile_index(
    store: Store,
    settings: Settings,
    which: PassageEncoder,
    *,
    with_sentences: bool,
    queries: Mapping[str, Sequence[str]] | None = None,
) -> vectors.Reconciled:
    """Make a passage encoder's table hold exactly the chunks of today, encoding only inputs never seen before.

    Args:
        store, settings: as everywhere.
        which: the encoder.
        with_sentences: rows hold the vectors of their sentences too.
        queries: that were written for passages, by chunk id: it is the expanded table that is reconciled. None: the plain one.
    """
    name = which.table if queries is None else which.expanded_table
    passages = live_passages(store.warehouse)
    encoder = encoder_for(store, which.passage_model, settings)
    cache = embedding_cache(store)
    first = 0

    def dimension() -> int:
        nonlocal first
        found, first = cache.passages(encoder, [p.rendered(which.prefix) for p in passages[:1]])
        return int(found.shape[1]) if passages else int(encoder.model.get_embedding_dimension() or 0)

    def sentences_of(texts: Sequence[str]) -> tuple[list[bytes], int]:
        return packed_sentences(texts, lambda sentences: cache.passages(encoder, sentences))

    with store.writer(name):
        done = vectors.reconcile_table(
            vectors.connect(store.lancedb),
            name,
            passages,
            which.prefix,
            dimension,
            lambda rendered: cache.passages(encoder, rendered),
            model_name=models.relative_folder(which.passage_model),
            input_hash=lambda rendered: versioned(sha256_text(rendered)) + sentences_key(with_sentences),
            sentences_of=sentences_of if with_sentences else None,
            expanded=None if queries is None else _expanded(store, settings, which, passages, queries),
        )
        return replace(done, embedded=done.embedded + first)


def _expanded(
    store: Store,
    settings: Settings,
    which: PassageEncoder,
    passages: Sequence[LivePassage],
    queries: Mapping[str, Sequence[str]],
) -> vectors.Expanded:
    asking = encoder_for(store, which.model_digest, settings)
    cache = embedding_cache(store)
    return vectors.Expanded(
        texts={
            p.chunk_id: expanded_text(p.rendered("none"), queries[p.chunk_id])
            for p in passages
            if p.chunk_id in queries
        },
        keys={chunk_id: expansion_key(asked) for chunk_id, asked in queries.items()},
        shifts_of=lambda ids: packed_shifts(
            [queries.get(i, ()) for i in ids],
            lambda texts: cache.queries(asking, texts),
            lambda: any_question(cache, asking),
        ),
    )


def any_question(cache: EmbeddingCache, encoder: Encoder) -> np.ndarray:
    """What all questions have in common for a model: the mean vector of the general ones, shape (dimension,)."""
    found, _ = cache.queries(encoder, [query for query, _ in probe_entries()])
    return found.mean(axis=0)


def sentences_key(with_sentences: bool) -> str:
    """What tells rows with sentence vectors by the code of today from others."""
    return f"+sentences{SENTENCES_VERSION}" if with_sentences else ""


def settings_key(digest: str) -> str:
    """Hash of the model and the code that decide the vectors of given chunks.

    Whether sentences have vectors too is left out: that depends on what is served.
    """
    return fingerprint(versioned(CODE_VERSION), digest)


def index_base(store: Store, settings: Settings) -> StageResult:
    """The `base_index` stage.

    Raises:
        UpstreamMissing: `chunks` has never run.
    """
    upstream = data_versions(store.warehouse, "chunks")
    base = install_base(store, settings)
    which = PassageEncoder(base.digest, BASE_PREFIX)
    return _index_stage(store, settings, BASE_STAGE, which, upstream, arm="base")


def index_candidate(store: Store, settings: Settings) -> StageResult:
    """The `fine_tuned_index` stage: the newest candidate's table, or a note that there is no candidate yet.

    Raises:
        UpstreamMissing: `chunks` has never run.
    """
    upstream = data_versions(store.warehouse, "chunks")
    which = newest_candidate(store)
    if which is None:
        forget_arm(store, "fine_tuned")
        made_from = fingerprint(FINE_TUNED_STAGE, CODE_VERSION, None)
        if (unchanged := recorded(store.warehouse, FINE_TUNED_STAGE, made_from)) is not None:
            return unchanged
        details = {"outcome": "no candidate model yet", "embedded": 0, "reused": 0, "removed": 0, "rows": 0}
        with store.writer(FINE_TUNED_STAGE), store.warehouse.write() as connection:
            return record(connection, StageResult(FINE_TUNED_STAGE, "no candidate", details=details), made_from)
    try:
        if lost := _lost_by_candidate(store, which):
            raise models.ModelDamaged(
                f"the candidate {models.model_folder(store, which.model_digest)} has lost {', '.join(lost[:5])}; the next `retrain` "
                "trains it again"
            )
        return _index_stage(store, settings, FINE_TUNED_STAGE, which, upstream, arm="fine_tuned")
    except models.ModelDamaged as error:
        # Readers may use another model, whose index must not wait for this one.
        return _without_candidate(store, which, str(error))


def _lost_by_candidate(store: Store, which: PassageEncoder) -> list[str]:
    # Candidates of an earlier version do not say which files they have.
    files = json.loads(stored_detail(store.warehouse, "fine_tuned_model", "model_files") or "{}")
    return models.lost_files(models.model_folder(store, which.model_digest), files.get(which.model_digest, {}))


def _without_candidate(store: Store, which: PassageEncoder, reason: str) -> StageResult:
    with store.writer(FINE_TUNED_STAGE):
        forget_arm(store, "fine_tuned")
        removed = delete_gone_rows(store, which.table)
        details = {"outcome": f"not searchable: {reason}", "embedded": 0, "reused": 0, "removed": removed, "rows": 0}
        with store.warehouse.write() as connection:
            result = StageResult(FINE_TUNED_STAGE, "damaged candidate", Counts(removed=removed), details=details)
            # Under no fingerprint of its inputs: the next run looks again.
            return record(connection, result, "damaged candidate")


def delete_gone_rows(store: Store, table: str) -> int:
    """Delete the rows of a table that are no passage of today; all of it where it cannot be read, to be built again one day."""
    db = vectors.connect(store.lancedb)
    try:
        with reading(store.lancedb, table):
            held = vectors.open_table(db, table)
            return 0 if held is None else delete_gone(held, live_passages(store.warehouse))
    except TableUnreadable as error:
        if error.refused:
            raise
        logger.warning("table %s is deleted: it cannot be read (%s)", table, error.reason)
        db.drop_table(table)
        return 0


def _index_stage(
    store: Store, settings: Settings, stage: str, which: PassageEncoder, upstream: dict[str, str], arm: str
) -> StageResult:
    with_sentences = sentences_wanted(store, settings)
    made_from = fingerprint(stage, versioned(CODE_VERSION), upstream, asdict(which), sentences_key(with_sentences))
    if (unchanged := recorded(store.warehouse, stage, made_from)) is not None and holds(store, unchanged.details):
        entry = arm_entry(which, unchanged.details["lance_version"], which.table)
        if known_arms(store).get(arm) != entry:
            with store.writer(stage):
                # Another run may have brought table and readers further since.
                if not holds(store, unchanged.details):
                    return _index_stage(store, settings, stage, which, data_versions(store.warehouse, *upstream), arm)
                remember_arm(store, arm, entry)
        unchanged = note_key(store, unchanged, made_from, settings_key(which.model_digest))
        return StageResult(stage, unchanged.data_version, unchanged.counts, True, nothing_done(unchanged.details))
    with store.writer(stage):
        if overtaken(store.warehouse, upstream):
            return _index_stage(store, settings, stage, which, data_versions(store.warehouse, *upstream), arm)
        done = reconcile_index(store, settings, which, with_sentences=with_sentences)
        remember_arm(store, arm, arm_entry(which, done.version, which.table))
        details = index_details(store, which, done) | {
            "chunks_version": upstream["chunks"],
            "sentences_key": sentences_key(with_sentences),
            SETTINGS_KEY: settings_key(which.model_digest),
        }
        data_version = fingerprint(which.table, done.content)
        with store.warehouse.write() as connection:
            return record(connection, StageResult(stage, data_version, done.counts, details=details), made_from)


def reconciled_by_a_stage(store: Store, which: PassageEncoder, *, with_sentences: bool) -> vectors.Reconciled | None:
    """What an index stage made of this table, if that is what it holds and the chunks are those of today; else None."""
    upstream = data_versions(store.warehouse, "chunks")
    with store.warehouse.read() as connection:
        made = [stored_details(connection, stage) for stage in (BASE_STAGE, FINE_TUNED_STAGE)]
    for known in made:
        made_from = known.get("chunks_version"), known.get("sentences_key", "")
        of_today = made_from == (upstream["chunks"], sentences_key(with_sentences))
        if of_today and known.get("table") == which.table and holds(store, known):
            counts = Counts(reused=known["rows"])
            return vectors.Reconciled(counts, 0, known["lance_version"], known["rows"], known["content"])
    return None


def index_details(
    store: Store, which: PassageEncoder, done: vectors.Reconciled, *, expanded: bool = False
) -> dict[str, Any]:
    """What an index stage reports: `embedded` texts went through the model, a `reused` row's vector was known."""
    rebuilt = f"the table was built again: {done.damage.in_words}"
    table = which.expanded_table if expanded else which.table
    return ({"outcome": rebuilt} if done.damage else {}) | {
        "table": table,
        "model_digest": which.model_digest,
        "passage_prefix": which.prefix,
        "lance_version": done.version,
        "newest_version": newest_version(store.lancedb, table),
        "rows": done.rows,
        "content": done.content,
        "embedded": done.embedded,
        "sentences_embedded": done.sentences_embedded,
        **({"queries_embedded": done.queries_embedded} if expanded else {}),
        "reused": done.rows - done.embedded,
        "removed": done.counts.removed,
    }


def holds(store: Store, details: Mapping[str, Any]) -> bool:
    """Whether the table is still the one that these details describe, with all its files."""
    newest = newest_version(store.lancedb, details["table"])
    return bool(newest) and newest == details["newest_version"] and not lost_files(store.lancedb, details["table"])


def nothing_done(details: dict[str, Any]) -> dict[str, Any]:
    """The details of an index that had to do nothing."""
    known = {name: value for name, value in details.items() if name != "outcome"}
    nothing = {"embedded": 0, "sentences_embedded": 0, "reused": details["rows"], "removed": 0}
    return known | nothing | ({"queries_embedded": 0} if "queries_embedded" in known else {})


def arm_entry(which: PassageEncoder, version: int, table: str) -> dict[str, Any]:
    return {
        "model_digest": which.model_digest,
        "model_dir": models.relative_folder(which.model_digest),
        "table": table,
        "lance_version": version,
        "passage_prefix": which.prefix,
    }
