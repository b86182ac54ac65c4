"""What a store holds and serves, in one place for `acme-rag status`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from acme_rag_pipeline.documents.ingest import check_not_emptied
from acme_rag_pipeline.documents.source import DocumentsFolderError
from acme_rag_pipeline.documents.state import folder_changes, folder_state
from acme_rag_pipeline.evaluation.changed_settings import changed_since_retrain
from acme_rag_pipeline.evaluation.query_sets import GOLDEN
from acme_rag_pipeline.pairs.unresolved import unresolved_count
from acme_rag_pipeline.serving.serve import last_decision_is_served
from acme_rag_pipeline.serving.served_with import changed_since_refresh
from acme_rag_pipeline.settings import Settings, SettingsError
from acme_rag_pipeline.store import lance_files, models
from acme_rag_pipeline.store.layout import Store
from acme_rag_pipeline.store.promotion import NothingPromoted, PointerDamaged, read_pointer
from acme_rag_pipeline.store.warehouse import WarehouseBusy, records
from acme_rag_pipeline.training.due import change_since_training

# What is said of a store whose warehouse is not there (a new one, a copy for readers) or cannot be asked now.
_NOTHING_BUILT: dict[str, Any] = {
    "last_decision_served": None,
    "up_to_date": False,
    "counts": {},
    "unreadable": [],
    "incomplete": [],
    "chunks_changed_since_retrain": None,
    "settings_changed_since_refresh": [],
    "settings_changed_since_retrain": [],
    "ndcg@10": {},
    "held_out_chose_the_weights": False,
    "report": None,
    "stages": [],
    "decisions": [],
}


def store_status(store: Store, settings: Settings) -> dict[str, Any]:
    """Everything a person asks first: what is promoted and why, how far it lags, counts, what ran when.

    Readers never wait for long: while a run writes, the pointer is still shown and `busy` says who holds the store.
    """
    known: dict[str, Any] = {"store": str(store.root), "documents_folder": str(settings.documents)}
    try:
        known["promoted"] = vars(read_pointer(store.pointer))
    except (NothingPromoted, PointerDamaged) as error:
        known |= {"promoted": None, "note": str(error)}
    if not store.warehouse.path.exists():
        return known | _NOTHING_BUILT
    try:
        with store.warehouse.read() as connection:
            counts = {
                table: connection.execute(f"SELECT count(*) FROM {table}{where}").fetchall()[0][0]
                for table, where in (
                    ("documents", " WHERE status = 'ok'"),
                    ("chunks", ""),
                    ("pairs", ""),
                    ("training_pairs", " WHERE dropped_because IS NULL"),
                    ("golden_queries", " WHERE status = 'resolved'"),
                )
            }
            reasons = "SELECT doc_path, reason FROM documents WHERE status = ? AND reason IS NOT NULL ORDER BY doc_path"
            unreadable = records(connection, reasons, ["unreadable"])
            incomplete = records(connection, reasons, ["ok"])
            counts["unreadable_documents"] = len(unreadable)
            counts["incomplete_documents"] = len(incomplete)
            counts["unresolved_curated_pairs"] = unresolved_count(connection)
            stages = records(connection, "SELECT stage, finished_at, summary FROM stages ORDER BY finished_at")
            decisions = records(
                connection,
                "SELECT decided_at, verdict, recipe, model_digest, reason FROM promotions ORDER BY decision DESC LIMIT 5",
            )
        change = change_since_training(store)
        known["last_decision_served"] = last_decision_is_served(store)
        known |= _changed_settings(store, settings)
    except WarehouseBusy as error:
        return _NOTHING_BUILT | known | {"busy": str(error)}
    details = {row["stage"]: json.loads(row["summary"])["details"] for row in stages}
    if missing := _missing(store, known["promoted"], details):
        known["served_problem"] = missing
    try:
        same_documents = folder_state(settings, store) == details.get("served_index", {}).get("sources")
        as_made = not known["settings_changed_since_refresh"]
        known["up_to_date"] = same_documents and known["last_decision_served"] and as_made and not missing
        if not same_documents:
            check_not_emptied(store, settings)
            known["documents_changed"] = folder_changes(settings, store)
    except DocumentsFolderError as error:
        # The note is the pointer's: both may be true.
        known |= {"up_to_date": False, "documents_problem": str(error)}
    report = details.get("evaluation_report", {})
    return known | {
        "counts": counts,
        "unreadable": unreadable,
        "incomplete": incomplete,
        "chunks_changed_since_retrain": vars(change) if details.get("fine_tuned_model") else None,
        "ndcg@10": report.get("ndcg@10", {}),
        # Where golden queries decide, `held_out` is the validation share.
        "held_out_chose_the_weights": report.get("evidence") == GOLDEN,
        "report": report.get("report"),
        "stages": [{"stage": row["stage"], "last_change": _in_utc(row["finished_at"])} for row in stages],
        "decisions": [row | {"decided_at": _in_utc(row["decided_at"])} for row in decisions],
    }


def _in_utc(moment: datetime) -> str:
    # As the pointer has it: DuckDB gives the time of the machine's zone.
    return moment.astimezone(UTC).isoformat()


def _changed_settings(store: Store, settings: Settings) -> dict[str, Any]:
    """The stages that were made with other settings, another base model or other code than those of today."""
    known: dict[str, Any] = {"settings_changed_since_refresh": [], "settings_changed_since_retrain": []}
    try:
        known["settings_changed_since_refresh"] = list(changed_since_refresh(store, settings))
        known["settings_changed_since_retrain"] = changed_since_retrain(store, settings)
    except SettingsError as error:
        # Readers do without a base model and without the files that a training reads.
        known["settings_problem"] = str(error)
    return known


def _missing(store: Store, promoted: dict[str, Any] | None, details: dict[str, Any]) -> str:
    """What the pointer names and the store does not hold, in words.

    Looked up as names and sizes of files, since opening takes seconds: whether their bytes are right is not known here.
    """
    if promoted is None:
        return ""
    name, version = promoted["table"], promoted["lance_version"]
    if problem := _missing_of_model(store, promoted, details):
        return problem
    if not (store.lancedb / f"{name}.lance").is_dir():
        return f"the table {name} is missing: materialise `served_index` to build it again"
    try:
        if not lance_files.has_version(store.lancedb, name, version):
            return f"the table {name} has no version {version}: materialise `served_index` to write promoted.json anew"
        lost = lance_files.lost_files(store.lancedb, name, version)
    except OSError as error:
        return f"the table {name} cannot be read ({error.strerror}): make {error.filename} readable"
    if lost:
        return f"of the table {name} are missing or cut off {_some(lost)}: run `refresh`, which builds it again"
    return ""


def _missing_of_model(store: Store, promoted: dict[str, Any], details: dict[str, Any]) -> str:
    folder, digest = store.root / promoted["model_dir"], promoted["model_digest"]
    served = details.get("served_index", {})
    sizes = served.get("model_files", {}) if served.get("model_digest") == digest else {}
    if not folder.is_dir():
        problem = "is missing"
    elif lost := models.lost_files(folder, sizes):
        problem = f"has lost, or has cut off, {_some(lost)}"
    else:
        return ""
    if digest == details.get("base_index", {}).get("model_digest"):
        advice = "run `refresh`, which copies the base model again"
    else:
        advice = "run `acme-rag rollback`, or delete the folder and run `retrain`"
    return f"the model folder {promoted['model_dir']} {problem}: {advice}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
