"""The `served_index` stage: the promoted model's table brought to the chunks of today, then the pointer, then clean-up."""

from __future__ import annotations

import itertools
import shutil
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

from acme_rag_pipeline.embedding.cache import KEEP_UNUSED
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.serving import decisions
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models, vectors
from acme_rag_pipeline.store.fingerprints import fingerprint, sha256_text
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.passages import PassagePrefix, live_passages
from acme_rag_pipeline.store.promotion import NothingPromoted, PointerDamaged, Promoted, read_pointer, write_pointer
from acme_rag_pipeline.store.stages import StageResult, data_versions, overtaken, record, recorded, stored_detail
from acme_rag_pipeline.store.warehouse import records

STAGE = "served_index"
CODE_VERSION = "1"
# Each refresh writes a small table anew, so many edits within the readers' grace time would keep as many copies.
KEEP_SUPERSEDED = 8
FORGOTTEN_VERSIONS = 100


class NoSuchPromotion(ValueError):
    """There is nothing to roll back to, or no such model."""


def serve(store: Store, settings: Settings) -> StageResult:
    """Reconcile what readers search, then name it in the pointer; readers see the old state or the new one.

    Raises:
        UpstreamMissing: `chunks` has never run.
    """
    upstream = data_versions(store.warehouse, "documents", "chunks")
    decision = decisions.champion(store, settings)
    made_from = fingerprint(STAGE, CODE_VERSION, upstream, decision.decision)
    unchanged = recorded(store.warehouse, STAGE, made_from)
    if unchanged is not None and index.holds(store, unchanged.details) and _serves(store, decision, unchanged.details):
        details = index.nothing_done(unchanged.details)
        return StageResult(STAGE, unchanged.data_version, unchanged.counts, True, details)
    with store.writer(STAGE):
        if overtaken(store.warehouse, upstream) or decisions.champion(store, settings) != decision:
            return serve(store, settings)
        done = index.reconciled_by_a_stage(store, decision.encoder) or index.reconcile_index(
            store, settings, decision.encoder
        )
        pointer = _pointer(decision, done.version)
        write_pointer(store.pointer, pointer)
        details = index.index_details(store, decision.encoder, done) | {
            "recipe": decision.recipe,
            "verdict": decision.verdict,
            "sources": _sources(store),
        }
        data_version = fingerprint(
            pointer.table, pointer.recipe, done.content, *([pointer.fusion] if pointer.fusion else [])
        )
        with store.warehouse.write() as connection:
            _remember_version(connection, pointer)
            result = record(connection, StageResult(STAGE, data_version, done.counts, details=details), made_from)
        _clean_up(store, settings)
        return result


def rollback(store: Store, settings: Settings, to: str | None = None) -> decisions.Decision:
    """Go back to an earlier promotion: decided and recorded like any other, its index reconciled before the pointer.

    Args:
        store, settings: as everywhere.
        to: digest (or its beginning) of the model; default the one before today's.

    Raises:
        NoSuchPromotion: the message names what there is.
    """
    with store.writer("rollback"):
        past = decisions.decisions(store)
        if not past:
            raise NoSuchPromotion("nothing has been promoted from this store yet")
        current = past[-1]
        named = [d for d in past if d.model_digest.startswith(to)] if to is not None else past
        serving = [d for d in named if d.retriever != current.retriever]
        if to is not None and not serving:
            serving = named
        serving = [d for d in serving if models.model_folder(store, d.model_digest).exists()]
        if not serving:
            kept = sorted({d.model_digest[:16] for d in past if models.model_folder(store, d.model_digest).exists()})
            wanted = f"no promotion of {to}" if to else "no earlier promotion"
            raise NoSuchPromotion(f"{wanted} can be gone back to; the store keeps {', '.join(kept)}")
        target = serving[-1]
        if target.retriever == current.retriever:
            raise NoSuchPromotion(f"{target.model_digest[:16]} with recipe {target.recipe} is what is promoted now")
        decision = decisions.append(
            store,
            encoder=target.encoder,
            recipe=target.recipe,
            fusion=target.fusion,
            verdict=decisions.ROLLED_BACK,
            reason=f"rolled back from {current.model_digest[:16]} ({current.recipe}) by hand",
            candidate_digest=current.candidate_digest,
            candidate_key=current.candidate_key,
        )
        serve(store, settings)
    return decision


def _sources(store: Store) -> str:
    """The state of the documents folder that the chunks were made from."""
    return stored_detail(store.warehouse, "documents", "sources") or ""


def _pointer(decision: decisions.Decision, version: int) -> Promoted:
    return Promoted(
        model_digest=decision.model_digest,
        model_dir=models.relative_folder(decision.model_digest),
        table=decision.encoder.table,
        lance_version=version,
        recipe=decision.recipe,
        decided_at=decision.decided_at.astimezone(UTC).isoformat(),
        reason=decision.reason,
        passage_prefix=decision.passage_prefix,
        fusion=decision.fusion,
    )


