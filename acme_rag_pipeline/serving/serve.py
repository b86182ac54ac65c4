"""The `served_index` stage: the promoted model's table brought to the chunks of today, then the pointer, then clean-up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

from acme_rag_pipeline.embedding.base_model import files_digest, functional_files, model_digest
from acme_rag_pipeline.embedding.encoder import versioned
from acme_rag_pipeline.errors import UserError
from acme_rag_pipeline.retrieval import index
from acme_rag_pipeline.retrieval.expanded_index import expanded_arms_hold, index_expanded_arms
from acme_rag_pipeline.retrieval.passage_encoder import install_base, newest_candidate
from acme_rag_pipeline.serving import clean_up, decisions
from acme_rag_pipeline.serving.served_with import MADE_WITH, made_with
from acme_rag_pipeline.settings import Settings
from acme_rag_pipeline.store import models
from acme_rag_pipeline.store.fingerprints import fingerprint
from acme_rag_pipeline.store.lance_files import flush_version, has_version, lost_files
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import NothingPromoted, PointerDamaged, Promoted, read_pointer, write_pointer
from acme_rag_pipeline.store.stages import (
    StageResult,
    data_versions,
    overtaken,
    record,
    recorded,
    stored_detail,
    stored_details,
)
from acme_rag_pipeline.store.written_queries import nearly_all_asked, written_queries

STAGE = "served_index"
CODE_VERSION = "1"


class NoSuchPromotion(UserError, ValueError):
    """There is nothing to roll back to, or no such model."""


def serve(store: Store, settings: Settings) -> StageResult:
    """Reconcile what readers search, then name it in the pointer; readers see the old state or the new one.

    Raises:
        UpstreamMissing: `chunks` has never run.
        ModelDamaged: files of the promoted model are lost. What could be reconciled without it has been.
    """
    upstream = data_versions(store.warehouse, "documents", "chunks")
    decision = decisions.champion(store, settings)
    expected = _model_files(store, settings, decision)
    lost = models.lost_files(models.model_folder(store, decision.model_digest), expected)
    try:
        result = _serve(store, settings, upstream, decision, expected)
    except Exception as error:
        if lost:
            raise _damaged(store, decision, lost) from error
        raise
    if lost:
        raise _damaged(store, decision, lost)
    return result


def _serve(
    store: Store,
    settings: Settings,
    upstream: dict[str, str],
    decision: decisions.Decision,
    model_files: dict[str, int],
) -> StageResult:
    with_sentences = index.sentences_wanted(store, settings, decision.fusion or {})
    sentences = index.sentences_key(with_sentences)
    queries, for_arms = _queries(store, settings, decision)
    expansion = _expansion(store, queries, for_arms=for_arms)
    made_from = fingerprint(STAGE, versioned(CODE_VERSION), upstream, decision.decision, sentences, *expansion)
    unchanged = recorded(store.warehouse, STAGE, made_from)
    if unchanged is not None and _holds(store, decision, unchanged.details):
        # A grace time ends without any work; another run that writes just now will see to it.
        if clean_up.due(store, settings) and store.idle("writer"):
            with store.writer(STAGE):
                clean_up.clean_up(store, settings)
        details = unchanged.details
        of_today = {"sources": _sources(store), MADE_WITH: made_with(store)}
        if any(details.get(name) != value for name, value in of_today.items()):
            # The same documents, looked at anew by another version or in another way, or with settings that made no other chunks.
            details = details | of_today
            with store.writer(STAGE):
                # Another run may have gone further since.
                if recorded(store.warehouse, STAGE, made_from) is None:
                    return serve(store, settings)
                with store.warehouse.write() as connection:
                    record(connection, replace(unchanged, details=details), made_from)
        return StageResult(STAGE, unchanged.data_version, unchanged.counts, True, index.nothing_done(details))
    with store.writer(STAGE):
        if overtaken(store.warehouse, upstream) or decisions.champion(store, settings) != decision:
            return serve(store, settings)
        # A refresh that waited for a retrain must not bring back queries that were taken out there.
        queries_now, for_arms_now = _queries(store, settings, decision)
        if _expansion(store, queries_now, for_arms=for_arms_now) != expansion:
            return serve(store, settings)
        if decision.expanded:
            done = index.reconcile_index(
                store, settings, decision.encoder, with_sentences=with_sentences, queries=queries
            )
        else:
            known = index.reconciled_by_a_stage(store, decision.encoder, with_sentences=with_sentences)
            done = known or index.reconcile_index(store, settings, decision.encoder, with_sentences=with_sentences)
        pointer = _pointer(decision, done.version)
        flush_version(store.lancedb, pointer.table, pointer.lance_version)
        write_pointer(store.pointer, pointer)
        arms = index_expanded_arms(store, settings, queries if for_arms else {})
        details = index.index_details(store, decision.encoder, done, expanded=decision.expanded) | {
            "recipe": decision.recipe,
            **_written(queries if decision.expanded else {}),
            "verdict": decision.verdict,
            "sources": _sources(store),
            MADE_WITH: made_with(store),
            "model_files": model_files,
            "expanded_arms": arms,
        }
        data_version = fingerprint(
            pointer.table, pointer.recipe, done.content, *([pointer.fusion] if pointer.fusion else [])
        )
        with store.warehouse.write() as connection:
            _remember_version(connection, pointer)
            result = record(connection, StageResult(STAGE, data_version, done.counts, details=details), made_from)
        clean_up.clean_up(store, settings)
        return result


def rollback(store: Store, settings: Settings, to: str | None = None) -> decisions.Decision:
    """Go back to an earlier promotion: decided and recorded like any other, its index reconciled before the pointer.

    A rollback that ended between the decision and the pointer is brought to its end by the same call, which then goes no
    further.

    Args:
        store, settings: as everywhere.
        to: digest (or its beginning) of the model; default the one before today's. Of a model that was gone back from
            that way, the default never goes forward to it again.

    Raises:
        NoSuchPromotion: there is none, or its model is damaged or deleted; the message names what there is.
    """
    if not store.warehouse.path.exists():  # a writer would create it
        raise NoSuchPromotion(f"{store.root} holds nothing that was promoted")
    with store.writer("rollback"):
        past = decisions.decisions(store)
        if not past:
            raise NoSuchPromotion("nothing has been promoted from this store yet")
        install_base(store, settings)  # a damaged base is copied anew
        current = past[-1]
        asked_for = to is None or (to != "" and current.model_digest.startswith(to))
        interrupted = current.verdict == decisions.ROLLED_BACK and not last_decision_is_served(store)
        if interrupted and asked_for and _is_whole(store, current.model_digest):
            serve(store, settings)
            return current
        if to is None:
            serving = decisions.line_of_promotions(past)[:-1]
        else:
            named = [d for d in past if to and d.model_digest.startswith(to)]
            serving = [d for d in named if d.retriever != current.retriever] or named
            if len(meant := sorted({d.model_digest for d in serving})) > 1:
                raise NoSuchPromotion(
                    f"{to} may be any of {', '.join(digest[:16] for digest in meant)}: give more of the digest"
                )
        serving = [d for d in serving if _is_whole(store, d.model_digest)]
        if not serving:
            other = [d for d in past if d.retriever != current.retriever and _is_whole(store, d.model_digest)]
            kept = sorted({f"{d.model_digest[:16]} ({d.recipe})" for d in other})
            wanted = "no earlier promotion" if to is None else f"no promotion of {to or 'a model without a name'}"
            known = f"{', '.join(kept)}; name one with --to" if kept else "none but what is promoted now"
            raise NoSuchPromotion(f"{wanted} can be gone back to. Whole models that were promoted before: {known}")
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


def last_decision_is_served(store: Store) -> bool:
    """Whether the pointer names what was decided last. Of a store without any decision nothing else is expected."""
    past = decisions.decisions(store)
    if not past:
        return True
    try:
        named = read_pointer(store.pointer)
    except (NothingPromoted, PointerDamaged):
        return False
    retriever = decisions.retriever_of(named.model_digest, named.recipe, named.fusion)
    return (retriever, named.passage_prefix) == (past[-1].retriever, past[-1].passage_prefix)


def served_files_are_there(store: Store) -> bool:
    """Whether all files of the index that the pointer names are there in their size. Reads a manifest, opens no table.

    A store that serves nothing yet has lost nothing.
    """
    try:
        named = read_pointer(store.pointer)
    except NothingPromoted:
        return True
    except PointerDamaged:
        return False
    return has_version(store.lancedb, named.table, named.lance_version) and not lost_files(
        store.lancedb, named.table, named.lance_version
    )


def _is_whole(store: Store, digest: str) -> bool:
    """Whether the model's files are those that its name was computed from."""
    folder = models.model_folder(store, digest)
    return folder.is_dir() and digest in (model_digest(folder), files_digest(folder))


