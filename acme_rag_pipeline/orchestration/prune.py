"""Forgetting old runs: Dagster keeps every event of every run until somebody deletes the run."""

import argparse
import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import dagster as dg

from acme_rag_pipeline.errors import UserError

if TYPE_CHECKING:
    from dagster._core.storage.event_log import SqliteEventLogStorage

_FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def prune(instance: dg.DagsterInstance, older_than: datetime) -> int:
    """Delete runs that ended, with their events and logs; the store, its decisions and reports are not touched.

    The run that made an asset as it is shown today stays: without it the asset would count as never made.

    Args:
        instance: whose history it is.
        older_than: runs that were created before.

    Returns:
        How many were deleted.

    Raises:
        UserError: this Dagster does not have what tells which file belongs to a run; nothing was deleted.
    """
    in_files = _kept_in_files(instance)
    newest = instance.get_latest_materialization_events(instance.all_asset_keys()).values()
    kept = {event.run_id for event in newest if event is not None}
    old = instance.get_run_ids(dg.RunsFilter(statuses=_FINISHED, created_before=older_than))
    gone = [run_id for run_id in old if run_id not in kept]
    for run_id in gone:
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
        if in_files is not None:
            _drop_file(Path(in_files.path_for_shard(run_id)))
    return len(gone)


def _kept_in_files(instance: dg.DagsterInstance) -> "SqliteEventLogStorage | None":
    """The storage of an instance that keeps each run's events in a file of its own; None where it is another kind."""
    try:
        # Not in Dagster's public interface, and nothing that is says where a run's file lies.
        from dagster._core.storage.event_log import SqliteEventLogStorage
    except ImportError as error:
        raise UserError(
            f"Dagster {dg.__version__} has no `dagster._core.storage.event_log.SqliteEventLogStorage`, which says where the "
            "events of a run lie: install the Dagster that constraints.txt names"
        ) from error
    events = instance.event_log_storage
    return events if isinstance(events, SqliteEventLogStorage) else None


def _drop_file(file: Path) -> None:
    """SQLite has a file for each run, which Dagster empties and leaves as large as it was."""
    for path in (file, *(file.with_name(f"{file.name}-{suffix}") for suffix in ("wal", "shm"))):
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def main(arguments: Sequence[str] | None = None) -> None:
    """Prune the history of `DAGSTER_HOME`."""
    parser = argparse.ArgumentParser(description="Delete finished runs from Dagster's history.")
    parser.add_argument("--days", type=int, default=90, help="runs that are younger stay (default 90)")
    days = parser.parse_args(arguments).days
    if days < 1:
        parser.error("--days must be at least 1")
    with dg.DagsterInstance.get() as instance:
        try:
            deleted = prune(instance, datetime.now(UTC) - timedelta(days=days))
        except UserError as error:
            parser.exit(1, f"prune: {error}\n")
    print(f"{deleted} finished runs of more than {days} days ago were deleted")


if __name__ == "__main__":
    main()