def _serves(store: Store, decision: decisions.Decision, details: dict[str, Any]) -> bool:
    try:
        return read_pointer(store.pointer) == _pointer(decision, details["lance_version"])
    except (NothingPromoted, PointerDamaged):
        return False


def _remember_version(connection: Any, pointer: Promoted) -> None:
    now, served = datetime.now(UTC), [pointer.table, pointer.lance_version]
    connection.execute(
        "UPDATE served_versions SET superseded_at = ? WHERE superseded_at IS NULL AND (table_name, lance_version) <> (?, ?)",
        [now, *served],
    )
    # After a kill between the pointer and this line the pointer names the version already.
    connection.execute(
        "INSERT INTO served_versions VALUES (?, ?, ?, NULL) ON CONFLICT DO UPDATE SET superseded_at = NULL",
        [*served, now],
    )


def _clean_up(store: Store, settings: Settings) -> None:
    """Delete what no reader holds and no rollback needs: models, tables, table versions, cached vectors, work files."""
    past = decisions.decisions(store)
    # Going back and forth between two of them pushes no third one out.
    latest = list(dict.fromkeys(d.encoder for d in reversed(past)))
    kept = set(latest[: settings.serving.keep_promotions])
    newest = index.newest_candidate(store)
    # What the newest candidate was compared with: a later evaluation compares them again.
    kept |= {
        before.encoder
        for before, after in itertools.pairwise(past)
        if newest is not None and after.candidate_digest == newest.model_digest
    }
    base = index.install_base(store, settings)
    kept |= {index.PassageEncoder(base.digest, index.BASE_PREFIX)} | ({newest} if newest else set())
    digests = {digest for encoder in kept for digest in (encoder.model_digest, encoder.passage_model)}
    with store.warehouse.read() as connection:
        twins = records(connection, "SELECT model_digest, twin_digest FROM models WHERE twin_digest IS NOT NULL")
        served = records(
            connection, "SELECT table_name, lance_version, superseded_at FROM served_versions ORDER BY promoted_at DESC"
        )
    digests |= {row["twin_digest"] for row in twins if row["model_digest"] in digests}
    grace = datetime.now(UTC) - timedelta(seconds=settings.serving.reader_grace_seconds)
    held = [r for r in served if r["superseded_at"] is None or r["superseded_at"] > grace][: 1 + KEEP_SUPERSEDED]
    tables = {encoder.table for encoder in kept} | {row["table_name"] for row in held}
    db = vectors.connect(store.lancedb)
    for name in vectors.names(db):
        if name not in tables:
            db.drop_table(name)
            continue
        table = vectors.open_table(db, name)
        if table is not None:
            versions = [row["lance_version"] for row in held if row["table_name"] == name]
            at_once = settings.serving.reader_grace_seconds == 0
            vectors.drop_old_versions(table, versions or [int(table.version)], at_once=at_once)
    readers = {row["table_name"] for row in held}
    digests |= {folder.name for folder in store.models.iterdir() if any(folder.name[:16] in name for name in readers)}
    # A training run puts its model in place before it is known to anybody.
    if store.idle("training"):
        models.remove_models(store, digests)
        _clear_training(store)
        index.embedding_cache(store).forget_encoders(digests)
    _forget_rows(store, [r for r in served if r not in held])


def _clear_training(store: Store) -> None:
    """Delete what killed trainings left, but for the newest checkpoint, from which the next run may go on."""
    checkpoints = sorted((store.work / "training").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    for path in checkpoints:
        if path.name.split("-")[0] != checkpoints[-1].name.split("-")[0]:
            path.unlink(missing_ok=True)
    for folder in store.work.glob("saved-*"):
        shutil.rmtree(folder, ignore_errors=True)


def _forget_rows(store: Store, gone: list[dict[str, Any]]) -> None:
    """Keep the embedding cache and the list of served versions from growing with every edit."""
    cache = index.embedding_cache(store)
    # What is in use is only worth collecting when something may have to go.
    if cache.rows() > KEEP_UNUSED:
        with store.warehouse.read() as connection:
            queries = connection.execute("SELECT query FROM pairs UNION SELECT query FROM golden_queries").fetchall()
        rendered = {p.rendered(prefix) for p in live_passages(store.warehouse) for prefix in get_args(PassagePrefix)}
        cache.forget_unused({sha256_text(text) for text in rendered}, {sha256_text(row[0]) for row in queries})
    if len(gone) > FORGOTTEN_VERSIONS:
        with store.warehouse.write() as connection:
            for row in gone:
                connection.execute(
                    "DELETE FROM served_versions WHERE table_name = ? AND lance_version = ?",
                    [row["table_name"], row["lance_version"]],
                )