def _queries(
    store: Store, settings: Settings, decision: decisions.Decision
) -> tuple[Mapping[str, Sequence[str]], bool]:
    """The queries that tables of today know, by chunk id, and whether those of the arms know them too."""
    for_arms = settings.retrieval.expansion_weight > 0 and nearly_all_asked(store.warehouse)
    return written_queries(store.warehouse) if decision.expanded or for_arms else {}, for_arms


def _expansion(store: Store, queries: Mapping[str, Sequence[str]], *, for_arms: bool) -> list[Any]:
    """What the tables with queries are made from; nothing where there are none."""
    if not queries:
        return []
    candidate = newest_candidate(store)
    return [queries, for_arms, asdict(candidate) if candidate else None]


def _written(queries: Mapping[str, Sequence[str]]) -> dict[str, int]:
    return (
        {"passages_with_queries": len(queries), "written_queries": sum(map(len, queries.values()))} if queries else {}
    )


def _model_files(store: Store, settings: Settings, decision: decisions.Decision) -> dict[str, int]:
    """The functional files of the promoted model by size, as they were when it was first served."""
    # A damaged base model is copied anew.
    install_base(store, settings)
    with store.warehouse.read() as connection:
        served = stored_details(connection, STAGE)
    if served.get("model_digest") == decision.model_digest and served.get("model_files"):
        return served["model_files"]
    folder = models.model_folder(store, decision.model_digest)
    return models.file_sizes(folder, functional_files(folder))


