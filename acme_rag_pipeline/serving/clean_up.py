"""Deleting what no reader holds and no rollback needs: models, tables, table versions, cached vectors, work files."""

from __future__ import annotations

import itertools
import logging
import shutil
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from acme_rag_pipeline.embedding.cache import KEEP_UNUSED
from acme_rag_pipeline.embedding.general_probe import probe_entries
from acme_rag_pipeline.retrieval.passage_encoder import (
    BASE_PREFIX,
    PassageEncoder,
    embedding_cache,
    install_base,
    newest_candidate,
)
from acme_rag_pipeline.retrieval.sentences import sentences
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models, vectors
from acme_rag_pipeline.store.arms_file import known_arms
from acme_rag_pipeline.store.fingerprints import sha256_text
from acme_rag_pipeline.store.lance_files import lost_files
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import PassagePrefix, live_passages
from acme_rag_pipeline.store.table_clean_up import delete_gone, drop_old_versions
from acme_rag_pipeline.store.unreadable_table import TableUnreadable, reading
from acme_rag_pipeline.store.warehouse import records

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Policy:
    """What stays today.

    Attributes:
        digests: models.
        tables: LanceDB tables.
        pins: versions of a table that the pointer or `arms.json` names, or named within the grace time.
        reconciled: tables that readers search today; the other ones wait for a rollback.
        expired: rows of `served_versions` whose grace time is over.
    """

    digests: set[str]
    tables: set[str]
    pins: dict[str, set[int]]
    reconciled: set[str]
    expired: list[dict[str, Any]]


def policy(store: Store, settings: Settings) -> Policy:
    """What stays: the last promotions, the base, the newest candidate and its opponent, and what readers may hold."""
    past = decisions.decisions(store)
    # Going back and forth between two of them pushes no third one out.
    latest = list(dict.fromkeys(d.encoder for d in reversed(past)))
    kept = set(latest[: settings.serving.keep_promotions])
    expanded = {d.table for d in past if d.expanded and d.encoder in kept}
    newest = newest_candidate(store)
    # What the newest candidate was compared with: a later evaluation compares them again.
    kept |= {
        before.encoder
        for before, after in itertools.pairwise(past)
        if newest is not None and after.candidate_digest == newest.model_digest
    }
    base = install_base(store, settings)
    kept |= {PassageEncoder(base.digest, BASE_PREFIX)} | ({newest} if newest else set())
    digests = {digest for encoder in kept for digest in (encoder.model_digest, encoder.passage_model)}
    with store.warehouse.read() as connection:
        twins = records(connection, "SELECT model_digest, twin_digest FROM models WHERE twin_digest IS NOT NULL")
        served = records(connection, "SELECT table_name, lance_version, superseded_at FROM served_versions")
    digests |= {row["twin_digest"] for row in twins if row["model_digest"] in digests}
    grace = datetime.now(UTC) - timedelta(seconds=settings.serving.reader_grace_seconds)
    held = [row for row in served if row["superseded_at"] is None or row["superseded_at"] > grace]
    arms = known_arms(store).values()
    pins: dict[str, set[int]] = defaultdict(set)
    for row in held:
        pins[row["table_name"]].add(row["lance_version"])
    for arm in arms:
        pins[arm["table"]] |= {arm["lance_version"]} if "lance_version" in arm else set()
    digests |= {arm["model_digest"] for arm in arms}
    digests |= {name for name in _model_folders(store) if any(name[:16] in table for table in pins)}
    return Policy(
        digests,
        {encoder.table for encoder in kept} | expanded | set(pins),
        pins,
        {row["table_name"] for row in served if row["superseded_at"] is None} | {arm["table"] for arm in arms},
        [row for row in served if row not in held],
    )


def due(store: Store, settings: Settings) -> bool:
    """Whether something may go now. Opens neither LanceDB nor a model, so that a run without work may ask."""
    stays = policy(store, settings)
    tables = (folder.stem for folder in store.lancedb.glob("*.lance"))
    if stays.expired or any(vectors.is_ours(name) and name not in stays.tables for name in tables):
        return True
    return bool(_model_folders(store) - stays.digests) and store.idle("training")


def clean_up(store: Store, settings: Settings) -> None:
    """Delete what may go. For the holder of the writer lock."""
    stays = policy(store, settings)
    db = vectors.connect(store.lancedb)
    passages = live_passages(store.warehouse)
    for name in filter(vectors.is_ours, vectors.names(db)):
        waits = name not in stays.reconciled
        # A rollback builds a damaged one again.
        if name not in stays.tables or (waits and lost_files(store.lancedb, name)):
            logger.info("table %s is deleted: no reader holds it, and no rollback goes back to it", name)
            db.drop_table(name)
            continue
        try:
            with reading(store.lancedb, name):
                table = vectors.open_table(db, name)
                if table is not None:
                    if waits:
                        delete_gone(table, passages)
                    drop_old_versions(table, stays.pins.get(name, set()))
        except TableUnreadable as error:
            # What readers search is for the next stage that reconciles it, or for them, to say.
            logger.warning("%s", error)
            if waits and not error.refused:
                logger.info("table %s is deleted: a rollback builds it again", name)
                db.drop_table(name)
    # A training run puts its model in place before it is known to anybody.
    if store.idle("training"):
        for digest in models.remove_models(store, stays.digests):
            logger.info("model %s is deleted: no reader holds it, and no rollback goes back to it", digest[:16])
        _clear_training(store)
        embedding_cache(store).forget_encoders(stays.digests)
    # What is in use is only worth collecting when something may have to go.
    cache = embedding_cache(store)
    if cache.rows() > KEEP_UNUSED and cache.changed_since_collection(len(passages)):
        with store.warehouse.read() as connection:
            queries = connection.execute("SELECT query FROM pairs UNION SELECT query FROM golden_queries").fetchall()
        rendered = {p.rendered(prefix) for p in passages for prefix in get_args(PassagePrefix)}
        rendered |= {sentence for passage in passages for sentence in sentences(passage.text)}
        # What belongs to no collection is in use in each: where a passage's queries move it, and what a model may forget.
        asked = {row[0] for row in queries} | {query for query, _ in probe_entries()}
        rendered |= {passage for _, passage in probe_entries()}
        cache.forget_unused({sha256_text(text) for text in rendered}, {sha256_text(query) for query in asked})
        cache.remember_collection(len(passages))
    _forget_versions(store, stays.expired)


def _model_folders(store: Store) -> set[str]:
    if not store.models.is_dir():
        return set()
    return {folder.name for folder in store.models.iterdir() if folder.is_dir() and models.is_digest(folder.name)}


def _clear_training(store: Store) -> None:
    """Delete what killed trainings left, but for the newest checkpoint, from which the next run may go on."""
    folder = store.work / "training"
    for half_written in folder.glob("*.tmp"):
        half_written.unlink(missing_ok=True)
    checkpoints = sorted(folder.glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    for path in checkpoints:
        if path.name.split("-")[0] != checkpoints[-1].name.split("-")[0]:
            path.unlink(missing_ok=True)
    for saved in store.work.glob("saved-*"):
        shutil.rmtree(saved, ignore_errors=True)


def _forget_versions(store: Store, expired: list[dict[str, Any]]) -> None:
    """Last of all: a row that is left says that its version may not be deleted yet."""
    if expired:
        with store.warehouse.write() as connection:
            connection.executemany(
                "DELETE FROM served_versions WHERE table_name = ? AND lance_version = ?",
                [[row["table_name"], row["lance_version"]] for row in expired],
            )