def _damaged(store: Store, decision: decisions.Decision, lost: list[str]) -> models.ModelDamaged:
    return models.ModelDamaged(
        f"the promoted model {models.model_folder(store, decision.model_digest)} has lost {', '.join(lost[:5])}. Bring the "
        "folder back from a backup, or serve an earlier model with `acme-rag rollback`; or delete the folder and run "
        "`retrain`, which trains the newest candidate again"
    )


def _sources(store: Store) -> str:
    """The state of the documents folder that the chunks were made from; empty where `documents` has run since."""
    made_from = stored_detail(store.warehouse, "chunks", "documents_version")
    today = data_versions(store.warehouse, "documents")["documents"]
    # Chunks of an earlier version do not say.
    return (stored_detail(store.warehouse, "documents", "sources") or "") if made_from in (None, today) else ""


def _pointer(decision: decisions.Decision, version: int) -> Promoted:
    return Promoted(
        model_digest=decision.model_digest,
        model_dir=models.relative_folder(decision.model_digest),
        table=decision.table,
        lance_version=version,
        recipe=decision.recipe,
        decided_at=decision.decided_at.astimezone(UTC).isoformat(),
        reason=decision.reason,
        passage_prefix=decision.passage_prefix,
        fusion=decision.fusion,
    )


def _holds(store: Store, decision: decisions.Decision, details: dict[str, Any]) -> bool:
    """Whether all that readers search is as these details describe it."""
    # Earlier versions did not say which arms they had given tables with queries.
    arms_hold = expanded_arms_hold(store, details.get("expanded_arms", {}))
    return arms_hold and index.holds(store, details) and _serves(store, decision, details)


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
